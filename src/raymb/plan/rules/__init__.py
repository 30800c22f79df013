"""What a layout, and the run that has it, must keep: every rule with the values, and the flag to change."""

from raymb.plan.rules.world import (
    broken_rules,
    broken_size_rules,
    default_expert_tensor,
    divisors,
    sample_multiple,
)

__all__ = ["broken_rules", "broken_size_rules", "default_expert_tensor", "divisors", "sample_multiple"]

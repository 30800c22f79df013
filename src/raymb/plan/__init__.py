"""How the workers share the work, from the spec and the model's config.json alone. Imports no framework."""

from raymb.plan.layout import Plan, make_plan, usable_plans

__all__ = ["Plan", "make_plan", "usable_plans"]

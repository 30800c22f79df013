"""Language models that have layers without attention: state space models, or linear attention."""

from __future__ import annotations

from raymb.model.families.record import Family

FAMILIES = (
    Family(
        "Qwen3-Next",
        ("Qwen3NextForCausalLM",),
        ("qwen3_next",),
        qk_norm="head",
        gated_attention=True,
        tied_by_default=False,
        experts=True,
    ),
    Family("Nemotron-H", ("NemotronHForCausalLM",), ("nemotron_h",), gated=False, tied_by_default=False, experts=True),
)

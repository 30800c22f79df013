"""What raymb knows of each family of models that its config.json does not say: one record a family, read by the plan,
the bridge, the export, the data and the tests. No framework."""

from __future__ import annotations

from raymb.model.families import dense, hybrid, moe, vision
from raymb.model.families.record import Family

FAMILIES = (*dense.FAMILIES, *moe.FAMILIES, *hybrid.FAMILIES, *vision.FAMILIES)
"""All families with a record."""

OTHER = Family("other")
"""A family without a record. Bridge 0.6.2 loads some that transformers 5.12.1 makes otherwise: nemotron_h has no gate,
and nemotron_h, exaone4, exaone_moe, falcon_h1, minimax_m2 and hy_v3 do not tie by default."""
OTHER_UNTIED = Family("other", tied_by_default=False)
"""A family without a record whose makers do not tie by default."""
_MAKERS_WITHOUT_TYING = (
    "llama",
    "mistral",
    "mixtral",
    "qwen",
    "deepseek",
    "phi",
    "olmo",
    "gpt_neox",
    "stablelm",
    "glm",
)
"""Beginnings of model types."""

_BY_ARCHITECTURE = {architecture: family for family in FAMILIES for architecture in family.architectures}
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_of(architecture: str) -> Family:
    """By `architectures[0]` of config.json: what Bridge and transformers choose a model's class by."""
    return _BY_ARCHITECTURE.get(architecture, OTHER)


def family_of_type(model_type: str) -> Family:
    """By the `model_type` of config.json's language part, which may be another family's than the whole model's."""
    other = OTHER_UNTIED if model_type.startswith(_MAKERS_WITHOUT_TYING) else OTHER
    return _BY_TYPE.get(model_type, other)

"""A spec as a file for people and for --config: what differs from the defaults, and nothing else."""

from __future__ import annotations

from typing import Any

from raymb.spec.interpolation import without_interpolation
from raymb.spec.load import without_secrets
from raymb.spec.sections import Model, RunSpec


def differing_sections(spec: RunSpec) -> dict[str, dict[str, Any]]:
    """Section to the fields that are not as by default, as JSON has them, without secrets. The model is always named.

    `RunSpec.model_validate` makes the same spec of it. Fields are compared as they are written: pydantic's
    exclude_defaults does not know the default of a mapping.
    """
    name = spec.model.hf_model_path
    written = without_secrets(spec).model_dump(mode="json")
    default = RunSpec(model=Model(hf_model_path=name)).model_dump(mode="json")
    differing = {
        section: {field: value for field, value in fields.items() if value != default[section].get(field)}
        for section, fields in written.items()
    }
    differing["model"] = {"hf_model_path": name, **differing["model"]}
    return {section: fields for section, fields in differing.items() if fields}


def sparse_yaml(spec: RunSpec) -> str:
    """The same as YAML for --config; no line is broken, so that it can stand in a block literal."""
    import yaml

    return yaml.safe_dump(without_interpolation(differing_sections(spec)), sort_keys=False, width=float("inf"))

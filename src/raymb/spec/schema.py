"""The schema as JSON Schema, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from raymb.spec.sections import SECTIONS, RunSpec


def json_schema() -> dict[str, Any]:
    """Of a file for --config: sections of flags. Nothing is required, because other files and flags may say it."""
    schema = RunSpec.model_json_schema()
    schema["title"] = "raymb --config"
    schema.pop("required", None)
    for name, section in SECTIONS.items():
        definition = schema["$defs"][section.__name__]
        definition.pop("required", None)
        schema["properties"][name] = {"$ref": f"#/$defs/{section.__name__}"}
        for flag in definition["properties"].values():
            _tidy(flag)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _tidy(flag: dict[str, Any]) -> None:
    """As a person writes it: one word for a list, a range such as 4:16 as YAML 1.1 reads it, nothing of our own."""
    for name in ("title", "bridge", "short"):
        flag.pop(name, None)
    flag["description"] = " ".join(flag["description"].split())
    if flag.get("type") == "array":
        listed = {name: flag.pop(name) for name in ("type", "items", "minItems") if name in flag}
        flag["anyOf"] = [{"type": "string"}, listed]
    if flag.get("format") == "path":
        del flag["format"]  # no format of JSON Schema

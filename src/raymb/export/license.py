"""Under which license a tuned model may be given on: that of the model that it was tuned from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_TEXTS = {
    "apache-2.0": r"Apache License\s+Version 2\.0",
    "mit": r"MIT License|Permission is hereby granted, free of charge, to any person",
}
"""The hub's name of a license to what its text has in its beginning. Others have texts of their own for each model."""
_NAMES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE")
_KEYS = ("license", "license_name", "license_link")


def license_of(directory: Path) -> dict[str, str]:
    """The fields of a model card that say it: as the directory's own card has them, else by its license's text; empty
    where neither is there."""
    said = _of_card(directory / "README.md")
    if isinstance(said.get("license"), str):
        return {key: str(said[key]) for key in _KEYS if said.get(key)}
    file = next((directory / name for name in _NAMES if (directory / name).is_file()), None)
    if file is None:
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")[:2000]
    for name, beginning in _TEXTS.items():
        if re.search(beginning, text):
            return {"license": name}
    return {"license": "other", "license_name": "of-the-base-model", "license_link": file.name}


def _of_card(file: Path) -> dict[str, Any]:
    """The YAML block of a card; empty where there is none that can be read."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        return ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, YAMLError):
        return {}

"""Numbered rows of prompt and completion, and a file of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def rows(count: int, start: int = 0) -> Rows:
    return [{"prompt": f"p{number}", "completion": f" c{number}"} for number in range(start, start + count)]


def write(file: Path, content: Rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    return file

"""Outputs that docs/ shows, in a block below `<!-- output: NAME -->`: a test that has made one compares it with the
page, but for numbers and white space. With RAYMB_WRITE_OUTPUTS=1 it writes the page instead."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def compare(page: str, name: str, output: str, stand_ins: Mapping[str, str]) -> None:
    """
    Args:
        page: its file's name.
        stand_ins: what this machine calls a thing (a regular expression) to what the page calls it.
    """
    for real, shown in stand_ins.items():
        output = re.sub(real, shown, output)
    output = "\n".join(line.rstrip() for line in output.strip().splitlines())
    text = (DOCS / page).read_text(encoding="utf-8")
    block = re.search(rf"<!-- output: {name} -->\n```text\n(.*?)```\n", text, re.DOTALL)
    assert block, f"{page} has no block for the output {name}"
    if os.environ.get("RAYMB_WRITE_OUTPUTS"):
        (DOCS / page).write_text(f"{text[: block.start(1)]}{output}\n{text[block.end(1) :]}", encoding="utf-8")
    else:
        assert form(block.group(1)) == form(output)


def form(text: str) -> str:
    return re.sub(r"\d+(?:\.\d+)*", "N", " ".join(text.split()))

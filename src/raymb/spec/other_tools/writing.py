"""A translation as YAML for --config, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from raymb.spec.other_tools.record import Tool
from raymb.spec.other_tools.translated import Translation
from raymb.spec.sections import SECTIONS

_WIDTH, _MANY = 116, 60


def written(tool: Tool, name: str, translation: Translation, problems: list[str]) -> str:
    """
    Args:
        name: of the file.
        problems: what raymb refuses of it.
    """
    lines = [
        f"# {name}, of {tool.title}, for raymb finetune --config.",
        f"# What it leaves out is as by raymb's defaults, not by {tool.title}'s.",
        *_comment(problems, "to be changed: "),
    ]
    if "num_workers" not in translation.flags and "data_parallel_size" not in translation.flags:
        lines += _comment(["parallel.num_workers is the number of GPUs, which the file does not say"], "to be said: ")
    for section, model in SECTIONS.items():
        flags = [flag for flag in model.model_fields if flag in translation.flags]
        lines += [f"{section}:"] if flags else []
        lines += [f"  {flag}: {_scalar(translation.flags[flag])} # {translation.origins[flag]}" for flag in flags]
    return "\n".join([*lines, *_left_out(translation)]) + "\n"


def _scalar(value: Any) -> str:
    import yaml

    from raymb.spec.interpolation import without_interpolation

    text = yaml.safe_dump(without_interpolation(value), default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.strip().removesuffix("\n...").strip()


def _left_out(translation: Translation) -> Iterator[str]:
    """A comment on each key; in a file of many keys those with the same reason share one."""
    rows = translation.left_out
    if not rows:
        return
    yield "#"
    yield "# What has no equal:"
    if len(rows) <= _MANY:
        for name, value, why in rows:
            yield from _comment([f"{name}: {_short(value)} -- {why}"], "  ")
        return
    for reason in dict.fromkeys(why for _, _, why in rows):
        keys = ", ".join(f"{name}: {_short(value)}" for name, value, why in rows if why == reason)
        yield from _comment([f"{reason}:"], "  ")
        yield from _comment([keys], "    ")


def _short(value: Any) -> str:
    text = " ".join(_scalar(value).split())
    return text if len(text) <= 50 else f"{text[:47]}..."


def _comment(texts: list[str], begin: str) -> Iterator[str]:
    for text in texts:
        indent = " " * (len(begin) - len(begin.lstrip()) + 2)
        yield from textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"# {begin}",
            subsequent_indent=f"# {indent}",
            break_on_hyphens=False,
            break_long_words=False,
        )

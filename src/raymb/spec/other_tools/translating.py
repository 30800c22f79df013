"""From a file of another tool to raymb's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymb.errors import SpecError
from raymb.spec.conflicts import conflicts
from raymb.spec.other_tools.reading import flattened, read_file, tool_of
from raymb.spec.other_tools.record import NOTHING, TOGETHER, Key, Tool
from raymb.spec.other_tools.translated import Translation
from raymb.spec.other_tools.writing import written
from raymb.spec.sections import SECTIONS, RunSpec
from raymb.spec.training import Peft


def translate_file(file: Path, named: str | None = None, workers: int | None = None) -> str:
    """raymb's YAML, with a comment on each key that has no equal.

    Args:
        named: of FILES; None: found by the keys.
        workers: how many there will be, where the file does not say so.

    Raises:
        SpecError: the file cannot be read, or is no tool's.
    """
    given = read_file(file)
    tool = tool_of(given, file, named)
    translation = translate(tool, given, workers)
    return written(tool, file.name, translation, problems_of(translation))


def translate(tool: Tool, content: Mapping[str, Any], workers: int | None = None) -> Translation:
    """
    Args:
        content: of the file, nested as it is.
    """
    names = tool.by_name()
    given = tool.prepare({name: value for name, value in flattened(content, names).items() if value is not None})
    in_the_file = given.pop("workers", None)
    workers = workers or in_the_file
    translation = Translation(workers)
    if workers:
        translation.set("num_workers", workers, "the number of GPUs")
    for name, value in given.items():
        _take(tool, names.get(name), name, value, translation)
    try:
        tool.together(given, translation)
    except _UNREADABLE as error:
        raise SpecError(f"{tool.title}: a value is not of the kind that it should be: {error}") from None
    _tidy(translation)
    return translation


_UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What a conversion raises for a value of another kind than its tool takes."""


def _take(tool: Tool, row: Key | None, name: str, value: Any, translation: Translation) -> None:
    if row is None:
        sections = [section for section in tool.others or () if name == section or name.startswith(f"{section}.")]
        why = (tool.others or {})[max(sections, key=len)] if sections else "raymb knows no equal"
        translation.leave_out(name, value, why)
    elif not row.flags:
        translation.leave_out(name, value, row.note)
    elif row.value is not TOGETHER:
        _set(translation, row, name, value)


def _set(translation: Translation, row: Key, name: str, value: Any) -> None:
    flags = row.flags_of(name)
    if isinstance(row.value, Mapping):
        if isinstance(value, list | dict) or value not in row.value:
            translation.leave_out(
                name, value, f"--{flags[0]} has {', '.join(dict.fromkeys(map(str, row.value.values())))}"
            )
            return
        value = row.value[value]
    elif callable(row.value):
        try:
            value = row.value(value)
        except _UNREADABLE:
            translation.leave_out(name, value, f"not a value that can be read for --{flags[0]}")
            return
    if value is NOTHING:
        return
    found = value if isinstance(value, Mapping) and {*value} <= {*row.flags} else {flags[0]: value}
    for flag, one in found.items():
        translation.set(flag, one, name)


def _tidy(translation: Translation) -> None:
    """Without what raymb refuses beside the rest because it would do nothing there."""
    flags = translation.flags
    if flags.get("train_iters") and flags.get("num_epochs"):
        translation.drop("num_epochs", "train.train_iters says how long to train")
    if flags.get("peft", "none") == "none":
        for flag in Peft.model_fields.keys() - {"peft"}:
            translation.drop(flag, "of adapters, and the whole model is trained")
    elif flags.get("peft") == "dora" and flags.get("lora_dropout"):
        translation.drop("lora_dropout", "Bridge has no dropout for DoRA")
    recompute = flags.get("recompute", "auto")
    if recompute != "full":
        translation.drop("recompute_method", "of recompute: full")
        translation.drop("recompute_num_layers", "of recompute: full")
    if recompute != "selective":
        translation.drop("recompute_modules", "of recompute: selective")
    if flags.get("tensor_parallel_size", 1) == 1 and flags.get("sequence_parallel"):
        translation.drop("sequence_parallel", "without tensor parallel it does nothing")
    if flags.get("pipeline_parallel_size", 1) == 1 and flags.get("virtual_pipeline_parallel_size") == 1:
        translation.drop("virtual_pipeline_parallel_size", "without pipeline parallel it does nothing")
    if flags.get("expert_parallel_size", 1) == 1:
        for flag in ("expert_parallel_size", "expert_tensor_parallel_size"):
            if flags.get(flag) == 1:
                translation.drop(flag, "1 is what it is anyway")
    if flags.get("merge") is False or (flags.get("merge") and flags.get("peft", "none") == "none"):
        translation.drop("merge", "of adapters; false is the default")


def problems_of(translation: Translation) -> list[str]:
    """What raymb says of the flags before it looks at model and data."""
    if "hf_model_path" not in translation.flags:
        return ["--hf_model_path is needed, and nothing in the file says which model it is"]
    sections = {
        name: {flag: translation.flags[flag] for flag in section.model_fields if flag in translation.flags}
        for name, section in SECTIONS.items()
    }
    return conflicts(RunSpec.model_validate(sections))

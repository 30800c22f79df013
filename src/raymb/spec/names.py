"""Which flag is meant by a name that is none: a short spelling, Megatron's name, another tool's, a slip of the pen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from raymb.spec.sections import FLAG_THAT_OWNS, SECTIONS
from raymb.spec.values import short_spelling

FLAG_OF_SHORT: dict[str, str] = {
    short: flag
    for section in SECTIONS.values()
    for flag, field in section.model_fields.items()
    if (short := short_spelling(field))
}
"""`tp` to tensor_parallel_size. YAML has the long names only."""

_OTHERS = {
    "dataset_text_field": "text_column",
    "eval_dataset": "validation_dataset",
    "gradient_checkpointing": "recompute",
    "hf_dataset_revision": "dataset",
    "max_grad_norm": "clip_grad",
    "max_steps": "train_iters",
    "model": "hf_model_path",
    "num_gpus": "num_workers",
    "run_name": "experiment_name",
    "source_dir": "working_dir",
    "world_size": "num_workers",
}
"""Names of other tools whose words say nothing, or something else."""
_SLIP = 0.85
"""Likeness from which on a name is a flag misspelt, whatever its words mean."""


def flag_meant(name: str, known: Iterable[str]) -> str | None:
    """The one of the known flags that a name most likely means; None where there is none like it.

    Args:
        name: with underscores, without dashes in front.
        known: spellings, short ones among them where these may be named.
    """
    flags = list(known)
    exact = FLAG_OF_SHORT.get(name) or _OTHERS.get(name) or _flag_of_megatron(name)
    if exact in flags:
        return exact
    slip = difflib.get_close_matches(name, flags, n=1, cutoff=_SLIP)
    long = [flag for flag in flags if flag not in FLAG_OF_SHORT]  # two letters resemble too many names
    found = slip or _by_words(name, flags) or difflib.get_close_matches(name, long, n=1)
    return found[0] if found else None


def _flag_of_megatron(name: str) -> str | None:
    """`lr` is --learning_rate: the last part of a ConfigContainer path that a flag owns."""
    return next((flag for path, flag in FLAG_THAT_OWNS.items() if path.rpartition(".")[2] == name), None)


def _by_words(name: str, flags: list[str]) -> list[str]:
    """The flag that shares most with a name, in letters of whole words, less those of its words that the name lacks:
    --hf_dataset_name is --dataset."""
    words = set(name.split("_"))

    def shared(flag: str) -> int:
        return sum(len(word) if word in words else -len(word) for word in set(flag.split("_")))

    best = max(flags, key=shared, default="")
    return [best] if best and shared(best) > 0 else []

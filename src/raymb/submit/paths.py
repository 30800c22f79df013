"""The paths in a spec, and which of them a job has: read in a copy of what is here, or written where they last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raymb.data.words import read_word
from raymb.errors import SpecError
from raymb.spec import RunSpec
from raymb.storage.remote import is_uri

if TYPE_CHECKING:
    from raymb.submit.target import Target

_WORDS = ("dataset", "validation_dataset", "test_dataset", "hf_model_path")
"""Flags whose value may be a path, or else a hub id or the name of a data set; the others of paths_of take paths."""
WRITTEN = ("output_dir", "storage_path")


def paths_of(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """(flag, path) for every value that names a file or directory, or may name one."""
    data, checkpoint = spec.data, spec.checkpoint
    words = [("dataset", word) for word in data.dataset]
    words += [("validation_dataset", data.validation_dataset or ""), ("test_dataset", data.test_dataset or "")]
    yield from ((flag, read_word(word).name) for flag, word in words if word)
    named = {
        "hf_model_path": spec.model.hf_model_path,
        "add_tokens": spec.model.add_tokens,
        "chat_template": data.chat_template,
        "output_dir": checkpoint.output_dir,
        "resume": None if checkpoint.resume in ("auto", "never") else checkpoint.resume,
        "storage_path": spec.run.storage_path,
    }
    yield from ((flag, str(value)) for flag, value in named.items() if value is not None)


def check_paths(spec: RunSpec, target: Target) -> None:
    """
    Raises:
        SpecError: naming every path that the job would not see, and every one that it would write in vain.
    """
    directory = spec.cluster.working_dir
    if directory is not None and not directory.expanduser().is_dir():
        raise SpecError(f"--working_dir {directory}: no such directory", "give one that exists")
    problems = []
    for flag, path in paths_of(spec):
        if is_path(flag, path) and flag in WRITTEN and not target.keeps(path, spec):
            problems.append(f"--{flag} {path}: what the job writes there would be lost with it")
        elif is_path(flag, path) and not target.sees(path, spec):
            problems.append(f"--{flag} {path}: this path is not one that the job sees")
    if directory is not None and not target.uploads and not target.sees(str(directory), spec):
        problems.append(
            f"--working_dir {directory}: this target uploads no directory, and the job does not see this one"
        )
    if problems:
        raise SpecError("\n  ".join(problems), target.where())


def with_absolute_paths(spec: RunSpec) -> RunSpec:
    """The spec for a job that sees these files and starts in another directory."""

    def there(flag: str, word: str) -> str:
        name = read_word(word).name if flag in _WORDS else word
        return f"{Path(name).expanduser().absolute()}{word[len(name) :]}" if is_path(flag, name) else word

    spec = spec.changed(data={"dataset": [there("dataset", word) for word in spec.data.dataset]})
    for section, flag in _PATHS:
        value = getattr(getattr(spec, section), flag)
        if value is not None and (flag, value) not in (("resume", "auto"), ("resume", "never")):
            spec = spec.changed(**{section: {flag: type(value)(there(flag, str(value)))}})
    return spec


_PATHS = (
    ("data", "validation_dataset"),
    ("data", "test_dataset"),
    ("data", "chat_template"),
    ("model", "hf_model_path"),
    ("model", "add_tokens"),
    ("checkpoint", "output_dir"),
    ("checkpoint", "resume"),
    ("run", "storage_path"),
)


def is_path(flag: str, word: str) -> bool:
    """Whether the value of a flag is a path here, or one of another machine."""
    return not is_uri(word) and (flag not in _WORDS or _looks_like_a_path(word))


def _looks_like_a_path(word: str) -> bool:
    from raymb.data.sources import kind_of

    return word.startswith(("/", ".", "~")) or kind_of(word) is not None or (Path(word).exists() and word != "sample")

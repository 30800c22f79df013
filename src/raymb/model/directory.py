"""A Hugging Face model's directory: whether all that a training needs of it is there. No torch, no transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from raymb.errors import ModelError
from raymb.model.tensor_files import INDEX, SINGLE, named_by_index, truncated, weight_files

Needs = Literal["config", "tokenizer", "weights"]
"""What must be there: config.json alone; the tokenizer, too; the weights as well."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
MADE_OF = "made_of.json"
"""Of a directory that raymb.model.initial makes: its weights come last."""
_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "fetch the whole model"


def local_model_directory(hf_model_path: str, needs: Needs = "weights") -> Path | None:
    """The directory if the path names one, checked for what is needed of it; None for a hub id.

    Raises:
        ModelError: the path can only be a directory but is none, or the directory is incomplete.
    """
    path = Path(hf_model_path).expanduser()
    if path.is_dir():
        _check(path, "tokenizer" if needs == "weights" and (path / MADE_OF).is_file() else needs)
        return path
    looks_local = hf_model_path.startswith(("/", ".", "~")) or hf_model_path.count("/") > 1
    if path.exists():
        raise ModelError(f"--hf_model_path {hf_model_path}: a file, not a directory", "give the directory it lies in")
    if looks_local:
        raise ModelError(
            f"--hf_model_path {hf_model_path}: no such directory", "give an existing directory or a hub id (owner/name)"
        )
    return None


def bin_files(directory: Path) -> list[Path]:
    """Weights as torch pickles them: the only ones of some older models."""
    return sorted(directory.glob("pytorch_model*.bin"))


def _check(path: Path, needs: Needs) -> None:
    flag = f"--hf_model_path {path}"
    if not (path / "config.json").is_file():
        raise ModelError(f"{flag}: {_why_no_model(path)}", "give a Hugging Face model directory (save_pretrained)")
    if needs == "weights":
        _check_weights(flag, path)
    if needs != "config":
        _check_tokenizer(flag, path)


def _why_no_model(path: Path) -> str:
    names = sorted(file.name for file in path.iterdir())
    if not names:
        return "an empty directory"
    if "adapter_config.json" in names:
        return "an adapter (PEFT), not a model: there is no config.json in this directory"
    gguf = next((name for name in names if name.endswith(".gguf")), None)
    return "no config.json in this directory" + (f", and {gguf} is of another format (GGUF)" if gguf else "")


def _check_weights(flag: str, path: Path) -> None:
    if (path / INDEX).is_file():
        named = named_by_index(path / INDEX)
        missing = [name for name in named if not (path / name).is_file()]
        if missing:
            raise ModelError(f"{flag}: {len(missing)} weight files of {INDEX} are missing, first {missing[0]}", _AGAIN)
        if (path / SINGLE).is_file() and SINGLE not in named:
            raise ModelError(
                f"{flag}: both {SINGLE} and an index of other files: some programs read one, some the other",
                f"delete {SINGLE}, or {INDEX} and its files",
            )
    found = weight_files(path)
    if found and not any((path / name).is_file() for name in (INDEX, SINGLE)):
        raise ModelError(
            f"{flag}: neither {SINGLE} nor {INDEX} says which files are the model's; there is {found[0].name}",
            "fetch the model in Hugging Face format, all of it",
        )
    found = found or bin_files(path)
    if not found:
        raise ModelError(
            f"{flag}: no weights (*.safetensors or pytorch_model*.bin) in this directory",
            f"{_AGAIN}; --init random needs none",
        )
    for file in found:
        _check_pointer(flag, file)
        if file.suffix == ".safetensors" and (problem := truncated(file)):
            raise ModelError(f"{flag}: {file.name} is damaged: {problem}", "fetch this file again")


def _check_tokenizer(flag: str, path: Path) -> None:
    found = list(_tokenizer_files(path))
    if not found:
        raise ModelError(
            f"{flag}: no tokenizer in this directory (none of {', '.join(TOKENIZER_FILES)})",
            "save the tokenizer next to the model: AutoTokenizer.from_pretrained(...).save_pretrained(DIR)",
        )
    for file in found:
        _check_pointer(flag, file)
        if file.name == "tokenizer.json":
            _check_json(flag, file)


def _tokenizer_files(path: Path) -> Iterator[Path]:
    yield from (path / name for name in TOKENIZER_FILES if (path / name).is_file())
    yield from sorted(path.glob("*.tiktoken"))


def _check_pointer(flag: str, file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelError(f"{flag}: {file.name} is a git-lfs pointer, not the file itself", "run: git lfs pull")


def _check_json(flag: str, file: Path) -> None:
    try:
        json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{flag}: {file.name} is not valid JSON ({error})", "fetch this file again") from None

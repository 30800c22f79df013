"""From the words of --dataset to sources: which files or hub splits are trained on, validated on and tested on."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from raymb.data.presets import PRESETS
from raymb.data.sources import FORMATS, Dialogues, File, HubSplit, Source, kind_of
from raymb.errors import DataError
from raymb.model.files import HUB_ID

PARTS = ("train", "validation", "test")
_OTHER_NAMES = {"train": ("training",), "validation": ("valid", "val", "dev", "eval"), "test": ()}
_WAYS_OUT = (
    f"--dataset takes a file or glob ({', '.join(FORMATS)}), a directory of them, an address (s3://...), a hub id "
    f"(owner/name), one of {', '.join(PRESETS)}, or sample (the dialogues of the chatterbot-corpus package)"
)
_WEIGHT = re.compile(r"(.+):(\d+(?:\.\d*)?|\.\d+)")
_HUB_SETTINGS = ("config", "split", "revision")


@dataclass(frozen=True)
class Located:
    """One --dataset.

    Args:
        word: as the user gave it, without the weight.
        weight: its share of the rows among the others; None if none was given.
        parts: sources by part; only "train" is always there.
    """

    word: str
    weight: float | None
    parts: Mapping[str, Sequence[Source]]


def locate(word: str, *, chat: bool) -> Located:
    """Find the sources behind one --dataset. Looks at the disk or the hub, reads no rows.

    Args:
        word: a path, glob, address, directory, hub id with ?config=&split=&revision=, preset or `sample`; a weight
            may follow after a colon.
        chat: whether the model has a chat template.

    Raises:
        DataError: there is nothing, or nothing that can be read.
    """
    match = _WEIGHT.fullmatch(word)
    name, weight = (match[1], float(match[2])) if match and not Path(word).exists() else (word, None)
    if weight == 0:
        raise DataError(f"--dataset {word}: a weight must be greater than 0", "leave a data set out that is not wanted")
    return Located(name, weight, _parts(name, chat))


def _parts(name: str, chat: bool) -> Mapping[str, Sequence[Source]]:
    path = Path(name).expanduser()
    if name == "sample" and not path.exists():
        return {"train": [Dialogues(chat)]}
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return {"train": [_file(str(path))]}
    if "://" in name:
        return {"train": _address(name)}
    if any(sign in name for sign in "*?[") and not _names_hub_data(name.partition("?")[0]):
        found = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not found:
            raise DataError(f"--dataset {name}: no file matches", _WAYS_OUT)
        return {"train": [_file(file) for file in found]}
    hub_id, _, query = name.partition("?")
    if hub_id in PRESETS:
        preset = PRESETS[hub_id]
        return _hub(name, preset.hub_id, {**preset.settings, **_settings(name, query)}, preset.row)
    if kind_of(name) is None and HUB_ID.fullmatch(hub_id) and not name.startswith((".", "/", "~")):
        return _hub(name, hub_id, _settings(name, query), None)
    raise DataError(f"--dataset {name}: no such file or directory", _WAYS_OUT)


def _names_hub_data(word: str) -> bool:
    return word in PRESETS or bool(HUB_ID.fullmatch(word))


def _file(name: str) -> File:
    kind = kind_of(name)
    if kind is None:
        raise DataError(f"--dataset {name}: the ending says no format that can be read", _WAYS_OUT)
    return File(name, kind)


def _directory(path: Path) -> Mapping[str, Sequence[Source]]:
    """Files are told apart by name: train*, validation* (valid, val, dev, eval) and test*; if none is called train*,
    all files that are neither of the others are trained on."""
    files = sorted(file for file in path.iterdir() if file.is_file() and kind_of(file.name))
    parts: dict[str, Sequence[Source]] = {
        part: [_file(str(file)) for file in files if _is_called(file.name, (part, *_OTHER_NAMES[part]))]
        for part in PARTS
    }
    named = {source.name for sources in parts.values() for source in sources}
    if not parts["train"]:
        parts["train"] = [_file(str(file)) for file in files if str(file) not in named]
    if not parts["train"]:
        raise DataError(f"--dataset {path}: this directory has no rows to train on (train.jsonl)", _WAYS_OUT)
    return {part: sources for part, sources in parts.items() if sources}


def _is_called(name: str, words: Iterable[str]) -> bool:
    return any(re.match(rf"{word}(?![a-z])", name.lower()) for word in words)


def _address(name: str) -> Sequence[Source]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(name)
        is_directory = filesystem.isdir(path)
        found = sorted(filesystem.ls(path, detail=False) if is_directory else filesystem.glob(path))
        names = [filesystem.unstrip_protocol(item) for item in found]
    except (ImportError, OSError, ValueError) as error:
        raise DataError(f"--dataset {name}: cannot be reached ({' '.join(str(error).split())[:200]})") from None
    files = [_file(item) for item in names if kind_of(item) or not is_directory]
    if not files:
        raise DataError(f"--dataset {name}: nothing to read at this address", _WAYS_OUT)
    return list(files)


def _settings(name: str, query: str) -> dict[str, str]:
    settings = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    wrong = [key for key, value in settings.items() if key not in _HUB_SETTINGS or not value]
    if wrong or (query and not settings):
        raise DataError(
            f"--dataset {name}: {wrong[0] if wrong else query!r} is not understood",
            "a hub id takes ?config=NAME&split=NAME&revision=NAME, for example openai/gsm8k?config=main",
        )
    return settings


def _hub(
    name: str, hub_id: str, settings: Mapping[str, str], row: Callable[[Any], Any] | None
) -> Mapping[str, Sequence[Source]]:
    """Every split of a hub data set that has one of the parts' names; ?split= is trained on instead of train."""
    loaded, revision = _load(name, hub_id, settings)
    parts: dict[str, Sequence[Source]] = {}
    if "split" in settings:
        parts["train"] = [HubSplit(name, loaded, revision, row)]
        return parts
    for part in PARTS:
        found = next((split for split in (part, *_OTHER_NAMES[part]) if split in loaded), None)
        if found:
            parts[part] = [HubSplit(f"{name} {found}", loaded[found], revision, row)]
    if "train" not in parts:
        raise DataError(
            f"--dataset {name}: no split is called train; there are {', '.join(loaded)}", "choose one with ?split=NAME"
        )
    return parts


def _load(name: str, hub_id: str, settings: Mapping[str, str]) -> tuple[Any, str]:
    """The data set, from the hub or from the local cache when the hub does not answer, and its revision."""
    try:
        import datasets
        import datasets.config
        from huggingface_hub import HfApi
    except ImportError as error:
        raise DataError(f"--dataset {name} needs the package {error.name}, which is not installed", _WAYS_OUT) from None
    revision = settings.get("revision")
    try:
        revision = HfApi().dataset_info(hub_id, revision=revision, timeout=5).sha  # datasets alone retries for long
        reason = ""
    except Exception as error:
        datasets.config.HF_HUB_OFFLINE = True
        reason = _in_one_line(error)
    try:
        loaded = datasets.load_dataset(
            hub_id, settings.get("config"), split=settings.get("split"), revision=settings.get("revision")
        )
    except Exception as error:
        raise DataError(
            f"--dataset {name}: reading it from the hub failed ({(reason or _in_one_line(error))[:200]})", _WAYS_OUT
        ) from None
    return loaded, revision or "cached"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

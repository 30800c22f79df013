"""From the words of --dataset to sources: which files or hub splits are trained on, validated on and tested on."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from raymb.data import hub
from raymb.data.dialogues import Dialogues
from raymb.data.presets import PRESETS
from raymb.data.sources import FORMATS, File, First, Source, kind_of
from raymb.data.words import read_word
from raymb.errors import DataError
from raymb.model.files import HUB_ID
from raymb.spec.sections import NO_DATASET, Data

PARTS = ("train", "validation", "test")
_OTHER_NAMES = {"train": ("training",), "validation": ("valid", "val", "dev", "eval"), "test": ()}
WAYS_OUT = (
    f"--dataset takes a file or glob ({', '.join(FORMATS)}), a directory of them or of save_to_disk, a URI "
    f"(s3://...), a hub id (owner/name), {', '.join(PRESETS)}, or sample (dialogues of the chatterbot-corpus "
    "package)"
)
_HUB_SETTINGS = ("config", "split", "revision")


@dataclass(frozen=True)
class Located:
    """One --dataset.

    Args:
        word: as the user gave it, without rows and weight.
        weight: its part in the mix; None if none was given.
        parts: sources by part; only "train" is always there.
    """

    word: str
    weight: float | None
    parts: Mapping[str, Sequence[Source]]


def located_data(data: Data, *, chat: bool) -> list[Located]:
    """Every --dataset, then the rows of --validation_dataset and --test_dataset. Looks at the disk or the hub, reads
    no rows.

    Args:
        chat: whether the model has a chat template.

    Raises:
        DataError: there is nothing, or nothing that can be read, or only some data sets have a weight.
    """
    located = [locate(word, data, chat=chat) for word in data.named]
    _check_weights(located)
    for part, word in (("validation", data.validation_dataset), ("test", data.test_dataset)):
        if word:
            located = [_without(one, part) for one in located]
            located.append(_as_part(locate(word, data, chat=chat), part))
    return located


def locate(word: str, data: Data | None = None, *, chat: bool) -> Located:
    """Find the sources behind one --dataset.

    Args:
        word: a path, glob, URI, directory, hub id with ?config=&split=&revision=, preset or `sample`; after it may
            be #ROWS and :WEIGHT.
        data: says how many rows are used of its training rows, and how a hub data set is read.
        chat: whether the model has a chat template.

    Raises:
        DataError: there is nothing, or nothing that can be read.
    """
    data, read = data or Data(), read_word(word)
    try:
        parts = dict(_parts(read.name, chat and data.apply_chat_template, data.streaming))
    except DataError as error:
        if data.dataset or word not in data.named:
            raise
        raise type(error)(f"{NO_DATASET}; {error.message}", error.hint) from None
    if most := read.rows or data.max_samples:
        parts["train"] = [First(parts["train"], most)]
    return Located(read.name, read.weight, parts)


def _check_weights(located: Sequence[Located]) -> None:
    """Shares need one of each; where a weight is above 1, weights are times, and one that is not given is once."""
    weights = [one.weight for one in located]
    if len(located) == 1 and (weights[0] or 1) < 1:
        raise DataError(
            f"--dataset {located[0].word}:{weights[0]:g}: a share of a mix, and this is the only data set",
            f"leave it out, or take the first rows: {located[0].word}#500",
        )
    given = [weight for weight in weights if weight is not None]
    if None in weights and given and max(given) <= 1:
        bare, other = located[weights.index(None)], next(one for one in located if one.weight is not None)
        raise DataError(
            f"--dataset {bare.word} has no weight, and {other.word} has {other.weight:g}, its share of the mix",
            f"give {bare.word} a share, too, for example {bare.word}:{max(0.1, 1 - sum(given)):g}",
        )


def _without(one: Located, part: str) -> Located:
    """Without its own rows of a part that another --*_dataset brings."""
    return replace(one, parts={name: sources for name, sources in one.parts.items() if name != part})


def _as_part(one: Located, part: str) -> Located:
    if one.weight is not None:
        raise DataError(
            f"--{part}_dataset {one.word}:{one.weight:g}: a weight says how training rows are mixed", "leave it out"
        )
    return replace(one, parts={part: one.parts.get(part) or one.parts["train"]})


def _parts(name: str, chat: bool, streaming: bool | str) -> Mapping[str, Sequence[Source]]:
    path = Path(name).expanduser()
    if name == "sample" and not path.exists():
        return {"train": [Dialogues(chat)]}
    if path.is_dir():
        return _directory(str(path), [str(file) for file in sorted(path.iterdir()) if file.is_file()])
    if path.is_file():
        return {"train": [_file(str(path))]}
    if "://" in name:
        return _uri(name)
    hub_id, _, query = name.partition("?")
    if any(sign in name for sign in "*?[") and (kind_of(name) or not _names_hub_data(hub_id)):
        found = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not found:
            raise DataError(f"--dataset {name}: no file matches", WAYS_OUT)
        return {"train": [_file(file) for file in found]}
    if hub_id in PRESETS:
        preset = PRESETS[hub_id]
        return _of_hub(name, preset.hub_id, {**preset.settings, **_settings(name, query)}, streaming, preset.row)
    if kind_of(name) is None and HUB_ID.fullmatch(hub_id) and not name.startswith((".", "/", "~")):
        return _of_hub(name, hub_id, _settings(name, query), streaming)
    raise DataError(f"--dataset {name}: no such file or directory", WAYS_OUT)


def _names_hub_data(word: str) -> bool:
    return word in PRESETS or bool(HUB_ID.fullmatch(word))


def _file(name: str) -> File:
    kind = kind_of(name)
    if kind is None:
        raise DataError(f"--dataset {name}: the ending says no format that can be read", WAYS_OUT)
    return File(name, kind)


def _directory(directory: str, names: Sequence[str]) -> Mapping[str, Sequence[Source]]:
    """Of a directory with these files, local or at a URI. Files are told apart by name: train*, validation*
    (valid, val, dev, eval) and test*; if none is called train*, all files that are neither of the others are trained
    on."""
    if hub.was_saved([_last(name) for name in names]):
        return _by_split(directory, hub.load_saved(directory), "give the directory of one of them")
    files = [name for name in names if kind_of(name)]
    parts: dict[str, Sequence[Source]] = {
        part: [_file(file) for file in files if _is_called(_last(file), (part, *_OTHER_NAMES[part]))] for part in PARTS
    }
    named = {source.name for sources in parts.values() for source in sources}
    if not parts["train"]:
        parts["train"] = [_file(file) for file in files if file not in named]
    if not parts["train"]:
        raise DataError(f"--dataset {directory}: this directory has no rows to train on (train.jsonl)", WAYS_OUT)
    return {part: sources for part, sources in parts.items() if sources}


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _is_called(name: str, words: Iterable[str]) -> bool:
    return any(re.match(rf"{word}(?![a-z])", name.lower()) for word in words)


def _uri(name: str) -> Mapping[str, Sequence[Source]]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(name)
        is_directory = filesystem.isdir(path)
        found = sorted(filesystem.ls(path, detail=False) if is_directory else filesystem.glob(path))
        names = [filesystem.unstrip_protocol(item) for item in found]
    except (ImportError, OSError, ValueError) as error:
        raise DataError(f"--dataset {name}: cannot be reached ({' '.join(str(error).split())[:200]})") from None
    if is_directory:
        return _directory(name, names)
    if not names:
        raise DataError(f"--dataset {name}: nothing to read at this URI", WAYS_OUT)
    return {"train": [_file(item) for item in names]}


def _settings(name: str, query: str) -> dict[str, str]:
    settings = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    wrong = [key for key, value in settings.items() if key not in _HUB_SETTINGS or not value]
    if wrong or (query and not settings):
        raise DataError(
            f"--dataset {name}: {wrong[0] if wrong else query!r} is not understood",
            "a hub id takes ?config=NAME&split=NAME&revision=NAME, for example openai/gsm8k?config=main",
        )
    return settings


def _of_hub(
    name: str,
    hub_id: str,
    settings: Mapping[str, str],
    streaming: bool | str,
    row: Callable[[Any], Any] | None = None,
) -> Mapping[str, Sequence[Source]]:
    try:
        loaded = hub.load(name, hub_id, settings, streaming)
    except ImportError as error:
        raise DataError(f"--dataset {name} needs the package {error.name}, which is not installed", WAYS_OUT) from None
    except DataError as error:
        raise type(error)(error.message, WAYS_OUT) from None
    return _by_split(name, loaded, "choose one with ?split=NAME", row)


def _by_split(
    name: str, loaded: hub.Loaded, way_out: str, row: Callable[[Any], Any] | None = None
) -> Mapping[str, Sequence[Source]]:
    """Every split that has one of the parts' names; one that was asked for alone (?split=) is trained on."""
    if "" in loaded.splits:
        return {"train": [loaded.split("", name, row)]}
    parts: dict[str, Sequence[Source]] = {}
    for part in PARTS:
        found = next((split for split in (part, *_OTHER_NAMES[part]) if split in loaded.splits), None)
        if found:
            parts[part] = [loaded.split(found, f"{name} {found}", row)]
    if "train" not in parts:
        raise DataError(f"--dataset {name}: no split is called train; there are {', '.join(loaded.splits)}", way_out)
    return parts

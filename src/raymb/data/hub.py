"""Data sets that the datasets library reads: of the hub, downloaded or as a stream, and directories of save_to_disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb.data.sources import BATCH, Batch
from raymb.errors import DataError, DataOutOfReach

_SECONDS = 5.0  # datasets alone retries for long
_COPIES = 2  # downloaded files, and their rows as Arrow files


@dataclass(frozen=True)
class Split:
    """One split of a data set that the datasets library reads.

    Args:
        dataset: a Dataset, or an IterableDataset where it is streamed.
        state: equal for equal rows.
        columns: a preset's way to read its rows.
    """

    name: str
    dataset: Any
    state: str
    columns: Callable[[Any], Any] | None = None

    @property
    def size(self) -> int:
        """In rows."""
        if hasattr(self.dataset, "__len__"):
            return len(self.dataset)
        known = self.dataset.info.splits or {}
        return getattr(known.get(str(self.dataset.split)), "num_examples", None) or 1

    def fingerprint(self) -> str:
        return f"{self.name}@{self.state}"

    def batches(self) -> Iterator[Batch]:
        first = 1
        for table in self._tables():
            rows: Iterable[Any] = table.to_pylist()
            try:
                rows = [self.columns(row) for row in rows] if self.columns else list(rows)
            except (KeyError, IndexError, TypeError):
                raise DataError(
                    f"--dataset {self.name}: its columns are no longer those that raymb knows; "
                    f"found {', '.join(table.column_names)}",
                    "name it by its hub id (owner/name), with --prompt_template and --completion_template",
                ) from None
            yield Batch(f"{self.name} row", range(first, first + len(rows)), rows, len(rows), True)
            first += len(rows)

    def _tables(self) -> Iterator[Any]:
        try:
            yield from self.dataset.with_format("arrow").iter(batch_size=BATCH)
        except Exception as error:  # a stream meets whatever the network and the files' readers raise
            raise DataError(f"--dataset {self.name}: reading its rows failed ({_in_one_line(error)[:200]})") from None


@dataclass(frozen=True)
class Loaded:
    """A data set before its splits are told apart.

    Args:
        splits: by name; one that was asked for alone has the name "".
        state: of all of them, where each has none of its own.
    """

    splits: Mapping[str, Any]
    state: str

    def split(self, name: str, shown: str, columns: Callable[[Any], Any] | None = None) -> Split:
        """
        Args:
            shown: what messages call it.
        """
        dataset = self.splits[name]
        return Split(shown, dataset, f"{self.state}:{getattr(dataset, '_fingerprint', 'stream')}", columns)


def load(word: str, hub_id: str, settings: Mapping[str, str], streaming: bool | str) -> Loaded:
    """From the hub, or from the local cache where the hub does not answer.

    Args:
        word: what messages call it.
        settings: config, split, revision.
        streaming: "auto" streams what the disk has no room for.

    Raises:
        DataError: it is in neither; DataOutOfReach where the hub did not answer.
    """
    import datasets
    import datasets.config

    info, reason, answered = _asked(hub_id, settings.get("revision"))
    if info is None:
        datasets.config.HF_HUB_OFFLINE = True
    stream = _outgrows_the_disk(info) if streaming == "auto" else streaming
    try:
        loaded = datasets.load_dataset(
            hub_id,
            settings.get("config"),
            split=settings.get("split"),
            revision=settings.get("revision"),
            streaming=bool(stream),
        )
    except Exception as error:
        kind = DataError if answered else DataOutOfReach
        raise kind(
            f"--dataset {word}: reading it from the hub failed ({(reason or _in_one_line(error))[:200]})"
        ) from None
    revision = info.sha if info is not None else "cached"
    return Loaded(_by_name(loaded), f"{revision}:{settings.get('config', '')}")


def _asked(hub_id: str, revision: str | None) -> tuple[Any, str, bool]:
    """(what the hub says of a data set, None if it says nothing; why; whether it answered)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        wanted = ["sha", "mainSize"]
        return HfApi().dataset_info(hub_id, revision=revision, timeout=_SECONDS, expand=wanted), "", True  # type: ignore[arg-type]
    except Exception as error:
        return None, _in_one_line(error), isinstance(error, HfHubHTTPError) and error.response.status_code < 500


def _outgrows_the_disk(info: Any) -> bool:
    """By the size of the whole data set: of one configuration nobody says it."""
    import datasets.config

    size = getattr(info, "main_size", None) or 0
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    place = next(path for path in (cache, *cache.parents) if path.exists())
    return _COPIES * size > shutil.disk_usage(place).free


def was_saved(names: Sequence[str]) -> bool:
    """Whether a directory with these files was written by save_to_disk."""
    return "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= set(names)


def load_saved(directory: str) -> Loaded:
    """A directory of save_to_disk, local or at a URI.

    Raises:
        DataError: it cannot be read.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(directory)
    except Exception as error:
        raise DataError(
            f"--dataset {directory}: save_to_disk wrote this directory, and it cannot be read "
            f"({_in_one_line(error)[:200]})"
        ) from None
    return Loaded(_by_name(loaded), "saved")


def _by_name(loaded: Any) -> dict[str, Any]:
    return {str(name): split for name, split in loaded.items()} if isinstance(loaded, dict) else {"": loaded}


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

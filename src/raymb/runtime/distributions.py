"""Which distribution an installed package is of, looked up when it is asked for.

importlib.metadata.packages_distributions() looks at every file of all distributions, 0.6 s where 260 are installed.
transformers 5.12 calls it whenever it is imported, to look up a few packages.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError

_of_all = importlib.metadata.packages_distributions


def look_up_one_by_one() -> None:
    """For importers of transformers, before they import it."""
    importlib.metadata.packages_distributions = Distributions  # type: ignore[assignment]


class Distributions(Mapping[str, list[str]]):
    """By name of the package: the distribution that is named like it, or those that list it."""

    def __getitem__(self, package: str) -> list[str]:
        try:
            return [importlib.metadata.distribution(package).name]
        except PackageNotFoundError:
            found = [one.name for one in importlib.metadata.distributions() if _lists(one, package)]
        if not found:
            raise KeyError(package)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_of_all())

    def __len__(self) -> int:
        return len(_of_all())


def _lists(distribution: Distribution, package: str) -> bool:
    if names := distribution.read_text("top_level.txt"):
        return package in names.split()
    files = "\n" + (distribution.read_text("RECORD") or "")
    return f"\n{package}/" in files or f"\n{package}." in files

"""Every package that src/raymb imports is one that raymb's own metadata asks for."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
STAND_INS = ROOT / "src/raymb/cpu/packages"
OPTIONAL = {
    "bert-score": "score",
    "lm-eval": "benchmarks",
    "mlflow-skinny": "mlflow",
    "rouge-score": "score",
    "wandb": "wandb",
}
"""Distribution to the extra that has it; every other one is a dependency of raymb."""
LEFT_TO_THE_USER = {"IPython", "vllm"}
"""A notebook's kernel has IPython. vLLM is for GPUs alone; raymb.export.serving names the one for the pinned torch."""


def imported(file: Path) -> Iterator[str]:
    """The first word of every absolute import in a file, also of those inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def third_party() -> dict[str, list[str]]:
    """Module to the files that import it."""
    own = {"raymb", *(path.stem for path in STAND_INS.iterdir() if path.suffix != ".dist-info")}
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "src/raymb").rglob("*.py")):
        for name in set(imported(file)) - own - sys.stdlib_module_names:
            found.setdefault(name, []).append(str(file.relative_to(ROOT)))
    return found


def declared() -> dict[str, set[str]]:
    """Distributions by extra; those of raymb itself under ""."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: {canonicalize_name(Requirement(text).name) for text in texts} for name, texts in groups.items()}


IMPORTED = third_party()
packages_distributions = functools.cache(importlib.metadata.packages_distributions)  # reads all that is installed


@pytest.mark.parametrize("module", sorted(IMPORTED.keys() - LEFT_TO_THE_USER))
def test_an_imported_module_is_declared(module: str) -> None:
    having = packages_distributions().get(module)
    assert having, f"{module} is not installed, and imported by {IMPORTED[module]}"
    names = set(map(canonicalize_name, having))
    extras = {OPTIONAL.get(name, "") for name in names}
    have = declared()
    assert any(names & have[extra] for extra in extras), (
        f"{IMPORTED[module]} import {module}, which none of {sorted(names)} in pyproject.toml brings"
    )


def test_what_is_optional_is_no_dependency() -> None:
    have = declared()
    for name, extra in OPTIONAL.items():
        assert name in have[extra] and name not in have[""]

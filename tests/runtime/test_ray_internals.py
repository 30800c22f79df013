"""Ray's private names: all of them in one file, and all of them in the installed Ray."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raymb.runtime import ray_internals
from raymb.runtime.ray_internals import MEMBERS, NAMES, Name

SOURCES = Path(__file__).parents[2] / "src" / "raymb"
PRIVATE = re.compile(r"ray\.(?:.*\.)?(?:_\w+|core\.generated|experimental\.internal_kv|autoscaler|dashboard)(?:\.|$)")


def private_imports(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if PRIVATE.match(name)]


def test_only_one_file_imports_private_names_of_ray() -> None:
    files = {str(file.relative_to(SOURCES)): private_imports(file) for file in sorted(SOURCES.rglob("*.py"))}
    assert {name for name, found in files.items() if found} == {"runtime/ray_internals.py"}


def test_what_counts_as_private() -> None:
    for name in (
        "ray._private.services",
        "ray._raylet.GcsClient",
        "ray.train.v2._internal.util.X",
        "ray.core.generated.a",
    ):
        assert PRIVATE.match(name), name
    for name in ("ray.train.Checkpoint", "ray.util.placement_group", "raymb._x", "ray.experimental"):
        assert not PRIVATE.match(name), name


def test_each_name_is_listed_once_and_known_to_type_checkers() -> None:
    names = [one.name for one in NAMES]
    assert sorted(names) == sorted(set(names)) == sorted(ray_internals.__all__)
    listed = {f"{one.module}.{one.name}" for one in NAMES}
    assert set(private_imports(SOURCES / "runtime" / "ray_internals.py")) == listed


@pytest.mark.parametrize("one", [*NAMES, *MEMBERS], ids=lambda one: one.name)
def test_installed_ray_has_it(one: Name) -> None:
    value = getattr(importlib.import_module(one.module), one.name)
    assert one.use and one.gone
    for member in one.members:
        # What an instance gets in its __init__ is in the class's text alone.
        assert hasattr(value, member) or re.search(rf"\b{member}\b", inspect.getsource(value)), member


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ImportError, match="no_such_name"):
        from raymb.runtime.ray_internals import no_such_name  # noqa: F401


def test_name_of_the_core_imports_no_ray_train() -> None:
    script = (
        "import sys, raymb.runtime.ray_internals as names; assert 'ray' not in sys.modules;"
        "names.start_api_server; assert 'ray.train' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(SOURCES.parent)}, check=True)


def test_replaced_name_is_seen_by_ray() -> None:
    from ray._private import services

    original = ray_internals.start_api_server
    ray_internals.replace("start_api_server", None)
    try:
        assert services.start_api_server is None and ray_internals.start_api_server is None
    finally:
        ray_internals.replace("start_api_server", original)

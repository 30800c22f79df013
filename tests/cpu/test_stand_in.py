"""Packages that are not there: named, subclassed and asked about, never made."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator

import pytest

from raymb.cpu import stand_in

ABSENT = "raymb_test_absent"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    finders, modules = list(sys.meta_path), set(sys.modules)
    yield
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_every_submodule_and_every_name_is_there() -> None:
    stand_in.provide(ABSENT)
    module = importlib.import_module(f"{ABSENT}.deep.deeper")
    assert module.Anything.__module__ == f"{ABSENT}.deep.deeper"
    assert module.Anything is module.Anything
    assert importlib.import_module(ABSENT).__version__ == "0.0.0"
    assert importlib.util.find_spec(f"{ABSENT}.other") is not None


def test_other_packages_are_left_alone() -> None:
    stand_in.provide(ABSENT)
    assert importlib.util.find_spec(f"{ABSENT}_too") is None


def test_a_name_can_be_annotated_with_subclassed_and_tested_for() -> None:
    stand_in.provide(ABSENT)
    module = importlib.import_module(ABSENT)
    assert (module.Name | None) is not None
    assert not isinstance(3, module.Name)
    assert not isinstance(3, module.ops.Sequential)
    assert isinstance(type("Mine", (module.Name,), {}), type)


def test_making_one_says_which_package_is_absent() -> None:
    stand_in.provide(ABSENT)
    module = importlib.import_module(f"{ABSENT}.sub")
    with pytest.raises(RuntimeError, match=f"{ABSENT}.sub.function belongs to a package left out"):
        module.function(1, two=2)


def test_dunder_names_are_not_invented() -> None:
    stand_in.provide(ABSENT)
    module = importlib.import_module(ABSENT)
    assert not hasattr(module, "__wrapped__") and not hasattr(module.Name, "__torch_function__")


def test_hide_and_show() -> None:
    name = "this"  # in the standard library, and prints on import
    sys.modules.pop(name, None)
    stand_in.hide(name)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    assert importlib.util.find_spec(name) is None
    stand_in.show(name)
    assert importlib.util.find_spec(name) is not None


def test_hide_and_show_leave_an_imported_package_alone() -> None:
    stand_in.hide("json")
    assert importlib.import_module("json").dumps(1) == "1"
    stand_in.show("json")
    assert "json" in sys.modules

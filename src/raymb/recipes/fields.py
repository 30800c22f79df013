"""Which fields a ConfigContainer has, read from the installed sources without importing them, so that a mistyped
override is refused in a second, before a worker starts."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from raymb.errors import SpecError
from raymb.model.families import FAMILIES

_CONTAINER = ("megatron.bridge.training.config", "ConfigContainer")
_OF_FAMILIES = {"model": [family.vision.provider for family in FAMILIES if family.vision]}
"""Classes that a section may have and its annotation does not name."""


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuse paths that the ConfigContainer does not have.

    Raises:
        SpecError: every wrong path, with the nearest right one.
    """
    problems = [problem for path in overrides if (problem := problem_of(path))]
    if problems:
        raise SpecError("\n".join(problems))


def problem_of(path: str) -> str:
    """What is wrong with a path; "" for nothing."""
    section, _, name = path.partition(".")
    sections = class_fields(*_CONTAINER)
    if not sections:  # the sources are not here; the workers will tell
        return ""
    if section not in sections:
        return f"override {path}: the ConfigContainer has no section {section!r}{_nearest(section, sections)}"
    if not name:
        return f"override {path}: section.field is expected, not a whole section"
    names: dict[str, Any] = {}
    for module, class_name in (*_classes_of(_CONTAINER[0], sections[section]), *_OF_FAMILIES.get(section, ())):
        names |= class_fields(module, class_name)
    first = name.partition(".")[0]
    if names and first not in names:
        return f"override {path}: {section} has no field {first!r}{_nearest(first, names, section + '.')}"
    return ""


def _nearest(word: str, known: Mapping[str, Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


@cache
def class_fields(module: str, class_name: str) -> dict[str, ast.expr]:
    """Field names and annotations of a dataclass and its bases, as far as their sources can be found."""
    tree = _parse(module)
    if tree is None:
        return {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            fields: dict[str, ast.expr] = {}
            for base in node.bases:
                for base_module, base_name in _classes_of(module, base):
                    fields |= class_fields(base_module, base_name)
            own = (item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name))
            return fields | {item.target.id: item.annotation for item in own}  # type: ignore[union-attr]
    source = _imported(module).get(class_name)
    return class_fields(*source) if source else {}


def _classes_of(module: str, expression: ast.expr) -> list[tuple[str, str]]:
    """The (module, class) pairs that an annotation or a base names."""
    names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
    return [_imported(module).get(name, (module, name)) for name in names]


@cache
def _imported(module: str) -> dict[str, tuple[str, str]]:
    """Names that a module takes from others, wherever in it the import stands."""
    tree = _parse(module)
    if tree is None:
        return {}
    return {
        alias.asname or alias.name: (_absolute(module, node), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parents = module.split(".") if _is_package(module) else module.split(".")[:-1]
    parents = parents[: len(parents) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


@cache
def _parse(module: str) -> ast.Module | None:
    file = _file(module)
    return ast.parse(file.read_text(encoding="utf-8")) if file else None


def _is_package(module: str) -> bool:
    file = _file(module)
    return file is not None and file.name == "__init__.py"


@cache
def _file(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = PathFinder.find_spec(top)
    for root in (spec.submodule_search_locations or []) if spec else []:
        base = Path(root, *rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None

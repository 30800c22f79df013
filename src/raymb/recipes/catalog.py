"""What `megatron.bridge.recipes` holds, read from the installed sources without importing them.

A recipe is a public function `..._config` of a family's module; older names are imports of one under another name.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from raymb.errors import SpecError
from raymb.model.architectures import bridge_folder

_PACKAGE = ("megatron", "bridge", "recipes")
_HELPERS = frozenset({"utils", "common", "run_plugins"})
"""Modules that hold what recipes are made of."""
LAYOUT = {
    "tensor_model_parallel_size": "TP",
    "pipeline_model_parallel_size": "PP",
    "virtual_pipeline_model_parallel_size": "VPP",
    "context_parallel_size": "CP",
    "expert_model_parallel_size": "EP",
}
"""Fields of a recipe's model, in short."""
_MODES = {"pretrain": "pretrain", "sft": "sft", "peft": "lora"}


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        name: the function's.
        module: dotted, where it is defined.
        family: folder below megatron.bridge.recipes.
        mode: sft, lora or pretrain; "" where the name says none.
        gpus: how many the name says; None where it says none.
        gpu: what kind the name says, such as h100; "" where it says none.
        sizes: field of LAYOUT to size, as far as the source says it in numbers.
        older_names: under which Bridge has it, too.
    """

    name: str
    module: str
    family: str
    mode: str
    gpus: int | None
    gpu: str
    sizes: dict[str, int] = field(default_factory=dict)
    older_names: tuple[str, ...] = ()

    @property
    def layout(self) -> str:
        """`TP4 PP2`, or `-` for none of them more than 1."""
        return " ".join(f"{LAYOUT[name]}{size}" for name, size in self.sizes.items() if size > 1) or "-"


def name_parts(name: str) -> tuple[str, int | None, str]:
    """(mode, GPUs, kind of GPU) of a recipe's name, as Bridge 0.6.2 makes names (recipes/utils/naming.py)."""
    words = name.split("_")
    mode = next((_MODES[word] for word in words if word in _MODES), "")
    match = re.search(r"_(\d+)gpu_([a-z]+\d+)(_|$)", name)
    return (mode, int(match[1]), match[2]) if match else (mode, None, "")


@cache
def catalog() -> dict[str, Recipe]:
    """Every recipe by its function's name, in the order of family and file.

    Raises:
        SpecError: Megatron-Bridge is not installed.
    """
    found: dict[str, Recipe] = {}
    older: dict[str, list[str]] = {}
    for module, tree in _modules():
        family = module.split(".")[len(_PACKAGE)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and _is_recipe(node.name):
                found[node.name] = Recipe(node.name, module, family, *name_parts(node.name), _sizes(module, node.name))
            for original, name in _other_names(node):
                older.setdefault(original, []).append(name)
    return {
        name: Recipe(**{**vars(recipe), "older_names": tuple(dict.fromkeys(older.get(name, ())))})
        for name, recipe in sorted(found.items(), key=lambda item: item[1].family)
    }


def find(name: str) -> Recipe:
    """A recipe by its name or an older one.

    Raises:
        SpecError: there is none; with the nearest names.
    """
    recipes = catalog()
    named = {word: recipe for recipe in recipes.values() for word in (recipe.name, *recipe.older_names)}
    if name in named:
        return named[name]
    near = difflib.get_close_matches(name, named, n=3)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    raise SpecError(f"--recipe {name}: Megatron-Bridge has no recipe of this name{guess}", "raymb recipes list")


def _other_names(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """(name, other name) of `import name as other` and `other = name`."""
    pairs: list[tuple[str, str | None]] = []
    if isinstance(node, ast.ImportFrom):
        pairs = [(alias.name, alias.asname) for alias in node.names]
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
        pairs = [(node.value.id, target.id) for target in node.targets if isinstance(target, ast.Name)]
    return ((name, other) for name, other in pairs if other and other != name and _is_recipe(other))


def _is_recipe(name: str) -> bool:
    return name.endswith("_config") and not name.startswith("_")


def _root() -> Path:
    root = bridge_folder("recipes")
    if root is None:
        raise SpecError(
            "recipes are those of Megatron-Bridge, which is not installed here", "scripts/setup installs it"
        )
    return root


@cache
def _modules() -> tuple[tuple[str, ast.Module], ...]:
    """Every module of a family: dotted name and source."""
    return tuple(_read_modules())


def _read_modules() -> Iterator[tuple[str, ast.Module]]:
    root = _root()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[0] in _HELPERS or parts == ("__init__",):
            continue
        yield ".".join((*_PACKAGE, *parts)), ast.parse(file.read_text(encoding="utf-8"))


@cache
def _functions() -> dict[str, dict[str, ast.FunctionDef]]:
    """Module to its functions."""
    return {
        module: {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for module, tree in _modules()
    }


@cache
def _imported(module: str) -> dict[str, tuple[str, str]]:
    """Names that a module takes from other families' modules."""
    tree = dict(_modules())[module]
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    }


@cache
def _sizes(module: str, function: str) -> dict[str, int]:
    """Sizes that a function sets in numbers, or that a recipe which it begins with does."""
    sizes: dict[str, int] = {}
    node = _functions()[module][function]
    parameters = _defaults(node)
    for statement in ast.walk(node):
        if isinstance(statement, ast.Call):
            sizes |= _sizes_of_call(module, function, statement)
    for statement in ast.walk(node):
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                value = _number(statement.value, parameters)
                if isinstance(target, ast.Attribute) and target.attr in LAYOUT and value is not None:
                    sizes[target.attr] = value
    return {name: sizes[name] for name in LAYOUT if name in sizes}


def _sizes_of_call(module: str, function: str, call: ast.Call) -> dict[str, int]:
    if not isinstance(call.func, ast.Name):
        return {}
    source, name = _imported(module).get(call.func.id, (module, call.func.id))
    known = name in _functions().get(source, {}) and (source, name) != (module, function)
    # Helpers of recipes leave `model` out of the names.
    given = {(word.arg or "").replace("_parallel_size", "_model_parallel_size"): word.value for word in call.keywords}
    given |= {word.arg or "": word.value for word in call.keywords}
    numbers = {name: _number(value, {}) for name, value in given.items() if name in LAYOUT}
    found = {name: size for name, size in numbers.items() if size is not None}
    return (_sizes(source, name) if known else {}) | found


def _defaults(node: ast.FunctionDef) -> dict[str, int]:
    """Parameters whose default is a number."""
    names = [argument.arg for argument in node.args.args]
    defaults = dict(zip(reversed(names), reversed(node.args.defaults), strict=False))
    pairs = {**defaults, **dict(zip((a.arg for a in node.args.kwonlyargs), node.args.kw_defaults, strict=True))}
    return {name: value for name, default in pairs.items() if (value := _number(default, {})) is not None}


def _number(node: ast.expr | None, names: dict[str, int]) -> int | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
        return node.value
    return names.get(node.id) if isinstance(node, ast.Name) else None

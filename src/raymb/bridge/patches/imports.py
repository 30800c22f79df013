"""Import only the part of Bridge that a fine-tuning run uses, without changing Bridge.

Importing megatron.bridge 0.6.2 as it stands costs 24 CPU seconds a worker: its package files import every model
family, and those and the training modules import diffusers, modelopt, wandb, ... Two remedies, both at the import
system and both falling back to the full import where they do not fit:

- LAZY packages: the `from X import name` lines of their __init__.py are done when `name` is first asked for.
- UNUSED packages are hidden where they are optional, and STAND_INS where an import does not ask: no raymb run
  distils or quantizes (modelopt), streams energon data, or reads a hub's dataset on a worker (datasets).

A model family registers itself when its module is imported, so `load_family` imports the ones that mention the
model's architecture.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from raymb.bridge.patches.patch import Patch
from raymb.cpu import stand_in
from raymb.runtime.distributions import look_up_one_by_one

LAZY = frozenset({"megatron.bridge", "megatron.bridge.models", "megatron.bridge.data.builders", "megatron.training"})
LAZY_BELOW = "megatron.bridge.recipes"
"""All of its packages: one recipe does not import the other families'."""
STAND_INS = ("modelopt", "megatron.energon", "diffusers", "datasets")
UNUSED = frozenset({"wandb", "comet_ml", "mlflow", "multistorageclient", "scipy", "sklearn"})


def install() -> None:
    """Install the remedies. Idempotent; call before the first import of megatron."""
    if not any(isinstance(finder, _LeanFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeanFinder())
        stand_in.hide(*UNUSED)
        stand_in.provide(*STAND_INS)
        _leave_out_modelopt()
        look_up_one_by_one()


def load_family(architecture: str) -> None:
    """Import the Bridge modules that mention an architecture, so that AutoBridge knows it.

    Args:
        architecture: `architectures[0]` of config.json, for example "Qwen2ForCausalLM".
    """
    # First: it is part of a circle of imports that the families of images enter elsewhere.
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")
    models = importlib.import_module("megatron.bridge.models")
    folder = Path(models.__path__[0])
    files = [file for file in sorted(folder.rglob("*_bridge.py")) if _mentions(file, architecture)]
    for file in files:
        importlib.import_module(".".join(("megatron.bridge.models", *file.relative_to(folder).with_suffix("").parts)))
    if not files:  # a name that Bridge derives or registers elsewhere: let it register everything
        import_eagerly("megatron.bridge.models")
        import_eagerly("megatron.bridge")


def import_eagerly(package: str) -> None:
    """Do what a lazy package's __init__.py would have done."""
    lazy_names = getattr(importlib.import_module(package), "_lazy_names", {})
    for module, _ in lazy_names.values():
        importlib.import_module(module, package)


def _mentions(file: Path, architecture: str) -> bool:
    text = file.read_text(encoding="utf-8")
    return f'source="{architecture}"' in text or f"source={architecture}," in text


class _LeanFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        below = name == LAZY_BELOW or name.startswith(f"{LAZY_BELOW}.")
        if name not in LAZY and not below:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.origin and Path(spec.origin).name == "__init__.py":
            spec.loader = _LazyPackageLoader(Path(spec.origin))
        return spec


class _LazyPackageLoader(Loader):
    """Runs an __init__.py without its imports; they happen on first use of the imported name."""

    def __init__(self, init_file: Path):
        self.init_file = init_file

    def exec_module(self, module: ModuleType) -> None:
        tree = ast.parse(self.init_file.read_text(encoding="utf-8"), str(self.init_file))
        names: dict[str, tuple[str, str]] = {}
        kept = []
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
                source = "." * statement.level + (statement.module or "")
                names |= {alias.asname or alias.name: (source, alias.name) for alias in statement.names}
            elif not isinstance(statement, ast.Import):
                kept.append(statement)
        module._lazy_names = names  # type: ignore[attr-defined]
        module.__getattr__ = lambda name: _import_name(module, name)  # type: ignore[method-assign]
        tree.body = kept
        for used in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & names.keys():
            _import_name(module, used)
        exec(compile(tree, str(self.init_file), "exec"), module.__dict__)


def _import_name(module: ModuleType, name: str) -> Any:
    lazy_names = module._lazy_names  # type: ignore[attr-defined]
    if name not in lazy_names:
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    source, original = lazy_names[name]
    imported = importlib.import_module(source, module.__name__)
    try:
        value = getattr(imported, original)
    except AttributeError:  # `from package import submodule`
        value = importlib.import_module(f"{imported.__name__}.{original}")
    setattr(module, name, value)
    return value


def _leave_out_modelopt() -> None:
    """The modelopt functions that Bridge calls on any model; on one that is neither distilled nor quantized each of
    them does nothing and returns None."""
    for module, functions in {
        "modelopt.torch.distill.plugins.megatron": ["get_tensor_shapes_adjust_fn_for_distillation"],
        "modelopt.torch.opt.plugins": [
            "save_modelopt_state",
            "save_sharded_modelopt_state",
            "restore_modelopt_state",
            "restore_sharded_modelopt_state",
        ],
        "modelopt.torch.quantization.utils": ["is_quantized"],
    }.items():
        stand_in_module = importlib.import_module(module)
        for function in functions:
            setattr(stand_in_module, function, lambda *args, **kwargs: None)


def _init_file(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin) if spec is not None and spec.origin else Path()


def _packages_import_everything() -> bool:
    """Each of the lazy packages imports something of Megatron in its __init__.py, outside of functions."""
    texts = [_init_file(package).read_text(encoding="utf-8") for package in (*sorted(LAZY), LAZY_BELOW)]
    return all(re.search(r"^from (megatron|\.)", text, re.M) for text in texts)


def _imported(names: Iterable[str], indent: str) -> bool:
    """Whether each of the packages is imported in some file of Bridge or Megatron-Core, on a line that begins so."""
    home = _init_file("megatron.bridge").parents[1]
    files = [file for part in ("bridge", "core") for file in (home / part).rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return all(re.search(rf"^{indent}(import|from) {re.escape(name)}\b", text, re.M) for name in names)


def _needs_unused_packages() -> bool:
    """Their imports stand at the beginning of a line: no condition, no function, no `try`."""
    return _imported(STAND_INS, "")


def _takes_optional_packages() -> bool:
    """transformers looks for sklearn, which imports scipy."""
    file = _init_file("transformers").parent / "generation" / "candidate_generator.py"
    of_transformers = re.search(r"^if is_sklearn_available\(\):", file.read_text(encoding="utf-8"), re.M)
    return bool(of_transformers) and _imported(UNUSED - {"scipy", "sklearn"}, r"\s+")


PATCHES = (
    Patch(
        "packages that import what is asked for",
        "megatron-bridge",
        "0.6.2",
        "megatron.bridge.models",
        "its package files import every model family: 24 CPU seconds a worker, with what the two patches below save",
        _packages_import_everything,
        install,
    ),
    Patch(
        "stand-ins for what no run uses",
        "megatron-bridge",
        "0.6.2",
        "megatron.bridge.training.checkpointing",
        "it and others import modelopt, energon, diffusers and datasets without asking whether they are wanted",
        _needs_unused_packages,
        install,
    ),
    Patch(
        "optional packages that no worker uses",
        "megatron-core",
        "0.19.2",
        "megatron.core.timers",
        "it, Bridge and transformers import wandb, mlflow, sklearn and others wherever they are installed",
        _takes_optional_packages,
        install,
    ),
)

"""Which models the installed Megatron-Bridge loads, read from its sources without importing them.

A model's bridge is registered by `@MegatronModelBridge.register_bridge(source=...)`, or by
`register_bridge_implementation(source=...)` under a second name: a text, a module's constant, or an imported class.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path

from raymb.errors import ModelError
from raymb.model.families import FAMILIES, family_of
from raymb.model.families.record import Family
from raymb.model.shape import UNNAMED, ModelShape

_REGISTER = ("register_bridge", "register_bridge_implementation")


def bridge_folder(*parts: str) -> Path | None:
    """A folder below `megatron.bridge`; None where it is not installed."""
    top = PathFinder.find_spec("megatron")
    places = (top.submodule_search_locations or []) if top else []
    folders = (Path(place, "bridge", *parts) for place in places)
    return next((folder for folder in folders if folder.is_dir()), None)


@cache
def registered() -> frozenset[str]:
    """Architectures (`architectures[0]` of config.json) that Bridge loads; empty where it is not installed."""
    root = bridge_folder("models")
    return frozenset(name for file in sorted(root.rglob("*.py")) for name in _sources(file)) if root else frozenset()


def of_text(architecture: str) -> bool:
    """Whether a registered model is a language model, without images or sound."""
    return architecture.endswith("ForCausalLM")


def check_architecture(shape: ModelShape, hf_model_path: str) -> None:
    """Refuse a model that Bridge does not load, or not as it is. Without Bridge's sources the workers tell.

    Raises:
        ModelError: with the nearest ones.
    """
    if why := family_of(shape.architecture).not_trained:
        raise ModelError(
            f"--hf_model_path {hf_model_path}: {shape.architecture} is not trained: {why}",
            "give another model to --hf_model_path; all that can be trained: raymb models",
        )
    names = registered()
    if not names or shape.architecture in names:
        return
    if shape.architecture == UNNAMED:
        raise ModelError(
            f"--hf_model_path {hf_model_path}: config.json names no architecture, by which Megatron-Bridge finds what "
            f"loads a model",
            'add "architectures": ["NAME"] to config.json, as the model\'s authors have it; names: raymb models',
        )
    like = [one for one in FAMILIES if one.proven and one.vision is None and one.experts == bool(shape.num_experts)]
    tried = [name for one in like for name in one.architectures]
    kind = "with experts" if shape.num_experts else "without experts"
    nearest = difflib.get_close_matches(shape.architecture, sorted(filter(of_text, names)), n=1, cutoff=0)
    bridge = f"Megatron-Bridge {version('megatron-bridge')}"
    raise ModelError(
        f"--hf_model_path {hf_model_path}: {bridge} has no {shape.architecture}; the nearest name that it has is "
        f"{nearest[0]}",
        f"give a model that it has to --hf_model_path: models {kind} that were tried are {', '.join(tried)}; "
        f"all: raymb models",
    )


def support(architecture: str) -> dict[str, str]:
    """What a registered model can have, in words: a row of `raymb models`."""
    family = family_of(architecture)
    if not of_text(architecture) and family.vision is None:
        return {"kind": "images or sound", "layouts": "", "packing": "", "lora": "", "proven": "refused"}
    kind = "images" if family.vision else "text"
    if family.not_trained:
        return {"kind": kind, "layouts": "", "packing": "", "lora": "", "proven": "refused"}
    if not family.proven:
        return {"kind": kind, "layouts": "", "packing": "", "lora": "", "proven": "not tried"}
    sizes = {
        "TP": "tensor_parallel_size",
        "PP": "pipeline_parallel_size",
        "CP": "context_parallel_size",
        "EP": "expert_parallel_size",
        "ETP": "expert_tensor_parallel_size",
    }
    having = [
        name for name, flag in sizes.items() if flag not in family.must_be_one and (family.experts or "E" not in name)
    ]
    return {
        "kind": kind,
        "layouts": " ".join(having),
        "packing": "no" if family.no_packing or family.vision else "yes",
        "lora": _under_adapters(family),
        "proven": family.proven,
    }


def _under_adapters(family: Family) -> str:
    if family.vision:
        return "language part"
    if family.experts and not family.peft_loads_experts:
        return "attention"
    return "all but states" if family.kernels else "all"


def _sources(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if not any(name in text for name in _REGISTER):
        return
    tree = ast.parse(text)
    names = _names(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        source = next((word.value for word in call.keywords if word.arg == "source"), None)
        if function not in _REGISTER or source is None:
            continue
        if isinstance(source, ast.Constant) and isinstance(source.value, str):
            yield source.value
        elif isinstance(source, ast.Name) and source.id in names:
            yield names[source.id]


def _names(tree: ast.Module) -> dict[str, str]:
    """What a module's names stand for: an imported class its own name, a constant its text."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif (
            isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        ):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found

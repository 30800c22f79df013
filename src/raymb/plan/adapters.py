"""Which of a model's matrices get a low-rank adapter: from Hugging Face's or Megatron's names to both.

Megatron-Core 0.19 keeps queries, keys and values in one matrix (linear_qkv), gate and up projection in another
(linear_fc1). An adapter lies on a part of such a matrix, as Hugging Face has it (`split`), or on the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raymb.model.shape import ModelShape
from raymb.spec.training import Peft


@dataclass(frozen=True)
class Targets:
    """
    Args:
        split: Megatron-Bridge's names for parts of matrices, each with an adapter of its own.
        whole: names of Megatron's modules with one adapter each.
        hugging_face: names of the projections that they change, as Hugging Face has them.
    """

    split: list[str]
    whole: list[str]
    hugging_face: list[str]


@dataclass(frozen=True)
class _Matrix:
    """A matrix of Megatron's layers.

    Args:
        module: its name.
        parts: Hugging Face's name to Bridge's name for the part of it; the same names where it has only one part.
    """

    module: str
    parts: dict[str, str]


_QKV = _Matrix("linear_qkv", {"q_proj": "linear_q", "k_proj": "linear_k", "v_proj": "linear_v"})
_OUT = _Matrix("linear_proj", {"o_proj": "linear_proj"})
_LATENT = [
    _Matrix("linear_q_proj", {"q_proj": "linear_q_proj"}),
    _Matrix("linear_q_down_proj", {"q_a_proj": "linear_q_down_proj"}),
    _Matrix("linear_q_up_proj", {"q_b_proj": "linear_q_up_proj"}),
    _Matrix("linear_kv_down_proj", {"kv_a_proj_with_mqa": "linear_kv_down_proj"}),
    _Matrix("linear_kv_up_proj", {"kv_b_proj": "linear_kv_up_proj"}),
]
_GATE_UP = _Matrix("linear_fc1", {"gate_proj": "linear_fc1_gate", "up_proj": "linear_fc1_up"})
_UP = _Matrix("linear_fc1", {"up_proj": "linear_fc1"})
_DOWN = _Matrix("linear_fc2", {"down_proj": "linear_fc2"})
_ROUTER = _Matrix("router", {"gate": "router"})
"""Chooses a token's experts; not among all-linear, as for PEFT."""
_WITHOUT_GATE = {"nemotron"}
"""Model types whose feed-forward layer is up, activation, down."""
_EXPERTS_FOR_PEFT = {"olmoe", "qwen3_moe"}
"""Mixtures whose experts' adapters PEFT loads as they were trained (docs/adapters.md)."""
ALL = "all-linear"


def targets_of(peft: Peft, shape: ModelShape) -> Targets:
    """The adapters that --lora_target_modules asks for; call only if nothing is wrong with it."""
    matrices, asked = _matrices(shape), peft.lora_target_modules
    split: list[str] = []
    whole: list[str] = []
    names: list[str] = []
    for matrix in matrices:
        parts = _parts(matrix, asked)
        one_adapter = matrix.module in asked or len(matrix.parts) == 1 or peft.peft == "dora"
        if parts and one_adapter:
            whole.append(matrix.module)
        elif parts:
            split += [matrix.parts[part] for part in parts]
        names += parts
    return Targets(split, whole, names)


def problems_with(peft: Peft, shape: ModelShape) -> list[str]:
    """A sentence for everything that the adapters cannot be in any layout: the values, the rule, the flag to change."""
    if peft.peft == "none":
        return []
    return [*_unknown(peft, shape), *_fused(peft, shape), *_experts(peft, shape)]


def _matrices(shape: ModelShape) -> list[_Matrix]:
    router = [_ROUTER] if shape.num_experts else []
    return [*_attention(shape), _UP if shape.model_type in _WITHOUT_GATE else _GATE_UP, _DOWN, *router]


def _attention(shape: ModelShape) -> list[_Matrix]:
    return [*_latent(shape), _OUT] if shape.attention == "mla" else [_QKV, _OUT]


def _latent(shape: ModelShape) -> list[_Matrix]:
    """Multi-head latent attention: queries in one matrix, or compressed and expanded."""
    queries = ("linear_q_down_proj", "linear_q_up_proj") if shape.query_rank else ("linear_q_proj",)
    return [matrix for matrix in _LATENT if matrix.module in queries or not matrix.module.startswith("linear_q_")]


def _names(matrices: list[_Matrix]) -> list[str]:
    """Hugging Face's."""
    return [name for matrix in matrices for name in matrix.parts]


def _parts(matrix: _Matrix, asked: list[str]) -> list[str]:
    """Hugging Face's names of those parts of a matrix that are asked for, by whichever name."""
    everything = (ALL in asked and matrix is not _ROUTER) or matrix.module in asked
    return [part for part, name in matrix.parts.items() if everything or part in asked or name in asked]


def _unknown(peft: Peft, shape: ModelShape) -> Iterator[str]:
    matrices, asked = _matrices(shape), peft.lora_target_modules
    ours = _names(matrices)
    megatron = [name for matrix in matrices for name in (matrix.module, *matrix.parts.values())]
    wrong = [name for name in asked if name not in (*ours, *megatron, ALL)]
    if wrong or not asked:
        yield (
            f"--lora_target_modules {','.join(wrong)}: {shape.architecture} has {', '.join(ours)} (Megatron's names: "
            f"{', '.join(dict.fromkeys(megatron))}), or {ALL} for all of them"
        )


def _fused(peft: Peft, shape: ModelShape) -> Iterator[str]:
    asked = peft.lora_target_modules
    for matrix in _matrices(shape):
        parts, everything = _parts(matrix, asked), list(matrix.parts)
        named = [name for name in asked if name in matrix.parts or name in matrix.parts.values()]
        if len(everything) == 1:
            continue
        if matrix.module in asked and named:
            yield (
                f"--lora_target_modules {matrix.module} and {','.join(named)}: {matrix.module} is one adapter over "
                f"{', '.join(everything)} together; name the whole matrix or its parts"
            )
        if peft.peft == "dora" and parts and parts != everything:
            yield (
                f"--lora_target_modules {','.join(parts)} with --peft dora: Megatron keeps {', '.join(everything)} in "
                f"one matrix ({matrix.module}), and its DoRA takes the whole of it; name all of "
                f"{','.join(everything)}, or none, or use --peft lora"
            )
        if shape.num_experts and matrix is _GATE_UP and parts and parts != everything:
            yield (
                f"--lora_target_modules {','.join(parts)}: the experts of {shape.architecture} keep "
                f"{', '.join(everything)} in one matrix with one adapter; name both or none"
            )


def _experts(peft: Peft, shape: ModelShape) -> Iterator[str]:
    asked = peft.lora_target_modules
    forward = [*_parts(_GATE_UP, asked), *_parts(_DOWN, asked)]
    if shape.num_experts and forward and shape.model_type not in _EXPERTS_FOR_PEFT:
        yield (
            f"--lora_target_modules {','.join(asked)}: PEFT 0.21 does not load adapters of the experts of "
            f"{shape.architecture}; set it to {','.join(_names(_attention(shape)))}, or some of them"
        )
    elif shape.num_experts and _parts(_GATE_UP, asked) and not _parts(_DOWN, asked):
        yield (
            f"--lora_target_modules {','.join(asked)}: PEFT loads adapters of an expert's gate_proj and up_proj only "
            f"together with down_proj; add it, or leave the two out"
        )
    if peft.peft == "dora" and shape.num_experts:
        yield (
            f"--peft dora: Bridge 0.6.2 has no DoRA for the experts of {shape.architecture} (peft/dora.py); "
            f"use --peft lora"
        )

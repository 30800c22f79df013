"""Which of a model's matrices get a low-rank adapter: from Hugging Face's or Megatron's names to both.

Megatron-Core 0.19 keeps queries, keys and values in one matrix (linear_qkv), gate and up projection in another
(linear_fc1). An adapter lies on a part of such a matrix, as Hugging Face has it (`split`), or on the whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raymb.model.families import family_of_type
from raymb.model.shape import ModelShape
from raymb.spec.training import Peft


@dataclass(frozen=True)
class Targets:
    """
    Args:
        split: Megatron-Bridge's names for parts of matrices, each with an adapter of its own.
        whole: names of Megatron's modules with one adapter each.
        hugging_face: names of the projections that they change, as Hugging Face has them.
        saved: of EMBEDDING and OUTPUT those that are trained in full beside the adapters.
    """

    split: list[str]
    whole: list[str]
    hugging_face: list[str]
    saved: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Matrix:
    """A matrix of Megatron's layers.

    Args:
        module: its name.
        parts: Hugging Face's name to Bridge's name for the part of it; the same names where it has only one part.
    """

    module: str
    parts: dict[str, str]


_QKV = Matrix("linear_qkv", {"q_proj": "linear_q", "k_proj": "linear_k", "v_proj": "linear_v"})
_OUT = Matrix("linear_proj", {"o_proj": "linear_proj"})
_LATENT = [
    Matrix("linear_q_proj", {"q_proj": "linear_q_proj"}),
    Matrix("linear_q_down_proj", {"q_a_proj": "linear_q_down_proj"}),
    Matrix("linear_q_up_proj", {"q_b_proj": "linear_q_up_proj"}),
    Matrix("linear_kv_down_proj", {"kv_a_proj_with_mqa": "linear_kv_down_proj"}),
    Matrix("linear_kv_up_proj", {"kv_b_proj": "linear_kv_up_proj"}),
]
GATE_UP = Matrix("linear_fc1", {"gate_proj": "linear_fc1_gate", "up_proj": "linear_fc1_up"})
_UP = Matrix("linear_fc1", {"up_proj": "linear_fc1"})
DOWN = Matrix("linear_fc2", {"down_proj": "linear_fc2"})
_ROUTER = Matrix("router", {"gate": "router"})
"""Chooses a token's experts; not among all-linear, as for PEFT."""
ALL = "all-linear"
EMBEDDING, OUTPUT = "embed_tokens", "lm_head"
"""What PEFT's modules_to_save may name."""


def targets_of(peft: Peft, shape: ModelShape) -> Targets:
    """The adapters that --lora_target_modules asks for; call only if nothing is wrong with it."""
    matrices, asked = matrices_of(shape), peft.lora_target_modules
    split: list[str] = []
    whole: list[str] = []
    names: list[str] = []
    for matrix in matrices:
        parts = parts_of(matrix, asked)
        one_adapter = matrix.module in asked or len(matrix.parts) == 1 or peft.peft == "dora"
        if parts and one_adapter:
            whole.append(matrix.module)
        elif parts:
            split += [matrix.parts[part] for part in parts]
        names += parts
    return Targets(split, whole, names, [name for name in saveable(shape) if name in peft.modules_to_save])


def saveable(shape: ModelShape) -> list[str]:
    """What may be trained in full beside adapters; an output layer that is the embedding goes by its name."""
    return [EMBEDDING] if shape.tie_word_embeddings else [EMBEDDING, OUTPUT]


def matrices_of(shape: ModelShape) -> list[Matrix]:
    first = GATE_UP if family_of_type(shape.model_type).gated else _UP
    return [*attention_of(shape), first, DOWN, *([_ROUTER] if shape.num_experts else [])]


def attention_of(shape: ModelShape) -> list[Matrix]:
    return [*_latent(shape), _OUT] if shape.attention == "mla" else [_QKV, _OUT]


def _latent(shape: ModelShape) -> list[Matrix]:
    """Multi-head latent attention: queries in one matrix, or compressed and expanded."""
    queries = ("linear_q_down_proj", "linear_q_up_proj") if shape.query_rank else ("linear_q_proj",)
    return [matrix for matrix in _LATENT if matrix.module in queries or not matrix.module.startswith("linear_q_")]


def names_of(matrices: list[Matrix]) -> list[str]:
    """Hugging Face's."""
    return [name for matrix in matrices for name in matrix.parts]


def parts_of(matrix: Matrix, asked: list[str]) -> list[str]:
    """Hugging Face's names of those parts of a matrix that are asked for, by whichever name."""
    everything = (ALL in asked and matrix is not _ROUTER) or matrix.module in asked
    return [part for part, name in matrix.parts.items() if everything or part in asked or name in asked]

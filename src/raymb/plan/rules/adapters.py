"""Adapters share tensor parallel workers with what they are on, and lie where Megatron and PEFT can have them."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.families import family_of_type
from raymb.model.shape import ModelShape
from raymb.plan.adapters import ALL, DOWN, GATE_UP, OUTPUT, attention_of, matrices_of, names_of, parts_of, saveable
from raymb.plan.rules.run import Run
from raymb.plan.sizes import DetailedLayout
from raymb.spec.training import Peft

_NOT_WITH_TENSOR_PARALLEL = ("gate", "q_a_proj", "kv_a_proj_with_mqa")
"""What every tensor parallel worker has whole: the router, and the compressing projections of latent attention."""


def sizes(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    if layout.lora_rank is None:
        return
    if shape.num_experts and layout.expert_tensor_parallel_size > 1:
        yield (
            f"--expert_tensor_parallel_size {layout.expert_tensor_parallel_size} must be 1 with --peft: Bridge 0.6.2 "
            "does not add up "
            f"the parts of an expert's adapter (peft/utils.py); set it to 1"
        )
    wrong = [name for name in layout.adapter_targets if name in _NOT_WITH_TENSOR_PARALLEL]
    if wrong and layout.tensor_parallel_size > 1:
        yield (
            f"--tensor_parallel_size {layout.tensor_parallel_size} must be 1 with adapters on {', '.join(wrong)}, "
            "which Bridge 0.6.2 "
            f"trains otherwise than PEFT then; leave them out of --lora_target_modules, or set it to 1"
        )
    if layout.lora_rank % layout.tensor_parallel_size:
        yield (
            f"--lora_rank {layout.lora_rank} must be a multiple of --tensor_parallel_size "
            f"{layout.tensor_parallel_size}: "
            f"tensor parallel workers share an adapter's rank"
        )


def targets(run: Run) -> Iterator[str]:
    """What the adapters cannot be in any layout."""
    peft, shape = run.spec.peft, run.shape
    if peft.peft == "none":
        return
    yield from _unknown(peft, shape)
    yield from _fused(peft, shape)
    yield from _experts(peft, shape)
    yield from _saved(run)


def _saved(run: Run) -> Iterator[str]:
    asked, names = run.spec.peft.modules_to_save, saveable(run.shape)
    wrong = [name for name in asked if name not in names]
    if asked and run.shape.tower:
        yield (
            f"--modules_to_save {','.join(asked)} is for models of text, and {run.shape.architecture} has a vision "
            f"part; leave it out"
        )
    elif wrong:
        tied = f" ({OUTPUT} is tied to it, and trained with it)" if OUTPUT in wrong and OUTPUT not in names else ""
        yield (
            f"--modules_to_save {','.join(wrong)}: of {run.shape.architecture} {' and '.join(names)} can be trained "
            f"beside adapters{tied}; name {' or '.join(names)}"
        )
    lacking = [name for name in names if name not in asked]
    if run.spec.model.add_tokens is not None and lacking:
        yield (
            f"--add_tokens makes rows that --peft {run.spec.peft.peft} does not train, and that no adapter has; add "
            f"--modules_to_save {','.join(names)}, or leave one of the two out"
        )


def _unknown(peft: Peft, shape: ModelShape) -> Iterator[str]:
    matrices, asked = matrices_of(shape), peft.lora_target_modules
    ours = names_of(matrices)
    megatron = [name for matrix in matrices for name in (matrix.module, *matrix.parts.values())]
    wrong = [name for name in asked if name not in (*ours, *megatron, ALL)]
    if wrong or not asked:
        yield (
            f"--lora_target_modules {','.join(wrong)}: {shape.architecture} has {', '.join(ours)} (Megatron's names: "
            f"{', '.join(dict.fromkeys(megatron))}), or {ALL} for all of them"
        )


def _fused(peft: Peft, shape: ModelShape) -> Iterator[str]:
    asked = peft.lora_target_modules
    for matrix in matrices_of(shape):
        parts, everything = parts_of(matrix, asked), list(matrix.parts)
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
        if shape.num_experts and matrix is GATE_UP and parts and parts != everything:
            yield (
                f"--lora_target_modules {','.join(parts)}: the experts of {shape.architecture} keep "
                f"{', '.join(everything)} in one matrix with one adapter; name both or none"
            )


def _experts(peft: Peft, shape: ModelShape) -> Iterator[str]:
    asked = peft.lora_target_modules
    forward = [*parts_of(GATE_UP, asked), *parts_of(DOWN, asked)]
    if shape.num_experts and forward and not family_of_type(shape.model_type).peft_loads_experts:
        yield (
            f"--lora_target_modules {','.join(asked)}: PEFT 0.21 does not load adapters of the experts of "
            f"{shape.architecture}; set it to {','.join(names_of(attention_of(shape)))}, or some of them"
        )
    elif shape.num_experts and parts_of(GATE_UP, asked) and not parts_of(DOWN, asked):
        yield (
            f"--lora_target_modules {','.join(asked)}: PEFT loads adapters of an expert's gate_proj and up_proj only "
            f"together with down_proj; add it, or leave the two out"
        )
    if peft.peft == "dora" and shape.num_experts:
        yield (
            f"--peft dora: Bridge 0.6.2 has no DoRA for the experts of {shape.architecture} (peft/dora.py); "
            f"use --peft lora"
        )

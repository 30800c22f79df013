"""What --precision fp8 asks of GPUs and layouts."""

from __future__ import annotations

import pytest
from tests.conftest import QWEN2_4_LAYERS

from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan import make_plan
from raymb.plan.gpus import GPUS, gpu_named
from raymb.spec import load_spec

SHAPE = ModelShape.from_config(QWEN2_4_LAYERS)


def refusal(gpu: str | None = "h100-80gb", backend: str = "cuda", **flags: object) -> str:
    given = {"hf_model_path": "x", "seq_length": 64, "global_batch_size": 8, "micro_batch_size": 1, **flags}
    spec = load_spec({name: str(value) for name, value in given.items()})
    try:
        make_plan(spec, SHAPE, backend=backend, gpu=gpu_named(gpu) if gpu else None)
    except PlanError as error:
        return str(error)
    return ""


def test_trains_in_fp8_where_gpu_and_sizes_allow_it() -> None:
    assert refusal(precision="fp8") == ""
    assert refusal(precision="fp8_blockwise") == ""
    assert refusal(precision="fp8", gpu="l4") == ""
    assert refusal(precision="fp8", gpu=None) == ""


@pytest.mark.parametrize("gpu", [gpu.name for gpu in GPUS if not gpu.fp8])
def test_gpus_before_ada_are_refused(gpu: str) -> None:
    assert f"--precision fp8 is not possible on --gpu {gpu}; set it to bf16" in refusal(precision="fp8", gpu=gpu)


def test_blocks_are_hoppers() -> None:
    assert "--precision fp8_blockwise is not possible on --gpu l40s; set it to fp8 or bf16" in refusal(
        precision="fp8_blockwise", gpu="l40s"
    )


def test_cpu_workers_are_refused() -> None:
    assert "--precision fp8 needs GPUs" in refusal(precision="fp8", backend="cpu")


def test_sizes_must_be_multiples_of_16() -> None:
    said = refusal(precision="fp8", seq_length=72)
    assert "a worker's 72 tokens of a micro batch (--micro_batch_size 1 x --seq_length 72) is none" in said
    assert refusal(precision="bf16", seq_length=72) == ""

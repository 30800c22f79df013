"""Megatron-FSDP: the numbers of plain data parallel, checkpoints that other layouts resume from, and exports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import make_model
from tests.smoke.conftest import curve, read_metrics

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(400)]
FLAGS = {"precision": "bf16", "train_iters": 6, "save_interval": 3}
ROUNDING = 2e-3


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run)]


@pytest.mark.parametrize("strategy", ["optim", "optim_grads", "optim_grads_params"])
def test_it_trains_as_data_parallel_does(strategy: str, finetune: Callable[..., Path]) -> None:
    plain = finetune(**FLAGS, num_workers=2, experiment_name="plain", export_hf=False)
    shared = finetune(**FLAGS, num_workers=2, megatron_fsdp=strategy, experiment_name="shared", export_hf=False)
    assert losses(shared) == pytest.approx(losses(plain), rel=ROUNDING)


def test_a_checkpoint_is_resumed_by_others_and_exported(finetune: Callable[..., Path], tiny_qwen2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    flags = {**FLAGS, "num_workers": 2, "megatron_fsdp": "optim_grads_params"}
    whole = finetune(**flags, experiment_name="whole")
    stopped = finetune("train.exit_interval=3", **flags, experiment_name="same", export_hf=False)
    for name in ("fewer", "tp2"):
        shutil.copytree(stopped, stopped.with_name(name))
    same = finetune(**flags, experiment_name="same")
    assert curve(same) == curve(whole)
    base, *tuned = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny_qwen2, whole / "hf", same / "hf")
    )
    assert all(torch.equal(tuned[0][key], tuned[1][key]) for key in base)
    assert not torch.equal(base["lm_head.weight"], tuned[0]["lm_head.weight"])
    for name, layout in {"fewer": {"num_workers": 1}, "tp2": {"num_workers": 4, "tensor_parallel_size": 2}}.items():
        other = finetune(**{**flags, **layout}, experiment_name=name, export_hf=False)
        assert losses(other) == pytest.approx(losses(whole), rel=ROUNDING)  # sums in another order, in bf16


def test_experts_are_shared_too(finetune: Callable[..., Path], tmp_path: Path) -> None:
    flags = {**FLAGS, "hf_model_path": make_model("Qwen3-MoE", tmp_path / "model"), "num_workers": 2}
    plain = finetune(**flags, expert_parallel_size=2, experiment_name="plain")
    shared = finetune(**flags, expert_parallel_size=2, megatron_fsdp="optim_grads_params", experiment_name="shared")
    assert losses(shared) == pytest.approx(losses(plain), rel=ROUNDING)
    assert (shared / "hf" / "model.safetensors").exists()

"""Layers with states in packed rows, over context parallel workers and under adapters, against a Hugging Face model in
one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.families import MOE_FAMILIES, make_model
from tests.models import write_rows
from tests.smoke.conftest import MAIN_FLAGS, batches_of, read_metrics, train_variant, worst_deviation
from tests.smoke.test_families import overrides_of

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(400)]
TP, CP = "tensor_parallel_size", "context_parallel_size"
PACKED: dict[str, Any] = {"packing": True, "global_batch_size": 3}
ATTENTION = "q_proj,k_proj,v_proj,o_proj"
ALL = "all-linear"


def _worst(out: Path, family: str, layout: dict[str, int], model: dict[str, Any], **flags: Any) -> float:
    """The largest deviation of three steps; adapters are trained from those that the run began with."""
    from tests.smoke import oracle

    directory, rows = make_model(family, out / "model", **model), write_rows(out / "rows", train=240)
    balancing = {"moe_aux_loss_coeff": 0} if family in MOE_FAMILIES else {}
    given = {"hf_model_path": directory, "dataset": rows, "train_iters": 3, **balancing, **layout, **flags}
    steps = train_variant(out, prod(layout.values()), *overrides_of(family), **given)
    adapter = {"adapter": out / "adapter"} if "peft" in flags else {}
    whole = flags.get("peft") == "dora" or flags.get("lora_target_modules") == "linear_qkv"
    rate = flags.get("learning_rate", MAIN_FLAGS["learning_rate"])
    worst = worst_deviation(steps, oracle.train(directory, batches_of(out / "run")[:3], rate, tied=whole, **adapter))
    print(f"\n{family} {layout} {flags}: worst deviation {worst:.1e}")
    return worst


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("Qwen3-Next", {TP: 2}),
        ("Qwen3-Next", {CP: 2}),
        ("Qwen3.5", {TP: 2}),
        ("Nemotron-H", {TP: 2}),
        ("Nemotron-H", {CP: 2}),
    ],
)
def test_no_state_passes_between_packed_samples(family: str, layout: dict[str, int], tmp_path: Path) -> None:
    """The oracle runs every sample by itself."""
    assert _worst(tmp_path, family, layout, {}, **PACKED) <= 1e-5
    assert max(map(len, batches_of(tmp_path / "run"))) > 6


@pytest.mark.parametrize(
    ("family", "layout"),
    [("Qwen3.5", {CP: 2}), ("Falcon-H1", {CP: 2}), ("Nemotron-H", {TP: 2, CP: 2})],
)
def test_context_parallel_workers_share_heads(family: str, layout: dict[str, int], tmp_path: Path) -> None:
    assert _worst(tmp_path, family, layout, {}) <= 1e-5


@pytest.mark.parametrize(
    ("family", "kind", "targets", "model"),
    [
        ("Qwen3-Next", "lora", ATTENTION, {}),
        ("Qwen3.5", "lora", ALL, {}),
        ("Qwen3.5", "lora", "q_proj,v_proj", {"num_key_value_heads": 1}),  # fewer groups than workers
        ("Qwen3.5", "lora", "linear_qkv", {}),
        ("Qwen3.5", "dora", ALL, {}),
        ("Nemotron-H", "lora", ATTENTION, {}),
        ("Falcon-H1", "lora", ALL, {}),
        ("Falcon-H1", "dora", ALL, {}),
    ],
)
def test_adapters_train_as_peft_trains_them(
    family: str, kind: str, targets: str, model: dict[str, Any], tmp_path: Path
) -> None:
    """Those on queries have a gate's rows, too, in the order that Hugging Face has them."""
    flags = {"peft": kind, "lora_rank": 4, "lora_alpha": 8, "lora_target_modules": targets, "learning_rate": 1e-2}
    assert _worst(tmp_path, family, {TP: 2}, model, **flags) <= 1e-5


@pytest.mark.parametrize("family", ["Qwen3.5", "Nemotron-H", "Falcon-H1"])
def test_a_checkpoint_is_exported_in_one_process(family: str, finetune: Callable[..., Path], tmp_path: Path) -> None:
    """Written with TP 2, read with TP 1: the same files as the run's own, which PEFT loads."""
    flags = {"peft": "lora", "lora_rank": 4, "lora_target_modules": ATTENTION, "learning_rate": 1e-2, "merge": True}
    model = make_model(family, tmp_path / "model")
    run = finetune(hf_model_path=model, num_workers=2, tensor_parallel_size=2, train_iters=3, **flags)
    (record,) = read_metrics(run, "export")
    assert record["error"] <= 1e-4 and len(record["directories"]) == 2
    words = [sys.executable, "-m", "raymb", "export", str(run), "--to", str(tmp_path / "out"), "--merge"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in (("out/adapter_model", "adapter/adapter_model"), ("out-merged/model", "hf/model")):
        assert (tmp_path / f"{ours}.safetensors").read_bytes() == (run / f"{theirs}.safetensors").read_bytes()

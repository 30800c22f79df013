"""Every parallel layout computes the numbers of an independent oracle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.conftest import MAIN_FLAGS, read_metrics

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(400)]
TOLERANCE = 1e-5
LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 2, 2)]


@pytest.fixture(scope="module")
def oracle_steps() -> dict[str, list[dict[str, Any]]]:
    return {}


def _oracle(run: Path, model: Path, out: Path) -> list[dict[str, Any]]:
    import torch

    from tests.smoke import oracle

    script = Path(__file__).with_name("dump_batches.py")
    sizes = [str(MAIN_FLAGS[flag]) for flag in ("train_iters", "global_batch_size", "seq_length")]
    subprocess.run([sys.executable, script, run / "data", model, *sizes, out], check=True, capture_output=True)
    return oracle.train(model, torch.load(out), MAIN_FLAGS["learning_rate"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "tp{}-pp{}-dp{}".format(*layout))
def test_layout_agrees_with_hugging_face(
    layout: tuple[int, int, int],
    finetune: Callable[..., Path],
    tiny_qwen2: Path,
    tmp_path: Path,
    oracle_steps: dict[str, list[dict[str, Any]]],
) -> None:
    tensor, pipeline, data = layout
    run = finetune(num_workers=tensor * pipeline * data, tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    if not oracle_steps:
        oracle_steps["steps"] = _oracle(run, tiny_qwen2, tmp_path / "batches.pt")
    metrics = read_metrics(run)
    assert [record["step"] for record in metrics] == list(range(1, 11))
    worst = 0.0
    for ours, theirs in zip(metrics, oracle_steps["steps"], strict=True):
        for name in ("loss", "grad_norm"):
            worst = max(worst, abs(ours[name] - theirs[name]) / abs(theirs[name]))
    print(f"\n{layout}: loss {metrics[0]['loss']:.6f} -> {metrics[-1]['loss']:.6f}, worst deviation {worst:.2e}")
    assert worst <= TOLERANCE

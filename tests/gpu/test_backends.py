"""A run changes between CPU workers and GPU workers: the same checkpoint on both sides. One GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.families import MOE_FAMILIES, make_model
from tests.models import write_rows
from tests.smoke.conftest import read_metrics, words_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
FLAGS: dict[str, Any] = {
    "num_workers": 1,
    "ray_address": "local",
    "seq_length": 64,
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "train_iters": 6,
    "save_interval": 3,
    "eval_interval": 0,
}


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3-MoE", "DeepSeek-V3", "GPT-OSS", "Gemma 3", "Nemotron"])
def test_a_run_changes_sides(family: str, tmp_path: Path) -> None:
    from raymb.cli import main

    rows, model = write_rows(tmp_path / "rows"), make_model(family, tmp_path / "model")
    moe = family in MOE_FAMILIES
    balancing = ["--moe_aux_loss_coeff", "0"] if moe else []

    def train(name: str, backend: str, *more: str) -> Path:
        given = {**FLAGS, "hf_model_path": model, "dataset": rows, "storage_path": tmp_path, "experiment_name": name}
        words = words_of(given)
        assert main(["finetune", *balancing, *more, *words, "--no_export_hf", "--backend", backend]) == 0
        return tmp_path / name

    runs = {}
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        train(f"from-{first}", first, "train.exit_interval=3")
        runs[first] = train(f"from-{first}", second)
    losses = [_losses(run) for run in runs.values()]
    print(f"\n{family}: {losses}")
    # A token at the edge between two experts may go to the other one.
    assert losses[0] == pytest.approx(losses[1], rel=5e-3 if moe else 1e-3)
    for step in (3, 6):
        names = [_keys(run / "checkpoints" / f"iter_{step:07d}") for run in runs.values()]
        assert names[0] == names[1]
        print(f"{len(names[0])} keys, shapes and types are equal at step {step}")


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_side_has_its_own_precision(first: str, second: str, tmp_path: Path) -> None:
    """CPUs' fp32 is resumed in GPUs' bf16, and the other way round, also in the same layout."""
    from raymb.cli import main

    rows, model = write_rows(tmp_path / "rows"), make_model("Qwen2", tmp_path / "model")
    given = {**FLAGS, "precision": "auto", "hf_model_path": model, "dataset": rows, "storage_path": tmp_path}
    words = ["finetune", *words_of(given)]
    for name, backend, *more in (("whole", first), ("both", first, "train.exit_interval=3"), ("both", second)):
        assert main([*words, *more, "--no_export_hf", "--experiment_name", name, "--backend", backend]) == 0
    assert _losses(tmp_path / "both") == pytest.approx(_losses(tmp_path / "whole"), rel=2e-3)


def _losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run)]


def _keys(iteration: Path) -> list[tuple[Any, ...]]:
    """(name, shape, type) of everything in a checkpoint."""
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(iteration).read_metadata().state_dict_metadata
    return sorted(
        (name, tuple(entry.size), str(entry.properties.dtype)) if hasattr(entry, "size") else (name, (), "bytes")
        for name, entry in stored.items()
    )

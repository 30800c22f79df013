"""A run changes between CPU workers and GPU workers: the same checkpoint on both sides. One GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.families import MOE_FAMILIES, make_model
from tests.gpu.runs import train
from tests.models import write_rows
from tests.smoke.conftest import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
FLAGS: dict[str, Any] = {"global_batch_size": 8, "precision": "fp32", "train_iters": 6, "save_interval": 3}


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3-MoE", "DeepSeek-V3", "GPT-OSS", "Gemma 3", "Nemotron"])
def test_a_run_changes_sides(family: str, tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / "rows"), make_model(family, tmp_path / "model")
    moe = family in MOE_FAMILIES
    given = {**FLAGS, "hf_model_path": model, "dataset": rows, **({"moe_aux_loss_coeff": 0} if moe else {})}
    runs = {}
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        train(tmp_path, f"from-{first}", "train.exit_interval=3", **given, backend=first)
        runs[first] = train(tmp_path, f"from-{first}", **given, backend=second)
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
    rows, model = write_rows(tmp_path / "rows"), make_model("Qwen2", tmp_path / "model")
    given = {**FLAGS, "precision": "auto", "hf_model_path": model, "dataset": rows}
    for name, backend, *more in (("whole", first), ("both", first, "train.exit_interval=3"), ("both", second)):
        train(tmp_path, name, *more, **given, backend=backend)
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

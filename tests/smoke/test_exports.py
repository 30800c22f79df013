"""Exports of real runs: during the training, of the best checkpoint, on Ray workers; and what goes wrong with them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymb.export.finishing import FAILED
from tests.families import make_model
from tests.fault_table import Row
from tests.smoke.conftest import MAIN_FLAGS, read_metrics, sharing_rows, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]
TENSORS = "model.safetensors"
LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
LIMITED += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
LIMITED += "from raymb.cli import main; sys.exit(main(sys.argv[1:]))"
"""raymb on a disk that takes no more than 100 kB a file."""


@pytest.fixture(scope="module")
def trained(ray_cluster: None, tiny_qwen2: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that gets worse after its first steps, with exports on the way and of its best checkpoint."""
    from raymb.cli import main

    given = {
        **MAIN_FLAGS,
        "hf_model_path": tiny_qwen2,
        "dataset": rows,
        "experiment_name": "run",
        "storage_path": sharing_rows(tmp_path_factory.mktemp("exports")),
        "num_workers": 2,
        "tensor_parallel_size": 2,
        "train_iters": 6,
        "learning_rate": 0.3,
        "lr_decay_style": "constant",
        "save_interval": 2,
        "save_hf_interval": 4,
        "keep_last": 1,
        "keep_best": 1,
        "eval_interval": 2,
        "max_validation_samples": 16,
        "export_checkpoint": "best",
        "profile_steps": "2:3",
    }
    assert main(["finetune", *words_of(given)]) == 0
    return Path(given["storage_path"], "run")


def _raymb(*words: str, program: tuple[str, ...] = ("-m", "raymb")) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": "src"}
    return subprocess.run([sys.executable, *program, *words], capture_output=True, text=True, env=env, check=False)


def test_exports_on_the_way_and_of_the_best(trained: Path) -> None:
    losses = {record["step"]: record["loss"] for record in read_metrics(trained, "validation")}
    best = min(losses, key=lambda step: losses[step])
    assert best != 6, losses
    exports = {Path(one["directories"][0]).name: one for one in read_metrics(trained, "export")}
    assert {name: one["step"] for name, one in exports.items()} == {"hf-step-4": 4, "hf": best}
    assert all(one["error"] <= 1e-4 and one["problems"] == [] for one in exports.values())
    names = {path.name for path in (trained / "hf").iterdir()}
    assert {TENSORS, "config.json", "tokenizer.json", "generation_config.json", "README.md", "loss.png"} <= names
    card = (trained / "hf" / "README.md").read_text()
    assert f"| step | {best} |" in card and f"{losses[best]:.4f}" in card
    assert (trained / "hf-step-4" / "README.md").exists()
    assert not [path.name for path in trained.iterdir() if path.name.startswith(".hf")]


def test_a_window_of_steps_is_profiled(trained: Path) -> None:
    with gzip.open(trained / "profile" / "steps-2-3.json.gz", "rt") as stream:
        events = json.load(stream)["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) > 10
    assert "Self CPU" in (trained / "profile" / "steps-2-3.txt").read_text()


@pytest.mark.slow
def test_ray_workers_write_the_same(trained: Path, tmp_path: Path) -> None:
    from raymb.cli import main

    words = ["export", str(trained), "--checkpoint", "best"]
    assert main([*words, "--to", str(tmp_path / "by-ray"), "--ray"]) == 0
    assert (tmp_path / "by-ray" / TENSORS).read_bytes() == (trained / "hf" / TENSORS).read_bytes()
    assert not (trained / ".export").exists()


def test_a_full_disk_loses_nothing(trained: Path, fault_table: list[Row]) -> None:
    before = (trained / "hf" / TENSORS).read_bytes()
    done = _raymb("export", str(trained), "--overwrite", program=("-c", LIMITED))
    assert done.returncode == 1
    assert f"error: the export cannot be written to {trained}: " in done.stderr and "make room there" in done.stderr
    assert (trained / "hf" / TENSORS).read_bytes() == before
    assert not [path.name for path in trained.iterdir() if path.name.startswith(".hf")]
    fault_table.append(Row("no room for raymb export --overwrite", "exit 1, the former export stays"))


def test_what_is_not_the_trained_model_is_marked(
    finetune_with_faults: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    fault = {"do": "spoil", "phase": "exporting", "rank": 0}
    run = finetune_with_faults(fault, num_workers=2, pipeline_parallel_size=2, train_iters=2, code=1)
    shown = capfd.readouterr().err
    assert "error: the export is not what it should be" in shown and "it is left in" in shown
    assert not (run / "hf").exists() and not (run / "failures").exists(), "the workers have done their part"
    assert "its logits differ from the trained Megatron model's by" in (run / "hf-failed" / FAILED).read_text()
    done = _raymb("export", str(run))  # the checkpoint is whole
    assert done.returncode == 0 and (run / "hf" / TENSORS).exists(), done.stderr
    fault_table.append(
        Row("an export that is not what was trained", "exit 1, marked as failed; raymb export writes it")
    )


@pytest.mark.slow
def test_a_window_is_verified_beyond_it(
    finetune: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 96 tokens, where the samples and the check's other rows are shorter."""
    settings = {"use_sliding_window": True, "sliding_window": 96, "max_window_layers": 1}
    flags = {"hf_model_path": make_model("Qwen2", tmp_path / "model", **settings), "seq_length": 192}
    flags |= {"num_workers": 2, "tensor_parallel_size": 2, "train_iters": 2}
    (record,) = read_metrics(finetune(**flags), "export")
    assert record["problems"] == [] and record["error"] <= 1e-4
    run = finetune("model.window_size=null", **flags, experiment_name="without", code=1)
    assert "the export is not what it should be" in capfd.readouterr().err
    assert "its logits differ from the trained Megatron model's by" in (run / "hf-failed" / FAILED).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"num_workers": 4, "tensor_parallel_size": 2, "context_parallel_size": 2},
        {"num_workers": 2, "pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2, "export_dtype": "bf16"},
        {"num_workers": 4, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "peft": "dora", "merge": True},
        {"num_workers": 2, "packing": True, "export_dtype": "bf16"},
    ],
    ids=["CP", "virtual stages", "DoRA", "packed"],
)
def test_every_layout_is_verified(flags: dict[str, Any], finetune: Callable[..., Path]) -> None:
    run = finetune(train_iters=2, global_batch_size=4, **flags)
    (record,) = read_metrics(run, "export")
    assert record["problems"] == [] and record["error"] <= record["tolerance"]
    assert record["tolerance"] == 1e-4
    trained, exported = record["losses"]
    assert (trained != exported) == ("export_dtype" in flags)
    assert json.loads((run / "job.json").read_text())["task"] == "train"

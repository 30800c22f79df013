"""Which rows real runs train on and are scored on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smoke import oracle
from tests.smoke.conftest import make_job, read_metrics, samples_of, train_job, train_variant

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]

WATCH = """
import json, os
from raymb.rank import progress

enter = progress.Progress.enter

def watched(self, phase):
    enter(self, phase)
    from raymb.bridge.forward import TokenCounter
    count = TokenCounter.count
    if count.__name__ == "watched_count":
        return
    def watched_count(counter, batch):
        count(counter, batch)
        with open(f"{os.environ['RAYMB_SEEN']}/{os.environ['RANK']}-{os.getpid()}.jsonl", "a") as stream:
            for row in batch["tokens"].tolist():
                stream.write(json.dumps([self.step, row]) + "\\n")
    TokenCounter.count = watched_count

progress.Progress.enter = watched
"""
"""A sitecustomize: each rank writes the (step, input ids) of the rows that it trains on."""


def seen(run: Path, directory: Path) -> dict[int, list[int]]:
    """The numbers of the rows that each step of a run saw, sorted."""
    numbers = {tuple(ids[:-1]): number for number, (ids, _) in enumerate(samples_of(run, "train"))}
    steps: dict[int, list[int]] = {}
    for file in directory.glob("*.jsonl"):
        for step, row in map(json.loads, file.read_text().splitlines()):
            (number,) = [number for ids, number in numbers.items() if tuple(row[: len(ids)]) == ids]
            steps.setdefault(step, []).append(number)
    return {step: sorted(numbers) for step, numbers in sorted(steps.items())}


def test_two_epochs_are_two_passes_also_when_interrupted(
    finetune: Callable[..., Path], tiny_qwen2: Path, tmp_path: Path
) -> None:
    """22 rows in batches of 8: six steps, of which the last is filled with four rows of the third pass. The second run
    stops after three steps of two workers and goes on with four."""
    rows = tmp_path / "rows.jsonl"
    words = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda")
    content = [{"prompt": f"{a} {b}:", "completion": f" {a}"} for a in words for b in "xy"]
    rows.write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    flags = {"dataset": rows, "validation_split": 0, "num_epochs": 2, "train_iters": None, "export_hf": False}
    layout = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}

    def writing_to(directory: Path) -> dict[str, str]:
        directory.mkdir(exist_ok=True)
        return {"PYTHONPATH": f"{tmp_path}{os.pathsep}src", "RAYMB_SEEN": str(directory)}

    def run(workers: int, *overrides: str) -> dict[int, list[int]]:
        env = [f"{name}={value}" for name, value in writing_to(tmp_path / "seen").items()]
        return seen(finetune(*overrides, **flags, **layout, num_workers=workers, env=env), tmp_path / "seen")

    alone = {**flags, **layout, "hf_model_path": tiny_qwen2, "num_workers": 1, "env": writing_to(tmp_path / "whole")}
    job = make_job(tmp_path / "in-peace", **alone)
    train_job(job, 1)
    whole = seen(job.parent, tmp_path / "whole")
    assert list(whole) == [0, 1, 2, 3, 4, 5] and {len(numbers) for numbers in whole.values()} == {8}
    times = Counter(number for numbers in whole.values() for number in numbers)
    assert set(times) == set(range(22)) and sorted(times.values()) == [2] * 18 + [3] * 4
    run(2, "train.exit_interval=3")
    assert run(4) == whole


@pytest.mark.parametrize("packing", [False, True])
def test_losses_are_means_over_all_held_out_rows(packing: bool, tiny_qwen2: Path, rows: Path, tmp_path: Path) -> None:
    """Of a model that does not change, by transformers, a sample at a time: every validation, that before the training
    too, and the test, which is of another size. Neither fills its last batch."""
    flags = {"hf_model_path": tiny_qwen2, "dataset": rows / "train.jsonl", "packing": packing, "seq_length": 96}
    flags |= {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "global_batch_size": 2 if packing else 8}
    flags |= {"learning_rate": 1e-12, "train_iters": 3, "validation_split": 0.1, "test_split": 0.3}
    train_variant(tmp_path, 2, **flags, eval_interval=1, eval_at_start=True)
    run = tmp_path / "run"
    validations = [record["loss"] for record in read_metrics(run, "validation")]
    assert [record["step"] for record in read_metrics(run, "validation")] == [0, 1, 2, 3]
    (test,) = [record["loss"] for record in read_metrics(run, "test")]
    padded = []
    model = oracle._model(tiny_qwen2, None).eval()
    for part, losses in (("validation", validations), ("test", [test])):
        samples, numbers = samples_of(run, part), json.loads((run / "data.json").read_text())["parts"][part]
        padded.append(numbers["packed_rows"] % 2 == 1)  # two workers cannot share them evenly
        expected = float(oracle._loss(model, samples))
        worst = max(abs(loss / expected - 1) for loss in losses)
        print(f"\n{part}, {len(samples)} samples, packing {packing}: {losses[0]:.7f} ({expected:.7f}), {worst:.1e}")
        assert worst < 1e-6
    assert any(padded)

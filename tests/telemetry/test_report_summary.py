"""The top of the report: every number against one that is computed here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.telemetry.runs import MadeRun, eventful_run

from raymb.cli import main
from raymb.telemetry.report import render
from raymb.telemetry.run_record import read_run
from raymb.telemetry.summary import Summary, summary_of, worker_hours


def facts_of(summary: Summary) -> dict[str, tuple[str, str]]:
    return {what: (value, note) for what, value, note in summary.facts}


def validated(tmp_path: Path, model: Path, losses: dict[int, float]) -> Summary:
    """Of a run with these validation losses by step."""
    run = MadeRun(tmp_path / str(len(list(tmp_path.iterdir()))), model)
    run.start()
    for step, loss in losses.items():
        run.metrics.write({"kind": "validation", "step": step, "time": run.now, "loss": loss})
    run.end()
    return summary_of(read_run(run.path))


def test_a_run_in_two_sentences_and_its_facts(tmp_path: Path, shape_only_model_dir: Path) -> None:
    run = eventful_run(tmp_path, shape_only_model_dir)
    summary = summary_of(read_run(run.path))
    parameters = json.loads(run.place.plan.read_text())["parameters"]
    assert summary.about == (
        f"Model {shape_only_model_dir.name} ({parameters:,} parameters), all weights trained on data set "
        "rows.jsonl (110 samples): 40 of 40 steps of 8 samples, 3.33 epochs."
    )
    first, last = run.losses[10] + 0.2, run.losses[40] + 0.2
    factor = math.exp(first) / math.exp(last)
    assert summary.result == (
        f"Validation loss fell from {first:.4g} after step 10 (the first that was measured) to {last:.4g} after step "
        f"40, its best and last value. Perplexity fell from {math.exp(first):.4g} to {math.exp(last):.4g}, "
        f"{factor:.2f} times lower."
    )
    trained = sum(80 + step % 40 for step in range(1, 41))
    assert facts_of(summary) == {
        "validation loss": (
            f"{first:.4g} \N{RIGHTWARDS ARROW} {last:.4g}",
            "first after step 10, best and last after step 40",
        ),
        "perplexity, first to best": (f"{factor:.2f} times lower", f"{math.exp(first):.4g} to {math.exp(last):.4g}"),
        "time running": ("1 min 15 s", "start and saving included; median step 1 s"),
        "hardware": ("2 CPU workers", "AMD EPYC on 1 node"),
        "CPU-worker hours": (f"{2 * 75 / 3600:.3g}", "workers x time running"),
        "tokens trained": (f"{trained:,}", f"those that the loss counts; {40 * 512:,} with prompts and padding"),
        "throughput": ("512 tokens/s", "median, prompts and padding counted; 256 a worker"),
    }
    page = render([read_run(run.path)])
    assert page.index(f"{factor:.2f} times lower") < page.index("<svg") < page.index("Failures and resumes")


def test_validation_losses_in_words(tmp_path: Path, shape_only_model_dir: Path) -> None:
    def said(losses: dict[int, float]) -> tuple[str, dict[str, tuple[str, str]]]:
        summary = validated(tmp_path, shape_only_model_dir, losses)
        return summary.result, facts_of(summary)

    assert said({})[0] == "No step has been finished yet."
    assert said({40: math.log(5.0)})[0] == "Validation loss was measured once: 1.609 after step 40 (perplexity 5)."
    before, facts = said({0: math.log(12.0), 20: math.log(3.0), 40: math.log(4.0)})
    assert before == (
        "Validation loss fell from 2.485 before training to 1.099 after step 20, its best value; the last is 1.386 "
        "after step 40. Perplexity fell from 12 to 3, 4.00 times lower."
    )
    assert facts["validation loss"] == (
        "2.485 \N{RIGHTWARDS ARROW} 1.099 \N{RIGHTWARDS ARROW} 1.386",
        "first before training, best after step 20, last after step 40",
    )
    worse, facts = said({10: math.log(2.0), 20: math.log(3.0)})
    assert worse == (
        "Validation loss did not fall below its first value, 0.6931 after step 10; the last is 1.099 after step 20."
    )
    assert facts["perplexity, first to last"] == ("1.50 times higher", "2 to 3")


def test_without_validation_the_training_loss_is_told(tmp_path: Path, shape_only_model_dir: Path) -> None:
    run = MadeRun(tmp_path, shape_only_model_dir)
    run.start()
    run.steps(range(1, 10))
    weights = [0.5 ** ((9 - step) / 3) for step in range(1, 10)]
    last = sum(weight * run.losses[step] for step, weight in enumerate(weights, 1)) / sum(weights)
    summary = summary_of(read_run(run.path))
    assert summary.result == (
        f"No validation loss was measured. Training loss was {run.losses[1]:.4g} in step 1, and {last:.4g} on average "
        "at the end."
    )
    assert "9 of 40 steps" in summary.about and summary.about.endswith("epochs planned.")


def test_gpu_hours_and_cost_of_a_run_that_changes_its_size(
    tmp_path: Path, shape_only_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = MadeRun(tmp_path, shape_only_model_dir, backend="cuda")
    run.start()  # 10 s of 2 workers
    run.steps(range(1, 21))  # 20 s
    run.fail(20)
    run.train_again(20, workers=4)  # 10 s of the 2 that failed
    run.steps(range(21, 31))  # 10 s of 4
    run.event("ended", code=130, state="interrupted")
    run.now += 86400
    run.start(30, workers=8)  # 10 s of 8
    run.steps(range(31, 41))  # 10 s
    run.end()
    seconds = 30 * 2 + 10 * 2 + 10 * 4 + 20 * 8
    record = read_run(run.path)
    assert worker_hours(record) == pytest.approx(seconds / 3600)
    facts = facts_of(summary_of(record, 45.0))
    assert facts["hardware"] == ("2 to 8 x NVIDIA H200", "on 2 nodes")
    assert facts["GPU hours"][0] == f"{seconds / 3600:.3g}"
    assert facts["cost"] == ("3.50", "at 45 a GPU hour") and seconds * 45 / 3600 == 3.5
    assert "cost" not in facts_of(summary_of(record))
    assert main(["report", str(run.path), "--price_per_gpu_hour", "45"]) == 0
    assert "3.50" in (run.path / "report.html").read_text()
    for wrong in ("0", "-1", "nan", "inf"):
        assert main(["report", str(run.path), f"--price_per_gpu_hour={wrong}"]) == 2
        assert "a number above 0 is expected" in capsys.readouterr().err


def test_a_price_of_gpus_is_refused_for_cpus(
    tmp_path: Path, shape_only_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = MadeRun(tmp_path, shape_only_model_dir)
    run.start()
    run.end()
    assert main(["report", str(run.path), "--price_per_gpu_hour", "2"]) == 2
    assert "--price_per_gpu_hour 2: run trained on CPUs" in capsys.readouterr().err
    assert not (run.path / "report.html").exists()


def test_the_base_model_as_evaluate_measured_it(tmp_path: Path, shape_only_model_dir: Path) -> None:
    run = eventful_run(tmp_path, shape_only_model_dir)
    (run.path / "evaluation").mkdir()
    scores = {"base": {"loss": math.log(30.0)}, "tuned": {"loss": math.log(6.0)}}
    result = {"split": "validation", "samples": 37, "scores": scores}
    (run.path / "evaluation" / "validation.json").write_text(json.dumps(result))
    (run.path / "evaluation" / "test.json").write_text(json.dumps({**result, "scores": {"tuned": scores["tuned"]}}))
    (run.path / "evaluation" / "torn.json").write_text('{"scores"')
    facts = facts_of(summary_of(read_run(run.path)))
    assert [what for what in facts if what.startswith("evaluation")] == ["evaluation, validation"]
    assert facts["evaluation, validation"] == (
        "3.401 \N{RIGHTWARDS ARROW} 1.792",
        "base to tuned model, 37 samples: perplexity 5.00 times lower",
    )


def test_a_run_of_an_older_raymb_has_a_summary(tmp_path: Path, shape_only_model_dir: Path) -> None:
    """Without events, processor and numbers of tokens."""
    run = eventful_run(tmp_path, shape_only_model_dir)
    run.place.events.unlink()
    run.place.plan.write_text("{}")
    lines = [json.loads(line) for line in run.place.metrics.read_text().splitlines()]
    old = [{name: value for name, value in one.items() if "tokens" not in name} for one in lines]
    run.place.metrics.write_text("".join(json.dumps(one) + "\n" for one in old))
    facts = facts_of(summary_of(read_run(run.path)))
    assert list(facts) == ["validation loss", "perplexity, first to best", "time running", "hardware"]
    page = render([read_run(run.path)])
    assert 'value="tokens"' not in page and "40 steps" in page

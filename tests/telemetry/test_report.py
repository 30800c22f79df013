"""What `raymb runs` and `raymb report` make of a run directory. tests/telemetry/test_report_page.py opens the page."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.telemetry.runs import BEGAN, EVIL, MadeRun, eventful_run

from raymb.cli import main
from raymb.export.model_card import write_card
from raymb.storage.remote import Remote
from raymb.telemetry import tables
from raymb.telemetry.charts import BUCKETS, Point, Scale, duration, duration_ticks, log_ticks, path, thin, ticks
from raymb.telemetry.curves import Clock, charts
from raymb.telemetry.events import Events, read_lines
from raymb.telemetry.report import render
from raymb.telemetry.run_record import read_run
from raymb.telemetry.smoothing import half_life, moving_average


@pytest.fixture
def run(tmp_path: Path, shape_only_model_dir: Path) -> MadeRun:
    return eventful_run(tmp_path / "runs", shape_only_model_dir)


def listed(capsys: pytest.CaptureFixture[str], storage: object) -> list[dict]:
    capsys.readouterr()
    assert main(["runs", str(storage), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_runs_are_listed_with_what_matters(run: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = listed(capsys, run.path.parent)
    best = min((run.losses[step] + 0.2, step) for step in (10, 20, 30, 40))
    assert line == {
        "name": "run",
        "path": str(run.path),
        "state": "finished",
        "step": 40,
        "train_iters": 40,
        "loss": run.losses[40],
        "best_validation_loss": best[0],
        "best_validation_step": best[1],
        "tokens_per_second_per_worker": 256.0,
        "time": run.now,
    }
    assert main(["runs", str(run.path.parent)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"run +finished +40/40 +2\.392 +2\.592 at 40 +256", text), text


def test_the_state_is_what_the_driver_said_last(
    tmp_path: Path, shape_only_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"done": 0, "failed": 1, "refused": 2, "out-of-time": 75, "ctrl-c": 130}
    for name, code in codes.items():
        run = MadeRun(tmp_path, shape_only_model_dir, name)
        run.start()
        run.end(code)
    running = MadeRun(tmp_path, shape_only_model_dir, "running")  # this process holds its lock
    running.start()
    killed = MadeRun(tmp_path, shape_only_model_dir, "killed")
    killed.start()
    killed.place.lock.unlink()
    old = MadeRun(tmp_path, shape_only_model_dir, "old")
    old.place.lock.unlink()
    (tmp_path / "_prepared").mkdir()
    assert {line["name"]: line["state"] for line in listed(capsys, tmp_path)} == {
        "done": "finished",
        "failed": "failed",
        "refused": "failed",
        "out-of-time": "stopped",
        "ctrl-c": "interrupted",
        "running": "running",
        "killed": "killed",
        "old": "unknown",
    }
    assert main(["report", str(old.path)]) == 0, "a run that has no step yet has a report, too"
    assert "No step has been finished" in (old.path / "report.html").read_text()


def test_no_runs_and_no_storage_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    assert "no such directory" in (text := capsys.readouterr().err) and "is no run directory" in text


def test_a_long_list_reads_only_the_newest_steps(run: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.steps(range(41, 2001))
    recent, whole = read_run(run.path, recent_only=True), read_run(run.path)
    assert (len(recent.of("train")), len(whole.of("train"))) == (50, 2000)
    assert recent.of("train") == whole.of("train")[-50:] and recent.of("validation") == whole.of("validation")
    with open(run.place.metrics, "a") as stream:
        stream.write('{"kind": "train", "step": 2001, "ti')
    assert read_run(run.path, recent_only=True).records == recent.records
    assert read_run(run.path).records == whole.records


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "train", "step": 41, "lo{"kind": "train", "step": 41, "time": 1.0, "loss": 2.0}',
        '{"kind": "train", "step": "41", "time": 1.0, "loss": 2.0}',
        '{"kind": "validation", "step": 41, "time": 1.0, "loss": "low"}',
        '{"kind": "train", "step": 41, "loss": 2.0}',
        "\0\0\0\0",
        "[41]",
        "null",
        "\x1b",
    ],
)
@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl"])
def test_a_line_that_is_no_record_spoils_neither_its_run_nor_the_others(
    run: MadeRun, file: str, line: str, shape_only_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = MadeRun(run.path.parent, shape_only_model_dir, "other")
    other.start()
    other.end()
    before, page = listed(capsys, run.path.parent), _without_its_time(render([read_run(run.path)]))
    whole = (run.path / file).read_text().splitlines(keepends=True)
    (run.path / file).write_text("".join([*whole[:5], line + "\n", *whole[5:]]))
    assert listed(capsys, run.path.parent) == before and len(before) == 2
    assert _without_its_time(render([read_run(run.path)])) == page
    if file == "metrics.jsonl":
        export: dict = {"step": 40, "error": None, "problems": [], "losses": None, "unmeasured": None}
        write_card(run.path, run.path, export, adapter=False)
        assert f"{run.losses[40]:.4f}" in (run.path / "README.md").read_text()


def test_a_torn_event_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    Events(file).add("started")
    with open(file, "a") as stream:
        stream.write('{"event": "tr')
    events = Events(file)
    events.add("started")
    events.add("ended", code=0)
    assert [event["event"] for event in read_lines(file)] == ["started", "started", "ended"]


def test_time_between_drivers_is_left_out(run: MadeRun) -> None:
    clock = Clock(read_run(run.path))
    assert clock.at(BEGAN) == 0 and clock.left_out == 86400
    assert clock.seconds == 10 + 25 + 10 + 10 + 10 + 10  # starts and steps; the last event is the end


def test_what_happened_is_told_in_order(run: MadeRun) -> None:
    record = read_run(run.path)
    assert [(after, what.replace(EVIL, "evil")) for _, after, what in tables.history(record)] == [
        ("0 s", "a driver started"),
        ("10 s", "2 workers train"),
        ("35 s", "failure 1 (rank 1, after step 25): RuntimeError: evil; the workers start again"),
        ("45 s", "2 workers train from step 20"),
        ("55 s", "the driver ended with exit code 130: interrupted"),
        ("55 s", "a driver started"),
        ("1 min 5 s", "2 workers train from step 30"),
        ("1 min 15 s", "the driver ended with exit code 0: finished"),
    ]
    numbers = dict(tables.key_numbers(record))
    assert (numbers["failures"], numbers["steps done again"]) == (1, 5)
    assert numbers["loss not a number at"] == "step 23"


def test_failures_and_resumes_are_on_both_axes(run: MadeRun) -> None:
    record = read_run(run.path)
    trained = [80 * step + step * (step + 1) // 2 for step in (25, 20, 30)]
    for by, at in (("step", [25, 20, 30]), ("tokens", trained), ("seconds", [35, 45, 65])):
        for chart in charts([record], by):
            assert [mark.x for mark in chart.marks] == at
            assert [mark.style for mark in chart.marks] == ["failure", "again", "again"]
    progress = charts([record], "seconds")[-1]
    (line,) = progress.series
    at = line.points.index((35, 25.0))
    assert line.points[at : at + 3] == [(35, 25.0), (35, None), (46, 21.0)]


def test_a_number_that_is_none_is_a_gap_and_marked(run: MadeRun) -> None:
    loss = charts([read_run(run.path)], "step")[0]
    assert loss.holes == pytest.approx([100 * (23 - 1) / 39], abs=100 / BUCKETS)
    train = loss.lines[0]["path"]
    assert train.count("M") == 2 and train.count("L") == 39 - 2
    assert [line["style"] for line in loss.lines[:2]] == ["train run0 raw", "train run0 average"]
    assert loss.lines[1]["path"].count("M") == 2, "the average has the same gap"
    assert "not a number" in render([read_run(run.path)])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_every_spike(data: st.DataObject) -> None:
    values = st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.none())
    points: list[Point] = list(enumerate(data.draw(st.lists(values, min_size=1, max_size=300))))
    buckets = data.draw(st.integers(1, 20))
    scale = Scale(0.0, float(max(1, len(points) - 1)))
    kept = thin(points, scale, buckets)
    assert [x for x, _ in kept] == sorted({x for x, _ in kept}) and len(kept) <= max(2 * buckets, 4 * buckets)
    known = [y for _, y in points if y is not None and not math.isnan(y)]
    left = [y for _, y in kept if y is not None and not math.isnan(y)]
    assert (min(known), max(known)) == (min(left), max(left)) if known else not left
    assert any(y is None for _, y in points) == any(y is None for _, y in kept)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
@settings(max_examples=100, deadline=None)
def test_ticks_lie_in_the_scale(low: float, width: float) -> None:
    scale = Scale(low, low + width)
    if scale.high <= scale.low or width / max(abs(low), 1e-300) < 1e-9:
        return
    found = ticks(scale, 5)
    assert 1 <= len(found) <= 12 and all(-1e-6 <= scale.place(tick) / 1000 <= 1 + 1e-6 for tick in found)


def test_ticks_are_round() -> None:
    assert ticks(Scale(0.0, 10.0), 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(Scale(3.71, 5.68), 5) == [4.0, 4.5, 5.0, 5.5]
    assert log_ticks(Scale(0.8, 40.0, log=True)) == [1, 2, 5, 10, 20]
    assert [label for _, label in duration_ticks(Scale(0.0, 3 * 3600.0))] == ["0 h", "1 h", "2 h", "3 h"]
    assert [duration(seconds) for seconds in (3, 61, 3660, 90000)] == ["3 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=60), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_moving_average_is_that_of_pandas(values: list[float], steps: int) -> None:
    import pandas

    expected = pandas.Series(values).ewm(halflife=steps, adjust=True, ignore_na=True).mean()
    found = [y for _, y in moving_average(enumerate(values), steps)]
    for value, y, other in zip(values, found, expected, strict=True):
        assert math.isnan(y) if math.isnan(value) else y == pytest.approx(other, rel=1e-9, abs=1e-6)


def test_a_curve_is_smoothed_where_that_helps(run: MadeRun) -> None:
    assert [half_life(points) for points in (10, 24, 100, 1000, 10000)] == [3, 3, 5, 25, 116]
    loss, rate, norm, speed, memory = charts([read_run(run.path)], "step")
    assert [len([line for line in one.lines if line["note"]]) for one in (loss, rate, norm, speed, memory)] == [
        2,
        0,
        2,
        2,
        0,
    ]
    assert loss.lines[1]["note"] == "exponential, half-life 3 steps, bias-corrected"
    assert "half-life 3 steps, bias-corrected" in render([read_run(run.path)])


def test_a_short_run_is_not_smoothed(tmp_path: Path, shape_only_model_dir: Path) -> None:
    run = MadeRun(tmp_path, shape_only_model_dir)
    run.start()
    run.steps(range(1, 10))
    page = render([read_run(run.path)])
    assert "half-life" not in page and 'name="raw"' not in page


def test_the_loss_against_tokens(run: MadeRun) -> None:
    loss = charts([read_run(run.path)], "tokens")[0]
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    train = [one for one in records if one["kind"] == "train"]
    sums = {one["step"]: sum(other["trained_tokens"] for other in train[: one["step"]]) for one in train}
    assert [x for x, _ in loss.series[0].points] == list(sums.values()) and sums[40] == 3980
    assert [x for x, _ in loss.series[-1].points] == [sums[step] for step in (10, 20, 30, 40)]
    assert [label for _, label in loss.x_ticks] == ["1,000", "2,000", "3,000"]


def test_a_lone_point_is_drawn() -> None:
    scale = Scale(0.0, 2.0)
    assert path([(0, math.nan), (1, 1.0), (2, None)], scale, scale) == "M500 500h0"
    assert path([(0, 0.0), (1, 1.0), (2, 2.0)], scale, scale) == "M0 1000h0L500 500L1000 0"
    assert path([(0, 0.0), (2, 2.0)], scale, scale, joined=False) == "M0 1000h0M1000 0h0"


def test_a_long_run_has_a_small_page_with_its_spikes(tmp_path: Path, shape_only_model_dir: Path) -> None:
    run = MadeRun(tmp_path, shape_only_model_dir, train_iters="10000")
    run.start()
    run.steps(range(1, 10001), s7777=900.0)
    run.end()
    record = read_run(run.path)
    page = render([record])
    print(f"10,000 steps: {len(page.encode()):,} bytes")
    assert len(page.encode()) < 330_000
    loss = charts([record], "step")[0]
    assert loss.y.log, "else 900 would flatten the curve"
    x, y = loss.x.place(7777), 1000 - loss.y.place(900.0)
    assert f"L{x:.2f}".rstrip("0") + f" {y:.2f}".rstrip("0") in loss.lines[0]["path"]
    assert "compare" not in page and len(render([record, record]).encode()) < 600_000


def test_texts_of_a_run_are_no_code(run: MadeRun) -> None:
    page = render([read_run(run.path)])
    assert EVIL not in page and page.count("&lt;script&gt;window.hacked") >= 3  # prompt, answer, failure
    assert page.count("<script>") == 1 and "<img" not in page


def test_nothing_outside_the_page_is_named(run: MadeRun) -> None:
    page = render([read_run(run.path)])
    assert re.findall(r"""(?:src|href|action)=["'](?!data:)[^"']*""", page) == []
    assert "@import" not in page and "url(" not in page


def test_two_runs_side_by_side(run: MadeRun, shape_only_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = eventful_run(run.path.parent, shape_only_model_dir, "other", learning_rate="3e-4")
    capsys.readouterr()
    assert main(["report", str(run.path), "--compare", str(other.path)]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == run.path / "report-other.html"
    records = [read_run(run.path), read_run(other.path)]
    loss = charts(records, "step")[0]
    assert [line["label"] for line in loss.lines] == [
        "run train",
        "other train",
        "run train average",
        "other train average",
        "run validation",
        "other validation",
    ]
    differing = tables.differing(tables.together(records, tables.settings))
    assert [row for row in differing if row[0] != "--experiment_name"] == [("--learning_rate", ["1e-05", "0.0003"])]
    assert "Settings that differ" in written.read_text()
    twin = eventful_run(run.path.parent / "elsewhere", shape_only_model_dir)
    both = charts([read_run(run.path), read_run(twin.path)], "step")[0]
    assert [line["label"] for line in both.lines][:2] == [f"{run.path} train", f"{twin.path} train"]


def test_settings_that_were_made(run: MadeRun) -> None:
    by_hand = dict(tables.set_by_hand([read_run(run.path)]))
    assert by_hand == {
        "--hf_model_path": [str(run.spec.model.hf_model_path)],
        "--num_workers": ["2"],
        "--train_iters": ["40"],
        "--storage_path": [str(run.path.parent)],
        "--experiment_name": ["run"],
        "--backend": ["cpu"],
    }


def test_a_page_that_cannot_be_written_is_a_mistake_of_the_user(
    run: MadeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run.path), "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "give another --output" in capsys.readouterr().err


def test_runs_at_a_uri(
    run: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/bucket"
    remote = Remote.of(uri)
    assert remote is not None
    remote.upload(run.path, "run")
    remote.upload(run.path, "_prepared")
    monkeypatch.chdir(tmp_path)
    (line,) = listed(capsys, uri)
    assert (line["name"], line["path"], line["state"]) == ("run", f"{uri}/run", "finished")
    assert main(["report", f"{uri}/run"]) == 0
    assert capsys.readouterr().out == "run-report.html\n"
    page = (tmp_path / "run-report.html").read_text()
    assert f"{uri}/run<br>" in page and "A script." in page and "Failure 1" in page
    assert main(["report", f"{uri}/other"]) == 2
    assert f"{uri}/other is no run directory" in capsys.readouterr().err


def test_only_small_imports(run: MadeRun) -> None:
    import subprocess
    import sys

    heavy = ("ray", "torch", "transformers", "megatron", "datasets", "numpy", "wandb", "mlflow")
    code = (
        f"import sys; from raymb.cli import main; main(['report', {str(run.path)!r}]); "
        f"main(['runs', {str(run.path.parent)!r}]); "
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def _without_its_time(page: str) -> str:
    return re.sub(r"written [^<]*? by raymb", "", page)

"""The charts of a report: which numbers of one or two runs are drawn against steps, trained tokens and time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise

from raymb.telemetry.charts import BUCKETS, Chart, Mark, Point, Series, values_of
from raymb.telemetry.run_record import Line, RunRecord, labels
from raymb.telemetry.smoothing import FEWEST, half_life, moving_average

GIB = 2**30
AXES = ("step", "tokens", "seconds")
SMOOTHED = ("loss", "grad_norm", "tokens_per_second_per_worker")


class Clock:
    """Unix time to seconds for which a driver ran: what lies between two drivers' lives is left out."""

    def __init__(self, run: RunRecord):
        times = sorted(one["time"] for one in (*run.records, *run.events) if one.get("time") is not None)
        starts = {event["time"] for event in run.events_of("started")}
        self.origin = times[0] if times else 0.0
        self.gaps = [(before, now) for before, now in pairwise(times) if now in starts]
        self.seconds = self.at(times[-1]) if times else 0.0

    def at(self, time: float) -> float:
        return time - self.origin - sum(max(0.0, min(time, end) - begin) for begin, end in self.gaps)

    @property
    def left_out(self) -> float:
        return sum(end - begin for begin, end in self.gaps)


class TokenCount:
    """Steps to the tokens that were trained up to their ends."""

    def __init__(self, run: RunRecord):
        train = run.of("train")
        self.steps = [one["step"] for one in train]
        self.sums = [0, *accumulate(one.get("trained_tokens", 0) for one in train)]

    def at(self, step: int) -> int:
        return self.sums[bisect_right(self.steps, step)]


def charts(runs: list[RunRecord], by: str) -> list[Chart]:
    """The charts with one of AXES on their x axis, without those that would be empty.

    Args:
        by: step, tokens (those that the loss counts), or seconds.
    """
    clocks, names = [Clock(run) for run in runs], labels(runs) if len(runs) > 1 else [""]
    each = [*zip(runs, clocks, names, strict=True)]
    if by == "tokens" and not any(TokenCount(run).sums[-1] for run in runs):
        return []
    marks = [mark for run, clock, name in each for mark in marks_of(run, clock, by, name)]

    def series(name: str, kind: str = "train", scale: float = 1.0) -> list[Series]:
        found = []
        for index, (run, clock, label) in enumerate(each):
            points = points_of(run.of(kind), name, _place(run, clock, by), scale)
            if by == "seconds":
                points = _interrupted(points, run, clock)
            if points:
                one = Series(f"{label} {kind}".strip(), f"{kind} run{index}", points, dots=kind != "train")
                found.extend(_with_average(one) if kind == "train" and name in SMOOTHED else [one])
        return sorted(found, key=lambda one: not one.note.startswith("each"))  # averages lie over all raw lines

    candidates = [
        Chart("Loss", "nats a token", by, [*series("loss"), *series("loss", "validation"), *series("loss", "test")]),
        Chart("Learning rate", "", by, series("learning_rate"), from_zero=True),
        Chart("Gradient norm", "before clipping", by, series("grad_norm")),
        Chart("Throughput", "tokens/s a worker", by, series("tokens_per_second_per_worker"), from_zero=True),
        Chart("Memory", "GiB, the fullest worker", by, series("memory_bytes", scale=1 / GIB), from_zero=True),
    ]
    if by == "seconds":
        progress = [
            Series(name or "step", f"train run{index}", progress_of(run, clock))
            for index, (run, clock, name) in enumerate(each)
        ]
        candidates.append(Chart("Progress", "step", by, progress, from_zero=True))
    return [replace(one, marks=marks) for one in candidates if not one.empty]


def _with_average(series: Series) -> list[Series]:
    """The values of each step, and their moving average if they are enough for one."""
    count = len(values_of(series.points))
    if count < FEWEST:
        return [series]
    steps = half_life(count)
    average = replace(
        series,
        label=f"{series.label} average",
        style=f"{series.style} average",
        note=f"exponential, half-life {steps} steps, bias-corrected",
        points=[*moving_average(series.points, steps)],
        buckets=BUCKETS // 3,
    )
    return [replace(series, style=f"{series.style} raw", note="each step"), average]


def _place(run: RunRecord, clock: Clock, by: str) -> Callable[[Line], float]:
    if by == "tokens":
        count = TokenCount(run)
        return lambda record: count.at(record["step"])
    return (lambda record: clock.at(record["time"])) if by == "seconds" else lambda record: record["step"]


def points_of(records: list[Line], name: str, place: Callable[[Line], float], scale: float = 1.0) -> list[Point]:
    """(x, value); null in metrics.jsonl is a number that was not finite. None if no record has the field."""
    if not any(record.get(name) is not None for record in records):
        return []
    known = [record for record in records if name in record]
    return [(place(record), math.nan if record[name] is None else record[name] * scale) for record in known]


def _interrupted(points: list[Point], run: RunRecord, clock: Clock) -> list[Point]:
    """A curve over time with a gap wherever nothing was trained."""
    breaks: list[Point] = [(clock.at(event["time"]), None) for event in run.events_of("started", "failure", "ended")]
    return sorted([*points, *breaks], key=lambda point: point[0]) if points else []


def progress_of(run: RunRecord, clock: Clock) -> list[Point]:
    """Steps over time, up to what was reached before a failure; then from the checkpoint on again."""
    steps = [(clock.at(one["time"]), float(one["step"])) for one in (*run.of("train"), *run.events_of("failure"))]
    return _interrupted(sorted(steps), run, clock)


def marks_of(run: RunRecord, clock: Clock, by: str, label: str = "") -> list[Mark]:
    """Failures, and where training began again after a failure or in a new driver; with the run's label, if any."""
    place, found, began = _place(run, clock, by), [], False
    name = f"{label}: " if label else ""
    for event in run.events_of("failure", "training"):
        if event["event"] == "failure":
            text = f"{name}failure {event['number']} after step {event['step']}: {event['what']}"
            found.append(Mark(place(event), "failure", text))
        elif began:
            found.append(Mark(place(event), "again", f"{name}training again from step {event['step']}"))
        began = True
    return found

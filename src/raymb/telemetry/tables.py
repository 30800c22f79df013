"""The tables of a report: what one or two runs were, did and answered, as rows of text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from raymb.spec.sections import SECTIONS
from raymb.telemetry.charts import duration, short
from raymb.telemetry.curves import GIB, Clock
from raymb.telemetry.run_record import Line, RunRecord

Rows = list[tuple[str, list[str]]]
"""A label, and the text of each run."""
MOST_EVENTS, MOST_ANSWERS = 200, 20


def together(runs: list[RunRecord], rows_of: Callable[[RunRecord], Iterator[tuple[str, Any]]]) -> Rows:
    """The rows of each run side by side, in their order; "-" where a run does not have one."""
    tables = [dict(rows_of(run)) for run in runs]
    labels = list(dict.fromkeys(label for table in tables for label in table))
    return [(label, [_text(table.get(label)) for table in tables]) for label in labels]


def key_numbers(run: RunRecord) -> Iterator[tuple[str, Any]]:
    """What the summary does not say."""
    train = run.of("train")
    yield "state", run.state
    yield "steps", f"{max((one['step'] for one in run.records), default=0):,} of {run.plan.get('train_iters', '?')}"
    yield "training loss", f"{short(train[-1]['loss'])} (first {short(train[0]['loss'])})" if train else None
    yield "peak memory", f"{max(one['memory_bytes'] for one in train) / GIB:.2f} GiB" if train else None
    failures = run.events_of("failure")
    yield "failures", len(failures) if run.events else len(run.failures)
    if failures:
        yield "steps done again", sum(_lost(run))
    if skipped := [one["step"] for one in train if one.get("skipped")]:
        yield "steps left out (--bad_loss)", _steps(skipped)
    if bad := [one["step"] for one in train if one["loss"] is None]:
        yield "loss not a number at", _steps(bad)


def _lost(run: RunRecord) -> Iterator[int]:
    """Steps that were done again after each failure."""
    reached: int | None = None
    for event in run.events_of("failure", "training"):
        if event["event"] == "failure":
            reached = max(event["step"], reached or 0)
        elif reached is not None:
            yield max(0, reached - event["step"])
            reached = None


def _steps(steps: list[int]) -> str:
    more = f" and {len(steps) - 10:,} more" if len(steps) > 10 else ""
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps[:10]))}{more}"


_LAYOUT = (
    ("backend", "backend"),
    ("workers", "num_workers"),
    ("tensor parallel", "tensor_parallel_size"),
    ("pipeline parallel", "pipeline_parallel_size"),
    ("virtual pipeline stages", "virtual_pipeline_parallel_size"),
    ("context parallel", "context_parallel_size"),
    ("expert parallel", "expert_parallel_size"),
    ("expert tensor parallel", "expert_tensor_parallel_size"),
    ("data parallel", "data_parallel_size"),
    ("sequence parallel", "sequence_parallel"),
    ("layers a stage", "layers_per_stage"),
    ("micro batch", "micro_batch_size"),
    ("global batch", "global_batch_size"),
    ("micro-batches a step", "micro_batches"),
    ("tokens a row", "seq_length"),
    ("steps", "train_iters"),
    ("epochs", "epochs"),
    ("parameters", "parameters"),
    ("recompute", "recompute"),
    ("elastic sizes", "elastic"),
)


def layout(run: RunRecord) -> Iterator[tuple[str, Any]]:
    yield from ((label, run.plan[key]) for label, key in _LAYOUT if run.plan.get(key) is not None)
    if (memory := run.plan.get("memory")) is not None:
        yield "memory a GPU, estimated", f"{memory['total'] / GIB:.1f} GiB of a {run.plan.get('gpu')}"
    yield from ((f"auto: --{flag}", reason) for flag, reason in run.plan.get("chosen", {}).items())


def settings(run: RunRecord) -> Iterator[tuple[str, Any]]:
    """Every flag, by its name."""
    for section, fields in run.spec.items():
        mark = "" if section == "overrides" else "--"
        yield from ((f"{mark}{name}", value) for name, value in fields.items())


def set_by_hand(runs: list[RunRecord]) -> Rows:
    """Flags that are not at their defaults; of two runs those that differ, too."""
    defaults = {
        f"--{name}": _text(_plain(field.get_default(call_default_factory=True)))
        for section in SECTIONS.values()
        for name, field in section.model_fields.items()
    }
    return [row for row in together(runs, settings) if any(text != defaults.get(row[0]) for text in row[1])]


def differing(rows: Rows) -> Rows:
    return [row for row in rows if len(set(row[1])) > 1]


def data_parts(run: RunRecord) -> list[Line]:
    """Each part of the rows: its numbers, and its lengths as bars in percent of the highest."""
    parts = []
    for part, numbers in run.data.get("parts", {}).items():
        rows = [(name.replace("_", " "), _number(numbers[name])) for name in _PART if numbers.get(name) is not None]
        histogram = numbers.get("length_histogram", {"edges": [], "rows": []})
        most = max(histogram["rows"], default=0) or 1
        edges = pairwise(histogram["edges"])
        bars = [
            (100 * count / most, f"{low:g} to {high:g} tokens: {count:,} rows")
            for (low, high), count in zip(edges, histogram["rows"], strict=False)
        ]
        parts.append({"part": part, "rows": rows, "bars": bars, "edges": histogram["edges"]})
    return parts


_PART = (
    "rows",
    "packed_rows",
    "packing_efficiency",
    "tokens",
    "trained_tokens",
    "shortest",
    "longest",
    "duplicate_rows",
    "truncated_rows",
    "dropped_rows",
)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def history(run: RunRecord) -> list[tuple[str, str, str]]:
    """(when, after which running time, what) of starts, failures and ends, the newest ones if there are many."""
    clock, words = Clock(run), []
    for event in run.events_of("started", "training", "failure", "layout", "ended"):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        words.append((when, duration(clock.at(event["time"])), _said(event)))
    return words[-MOST_EVENTS:]


def _said(event: Line) -> str:
    kind = event["event"]
    if kind == "started":
        return "a driver started"
    if kind == "training":
        return f"{event['workers']} workers train" + (f" from step {event['step']}" if event["step"] else "")
    if kind == "failure":
        end = "the workers start again" if event["restarts"] else "the run gives up"
        rank = "" if event["rank"] is None else f"rank {event['rank']}, "
        return f"failure {event['number']} ({rank}after step {event['step']}): {event['what']}; {end}"
    if kind == "layout":
        return f"{event['failed']} ran out of GPU memory; {event['then']} is tried"
    return f"the driver ended with exit code {event['code']}: {event['state']}"


def answers(run: RunRecord) -> list[Line]:
    """The first questions, with each model's answer by its name."""
    shown = []
    for one in run.answers[:MOST_ANSWERS]:
        asked = one.get("prompt", one.get("messages"))
        said = {name: _text(text) for name, text in one.items() if name not in ("from", "prompt", "messages", "step")}
        shown.append({"from": one["from"], "prompt": _text(asked), "said": said})
    return shown


def _plain(value: Any) -> Any:
    """As JSON would have it."""
    return json.loads(json.dumps(value, default=str)) if value is not ... else None


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value)) or "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""What a run directory tells of its run, read for `raymb runs` and `raymb report`. Imports no framework."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raymb.errors import RunDirError
from raymb.run.directory import read_object
from raymb.storage import lock
from raymb.telemetry.events import read_lines, state_after
from raymb.telemetry.fetched import place_of
from raymb.telemetry.records import Line
from raymb.telemetry.sinks import read_metrics

_RECENT = 50  # train records that say how fast a run is


@dataclass(frozen=True)
class RunRecord:
    """
    Args:
        place: its directory or URI, for people.
        state: of state_of.
        records: metrics.jsonl, in its order.
        events: events.jsonl, in its order.
        failures: the pages of failures/, by their numbers.
        answers: one object a question, from --sample_prompt and `raymb evaluate`.
        evaluations: the numbers of `raymb evaluate`, an object a split.
    """

    name: str
    place: str
    state: str
    spec: Line
    plan: Line
    data: Line
    records: list[Line]
    events: list[Line]
    failures: dict[str, str]
    answers: list[Line]
    evaluations: list[Line]

    def of(self, kind: str) -> list[Line]:
        return [record for record in self.records if record.get("kind") == kind]

    def events_of(self, *names: str) -> list[Line]:
        return [event for event in self.events if event["event"] in names]

    @property
    def best(self) -> Line | None:
        """The validation with the lowest loss."""
        losses = [one for one in self.of("validation") if one.get("loss") is not None]
        return min(losses, key=lambda one: one["loss"], default=None)


def read_run(path: Path, asked: str = "", recent_only: bool = False) -> RunRecord:
    """
    Args:
        asked: what the user called it.
        recent_only: leave out all but the newest train records, and what a list of runs does not show.

    Raises:
        RunDirError: there is no run.
    """
    if not (path / "spec.json").is_file():
        raise RunDirError(
            f"{asked or path} is no run directory: it has no spec.json", "raymb runs --storage_path DIR lists the runs"
        )
    spec, plan, data = (read_object(path / f"{name}.json") or {} for name in ("spec", "plan", "data"))
    records = read_metrics(path / "metrics.jsonl", _RECENT if recent_only else None)
    events = [event for event in read_lines(path / "events.jsonl") if _is_event(event)]
    failures = {} if recent_only else dict(_pages(path / "failures"))
    answers = [] if recent_only else list(_answers(path))
    evaluations = [] if recent_only else list(_evaluations(path))
    place, state = place_of(path, asked), state_of(path, events)
    return RunRecord(path.name, place, state, spec, plan, data, records, events, failures, answers, evaluations)


def _is_event(line: Line) -> bool:
    return isinstance(line.get("event"), str) and isinstance(line.get("time"), int | float)


def _pages(directory: Path) -> Iterator[tuple[str, str]]:
    pages = [page for page in directory.glob("*.md") if page.stem.isdigit()]
    for page in sorted(pages, key=lambda page: int(page.stem)):
        yield page.stem, page.read_text(encoding="utf-8", errors="replace")


def _answers(path: Path) -> Iterator[Line]:
    for file in (path / "answers.jsonl", *sorted((path / "evaluation").glob("*.jsonl"))):
        for one in read_lines(file):
            yield {"from": file.relative_to(path).as_posix(), **one}


def _evaluations(path: Path) -> Iterator[Line]:
    found = (read_object(file) or {} for file in sorted((path / "evaluation").glob("*.json")))
    yield from (one for one in found if isinstance(one.get("scores"), dict))


def state_of(path: Path, events: list[Line]) -> str:
    """running, finished, failed, stopped (--max_time), interrupted, killed (the driver left no last word), or unknown
    for a run of a raymb that kept no events."""
    if lock.is_held(path / "lock"):
        return "running"
    last = next((event for event in reversed(events) if event["event"] in ("started", "ended")), None)
    if last is None:
        return "unknown"
    return state_after(last.get("code", 1)) if last["event"] == "ended" else "killed"


def summary(run: RunRecord) -> Line:
    """The line of a run in `raymb runs`, as plain data; None for what is not known."""
    train, best = run.of("train")[-_RECENT:], run.best
    times = [one["time"] for one in (*run.records, *run.events) if "time" in one]
    return {
        "name": run.name,
        "path": run.place,
        "state": run.state,
        "step": max((one["step"] for one in run.records), default=0),
        "train_iters": run.plan.get("train_iters"),
        "loss": train[-1]["loss"] if train else None,
        "best_validation_loss": best["loss"] if best else None,
        "best_validation_step": best["step"] if best else None,
        "tokens_per_second_per_worker": median(train, "tokens_per_second_per_worker"),
        "time": max(times, default=None),
    }


def labels(runs: list[RunRecord]) -> list[str]:
    """Names of the runs; where they lie, if the names are the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.place for run in runs]


def median(records: list[Line], name: str) -> float | None:
    """Of the known values; the first step, which compiles and warms up, is left out if there are more."""
    values = [one[name] for one in records if one.get(name) is not None and one["step"] > 1]
    values = values or [one[name] for one in records if one.get(name) is not None]
    return statistics.median(values) if values else None


def summaries(directory: Path, asked: str) -> list[Line]:
    """The lines of `raymb runs` for the runs of a storage path, the newest last.

    Args:
        asked: what the user called it.

    Raises:
        RunDirError: it is no directory.
    """
    if not directory.is_dir():
        raise RunDirError(f"{asked}: no such directory", "name a storage path: raymb runs --storage_path DIR")
    found = [path.parent for path in directory.glob("*/spec.json")]
    lines = [summary(read_run(path, f"{asked.rstrip('/')}/{path.name}", recent_only=True)) for path in found]
    return sorted(lines, key=lambda line: line["time"] or 0.0)

"""The top of a report: what was trained on what, what came of it, and what that took."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raymb.telemetry.charts import duration, short
from raymb.telemetry.curves import Clock
from raymb.telemetry.run_record import Line, RunRecord, median
from raymb.telemetry.smoothing import half_life, moving_average

Fact = tuple[str, str, str]
"""What, its value, and a note on it."""
_ARROW = " \N{RIGHTWARDS ARROW} "


@dataclass(frozen=True)
class Summary:
    about: str
    result: str
    facts: list[Fact]


def summary_of(run: RunRecord, price: float | None = None) -> Summary:
    """
    Args:
        price: of a GPU's hour, in any currency.
    """
    facts = [*_losses(run), *_evaluations(run), *_time(run), *_hardware(run), *_cost(run, price), *_tokens(run)]
    return Summary(_about(run), _result(run), facts)


def _about(run: RunRecord) -> str:
    """Model, method, data and steps in a sentence."""
    spec, plan = run.spec, run.plan
    model = f"Model {_name(spec.get('model', {}).get('hf_model_path') or '?')}"
    size = f" ({_large(plan['parameters'])} parameters)" if plan.get("parameters") else ""
    peft = spec.get("peft", {})
    adapters = {"lora": "LoRA", "dora": "DoRA"}.get(peft.get("peft", "none"))
    partly = any(spec.get("train", {}).get(name) for name in ("freeze", "unfreeze"))
    whole = "part of the weights" if partly else "all weights"
    method = f"{adapters} adapters of rank {peft.get('lora_rank')}" if adapters else whole
    done, asked = max((one["step"] for one in run.of("train")), default=0), plan.get("train_iters")
    steps = f"{done:,} of {asked:,} steps" if asked else f"{done:,} steps"
    planned = "" if done == asked else " planned"
    epochs = f", {plan['epochs']:.3g} epochs{planned}" if plan.get("epochs") else ""
    batch = plan.get("global_batch_size", "?")
    return f"{model}{size}, {method} trained on data set {_data(run)}: {steps} of {batch} samples{epochs}."


def _data(run: RunRecord) -> str:
    sources = [f"{_name(one['dataset'])} ({one['used']:,} samples)" for one in run.data.get("sources", [])]
    named = [_name(str(one)) for one in run.spec.get("data", {}).get("dataset") or []]
    return " and ".join(sources or named) or "SQuAD"


def _name(path: str) -> str:
    """Of a local file its name alone; hub ids and URIs are names already."""
    return Path(path).name if Path(path).is_absolute() else path


def _result(run: RunRecord) -> str:
    """The validation loss in a sentence; the training loss where there is none."""
    known, train = _validations(run), [one for one in run.of("train") if one["loss"] is not None]
    if not train and not known:
        return "No step has been finished yet."
    if not known:
        points = [(one["step"], one["loss"]) for one in train]
        last = [*moving_average(points, half_life(len(points)))][-1][1]
        losses = f"{short(train[0]['loss'])} in step {train[0]['step']:,}, and {short(last)} on average at the end"
        return f"No validation loss was measured. Training loss was {losses}."
    first, best, last = known[0], _best(known), known[-1]
    if len(known) == 1:
        return f"Validation loss was measured once: {_at(first)} (perplexity {_perplexity(first)})."
    if best is first:
        return f"Validation loss did not fall below its first value, {_at(first)}; the last is {_at(last)}."
    end = "its best and last value" if best is last else f"its best value; the last is {_at(last)}"
    measured = " (the first that was measured)" if first["step"] else ""
    fell = f"Validation loss fell from {_at(first)}{measured} to {_at(best)}, {end}"
    return f"{fell}. Perplexity fell from {_perplexity(first)} to {_perplexity(best)}, {_factor(first, best)}."


def _validations(run: RunRecord) -> list[Line]:
    return [one for one in run.of("validation") if one.get("loss") is not None]


def _best(validations: list[Line]) -> Line:
    """The lowest; of equal ones the last, which has seen more."""
    return min(reversed(validations), key=lambda one: one["loss"])


def _at(one: Line) -> str:
    return f"{short(one['loss'])} {_when(one)}"


def _when(one: Line) -> str:
    return f"after step {one['step']:,}" if one["step"] else "before training"


def _perplexity(one: Line) -> str:
    return short(math.exp(min(one["loss"], 700.0)))


def _factor(before: Line, after: Line) -> str:
    """By which a perplexity changed."""
    change = before["loss"] - after["loss"]
    return f"{_times(change)} times lower" if change >= 0 else f"{_times(-change)} times higher"


def _times(difference: float) -> str:
    factor = math.exp(min(difference, 700.0))
    return f"{factor:.2f}" if factor < 100 else short(factor)


def _losses(run: RunRecord) -> Iterator[Fact]:
    known = _validations(run)
    if len(known) > 1:
        first, best, last = known[0], _best(known), known[-1]
        names: dict[int, list[str]] = {}
        for name, one in (("first", first), ("best", best), ("last", last)):
            names.setdefault(one["step"], []).append(name)
        told = [one for one in known if one["step"] in names]
        value = _ARROW.join(short(one["loss"]) for one in told)
        yield "validation loss", value, ", ".join(f"{' and '.join(names[one['step']])} {_when(one)}" for one in told)
        name, end = ("last", last) if best is first else ("best", best)
        yield f"perplexity, first to {name}", _factor(first, end), f"{_perplexity(first)} to {_perplexity(end)}"
    elif known:
        yield "validation loss", short(known[0]["loss"]), f"{_when(known[0])}, perplexity {_perplexity(known[0])}"
    if tests := [one for one in run.of("test") if one.get("loss") is not None]:
        yield "test loss", short(tests[-1]["loss"]), f"{_when(tests[-1])}, perplexity {_perplexity(tests[-1])}"


def _evaluations(run: RunRecord) -> Iterator[Fact]:
    """The base model's loss and the tuned one's, where `raymb evaluate --compare` has measured both."""
    for one in run.evaluations:
        base, tuned = (one["scores"].get(name, {}).get("loss") for name in ("base", "tuned"))
        if base is not None and tuned is not None:
            pair = ({"loss": base}, {"loss": tuned})
            note = f"base to tuned model, {one.get('samples', '?')} samples: perplexity {_factor(*pair)}"
            yield f"evaluation, {one.get('split')}", _ARROW.join((short(base), short(tuned))), note


def _time(run: RunRecord) -> Iterator[Fact]:
    step = median(run.of("train"), "step_seconds")
    note = f"start and saving included; median step {short(step)} s" if step is not None else "no step finished"
    yield "time running", duration(Clock(run).seconds), note


def _hardware(run: RunRecord) -> Iterator[Fact]:
    starts = run.events_of("training")
    cpu = run.plan.get("backend") == "cpu"
    counts = sorted({one["workers"] for one in starts} or {run.plan.get("num_workers", 0)})
    workers = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    chips = list(dict.fromkeys(one["chip"] for one in starts if one.get("chip")))
    chip = " and ".join(chips) or "GPU"
    nodes = sorted({one["nodes"] for one in starts if one.get("nodes")})
    where = f"on {nodes[-1]} node{'s' if nodes[-1] > 1 else ''}" if nodes else ""
    if cpu:
        note = f"{chip} {where}".strip() if chips else "which processor is not recorded"
        yield "hardware", f"{workers} CPU workers", note
    else:
        yield "hardware", f"{workers} x {chip}", where or "how many nodes is not recorded"


def worker_hours(run: RunRecord) -> float:
    """Hours for which drivers ran, times the workers that each interval had. From a driver's start on, its workers
    count: they hold their GPUs while a model is loaded, and between a failure and the restart."""
    clock, began = Clock(run), None
    spans: list[tuple[float, int]] = []
    for event in run.events_of("started", "training"):
        if event["event"] == "started":
            began = clock.at(event["time"])
            continue
        spans.append((clock.at(event["time"]) if began is None else began, event["workers"]))
        began = None
    if not spans:
        return 0.0
    ends = [*(begin for begin, _ in spans[1:]), clock.seconds]
    return sum((end - begin) * workers for (begin, workers), end in zip(spans, ends, strict=True)) / 3600


def _cost(run: RunRecord, price: float | None) -> Iterator[Fact]:
    cpu, hours = run.plan.get("backend") == "cpu", worker_hours(run)
    if not hours:
        return
    yield "CPU-worker hours" if cpu else "GPU hours", f"{hours:.3g}", "workers x time running"
    if price is not None and not cpu:
        yield "cost", f"{hours * price:,.2f}", f"at {price:g} a GPU hour"


def _tokens(run: RunRecord) -> Iterator[Fact]:
    train = run.of("train")
    if not train:
        return
    trained, padded = (sum(one.get(name, 0) for one in train) for name in ("trained_tokens", "tokens"))
    if trained:
        yield "tokens trained", f"{trained:,}", f"those that the loss counts; {padded:,} with prompts and padding"
    speed, each = (median(train, name) for name in ("tokens_per_second", "tokens_per_second_per_worker"))
    if speed is None:
        return
    mfu = median(train, "mfu")
    note = f"{short(each)} a worker" + (f", MFU {mfu:.1%}" if mfu is not None else "")
    yield "throughput", f"{short(speed)} tokens/s", f"median, prompts and padding counted; {note}"


def _large(count: float) -> str:
    return f"{count / 1e9:.3g} B" if count >= 1e9 else short(count)

"""How a run ended, or had ended before: the exit code, and what the console says last."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

from rich.console import Console

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.manifest import best_of, iteration_dir
from raymb.checkpoints.remote import RemoteCheckpoints, manifest_of
from raymb.driver.preflight import Preflight
from raymb.errors import OutOfGpuMemory, RunFailed, UserError, last_line
from raymb.export.model_card import CARD, CURVE, write_card
from raymb.export.push import push, repositories
from raymb.rank.early_stopping import has_stalled
from raymb.run.directory import RunDir
from raymb.run.job import Job
from raymb.spec import RunSpec
from raymb.telemetry.sinks import read_metrics


def newest_step(place: RunDir) -> int | None:
    """The step of the newest checkpoint that looks whole, at the run's URI if it has one: it may not be here."""
    return (RemoteCheckpoints.of_run(place) or checkpoint).latest_step(place.checkpoints)


def _losses(place: RunDir, step: int) -> list[list[float]]:
    manifest = manifest_of(iteration_dir(place.checkpoints, step), RemoteCheckpoints.of_run(place))
    return (manifest or {}).get("validation_losses", [])


def _has_model(place: RunDir) -> bool:
    return place.hf.exists() or (place.remote is not None and place.remote.exists("hf/config.json"))


def _has_adapter(place: RunDir) -> bool:
    return place.adapter.exists() or (place.remote is not None and place.remote.exists("adapter/adapter_config.json"))


def _is_exported(spec: RunSpec, place: RunDir) -> bool:
    """Whether all that the spec wants written at the end is there."""
    whole, adapters = spec.peft.peft == "none" or spec.checkpoint.merge, spec.peft.peft != "none"
    return (not whole or _has_model(place)) and (not adapters or _has_adapter(place))


def _shown(place: RunDir, path: Path) -> str:
    """A path of the run as its user names it."""
    if place.remote is None or not path.is_relative_to(place.path):
        return str(path)
    return f"{place.remote.url}/{path.relative_to(place.path).as_posix()}"


def has_finished(checked: Preflight, place: RunDir) -> bool:
    """Whether the same command ran to its end here before; one that died before its export resumes to write it."""
    spec, done = checked.spec, newest_step(place)
    complete = not spec.checkpoint.export_hf or _is_exported(spec, place)
    again = spec.checkpoint.overwrite or spec.checkpoint.resume != "auto"
    if done is None or again or not complete:
        return False
    return done >= (checked.plan.train_iters or 0) or _stopped_early(spec, place, done)


def _stopped_early(spec: RunSpec, place: RunDir, step: int) -> bool:
    """Whether early stopping ended a run at this checkpoint."""
    losses = _losses(place, step)
    return has_stalled(losses, spec.evaluation.early_stopping_patience, spec.evaluation.early_stopping_threshold)


def has_ended(job: Job, place: RunDir) -> bool:
    """Whether the training has come to its end, by its steps or by early stopping."""
    step = newest_step(place)
    return step is not None and (step >= job.train_iters or _stopped_early(job.spec, place, step))


def check_still_owned(place: RunDir, lost: threading.Event) -> None:
    """
    Raises:
        RunFailed: another driver has taken the run over. The workers have been ended, and nothing is written any more.
    """
    if lost.is_set():
        run = place.remote.url if place.remote else place.path
        raise RunFailed(
            f"another driver has taken {run} over, which had not heard of this one for a minute",
            "its run continues; this one's workers are ended, and what they wrote last does not count",
        )


def has_worker_failures(error: BaseException) -> bool:
    """Whether a worker failed by itself; workers that are ended by a signal to the driver do not."""
    return bool(getattr(error, "worker_failures", None))


def reason_of(error: BaseException) -> str:
    """The worker failure that caused the others, in one line."""
    from raymb.driver.recovery import first_cause

    failures = getattr(error, "worker_failures", {})
    if not failures:
        return last_line(error)
    rank, cause = first_cause(failures)
    return f"worker {rank} failed: {type(cause).__name__}: {last_line(cause)}"


def failed(error: BaseException, job: Job, place: RunDir, asked_to_end: bool) -> RunFailed:
    """What is raised for the failure that has ended the workers.

    Args:
        asked_to_end: by Ctrl-C or --max_time.
    """
    from raymb.driver.recovery import first_cause, is_out_of_gpu_memory

    failures = getattr(error, "worker_failures", None)
    out_of_memory = bool(failures) and is_out_of_gpu_memory(first_cause(failures)[1])
    early = job.spec.checkpoint.resume in ("auto", "never") and newest_step(place) is None
    kind = OutOfGpuMemory if out_of_memory and early and not asked_to_end else RunFailed
    return kind(reason_of(error), where_to_look(place))


def raise_refusal(error: BaseException | None) -> None:
    """
    Raises:
        UserError: what the controller of Ray Train found to be impossible before the workers trained.
    """
    refused = getattr(error, "controller_failure", None)
    if isinstance(refused, UserError):
        raise refused from None


def where_to_look(place: RunDir) -> str:
    pages = sorted(place.failures.glob("*.md"), key=lambda page: page.stat().st_mtime)
    page = f"what happened: {pages[-1]}; " if pages else ""
    return f"{page}the workers' logs: {place.logs}"


def say_how_to_resume(what: str, code: int, job: Job, place: RunDir, console: Console) -> int:
    step = newest_step(place)
    if step is None:
        console.print(f"{what} before the first checkpoint; start again with the same command")
        return code
    settings = job.spec.checkpoint
    change = "" if not settings.overwrite and settings.resume == "auto" else " with --resume auto and no --overwrite"
    console.print(f"{what}; the same command{change} resumes from step {step}")
    checkpoint = _shown(place, Path(iteration_dir(place.checkpoints, step)))
    console.print(f"  {'checkpoint':<19}{checkpoint}", highlight=False, soft_wrap=True)
    return code


def brought(losses: list[list[float]]) -> str:
    """What the training changed, where there was a validation before it.

    Args:
        losses: [step, loss] of each validation, in order.
    """
    if len(losses) < 2 or losses[0][0] != 0:
        return ""
    (_, before), (step, after) = losses[0], losses[-1]
    change = f"{abs(after / before - 1):.0%} {'lower' if after < before else 'higher'}" if before > 0 else ""
    return f"{before:.4f} before training, {after:.4f} at step {step:g} ({change})" if change else ""


def _write_cards(place: RunDir) -> None:
    """Write the model cards of the last exports, now that all metrics are there."""
    records = read_metrics(place.metrics)
    exported: dict[str, Any] = {
        name: one for one in records if one["kind"] == "export" for name in map(_name, one["directories"])
    }
    for directory in (place.hf, place.adapter):
        if directory.name not in exported:
            continue
        with tempfile.TemporaryDirectory() as copy:
            # Exports at a URI are there alone, where rank 0 has worked on another machine.
            to = directory if directory.exists() else Path(copy)
            write_card(to, place.path, exported[directory.name], adapter=directory == place.adapter)
            for name in (CARD, CURVE):
                if place.remote is not None and (to / name).exists():
                    place.remote.upload(to / name, f"{directory.name}/{name}")


def _name(path: str) -> str:
    return Path(path).name


def _bring_exports(place: RunDir) -> None:
    """Of a run at a URI, whose rank 0 may have worked on another machine."""
    for name, directory in {"hf": place.hf, "adapter": place.adapter}.items():
        if place.remote is not None and not directory.exists() and place.remote.listing(name):
            place.remote.download(name, directory)


def _push(job: Job, place: RunDir, console: Console) -> None:
    """
    Raises:
        RunFailed: an export is there, and is not pushed.
    """
    settings = job.spec.checkpoint
    if settings.push_to_hub is None or not _is_exported(job.spec, place):
        return
    _bring_exports(place)
    adapter = place.adapter if job.plan.adapters is not None else None
    for directory, repository in repositories(settings.push_to_hub, place.hf, adapter).items():
        if directory.exists():
            page = push(directory, repository, settings.hub_public)
            console.print(f"  {'pushed to':<19}{page}", highlight=False, soft_wrap=True)


def conclude(job: Job, place: RunDir, console: Console) -> None:
    """Print where everything lies, and the answers to the sample prompt if there is one; push the exports.

    Raises:
        RunFailed: they cannot be pushed.
    """
    _write_cards(place)
    step, best = (
        newest_step(place) or 0,
        best_of((RemoteCheckpoints.of_run(place) or checkpoint).whole(place.checkpoints)),
    )
    stopped_early = _stopped_early(job.spec, place, step)
    if stopped_early and step < job.train_iters:
        losses = _losses(place, step)
        at, loss = min(losses, key=lambda pair: pair[1])
        console.print(f"stopped early at step {step}: the best validation loss is {loss:.4f}, at step {at:g}")
    elif step < job.train_iters:
        console.print(f"stopped at step {step} of {job.train_iters}; the same command resumes from there")
    if job.spec.run.sample_prompt and _is_exported(job.spec, place) and (stopped_early or step >= job.train_iters):
        from raymb.inference.sample import print_sample

        _bring_exports(place)
        print_sample(job, place, console)
    if line := brought(_losses(place, step)):
        console.print(f"  {'validation loss':<19}{line}", highlight=False, soft_wrap=True)
    places = {
        "metrics": place.metrics,
        "checkpoint": Path(iteration_dir(place.checkpoints, step)),
        "best checkpoint": Path(iteration_dir(place.checkpoints, best)) if best not in (None, step) else None,
        "failures": place.failures if place.failures.exists() else None,
        "Hugging Face model": place.hf if _has_model(place) else None,
        "PEFT adapter": place.adapter if _has_adapter(place) else None,
        "TensorBoard": place.tensorboard,
        "workers' logs": place.logs,
    }
    for name, path in places.items():
        if path is not None:
            console.print(f"  {name:<19}{_shown(place, path)}", highlight=False, soft_wrap=True)
    _push(job, place, console)

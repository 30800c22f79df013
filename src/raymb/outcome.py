"""How a run ended, or had ended before: the exit code, and what the console says last."""

from __future__ import annotations

from rich.console import Console

from raymb.bridge.checkpoint import best_step, iteration_dir, latest_step, losses_so_far
from raymb.early_stopping import has_stalled
from raymb.job import Job
from raymb.preflight import Preflight
from raymb.run_dir import RunDir
from raymb.spec import RunSpec


def has_finished(checked: Preflight, place: RunDir) -> bool:
    """Whether the same command ran to its end here before; one that died before its export goes on to write it."""
    spec, done = checked.spec, latest_step(place.checkpoints)
    complete = place.hf.exists() or not spec.checkpoint.export_hf
    again = spec.checkpoint.overwrite or spec.checkpoint.resume != "auto"
    if done is None or again or not complete:
        return False
    return done >= (checked.plan.train_iters or 0) or _stopped_early(spec, place, done)


def _stopped_early(spec: RunSpec, place: RunDir, step: int) -> bool:
    """Whether early stopping ended a run at this checkpoint."""
    losses = losses_so_far(iteration_dir(place.checkpoints, step))
    return has_stalled(losses, spec.evaluation.early_stopping_patience, spec.evaluation.early_stopping_threshold)


def reason_of(error: BaseException) -> str:
    """The worker failure that caused the others, in one line."""
    from raymb.recovery import first_cause, last_line

    failures = getattr(error, "worker_failures", {})
    if not failures:
        return last_line(error)
    rank, cause = first_cause(failures)
    return f"worker {rank} failed: {type(cause).__name__}: {last_line(cause)}"


def where_to_look(place: RunDir) -> str:
    pages = sorted(place.failures.glob("*.md"), key=lambda page: page.stat().st_mtime)
    page = f"what happened: {pages[-1]}; " if pages else ""
    return f"{page}the workers' logs: {place.logs}"


def say_how_to_go_on(what: str, code: int, job: Job, place: RunDir, console: Console) -> int:
    step = latest_step(place.checkpoints)
    if step is None:
        console.print(f"{what} before the first checkpoint; start again with the same command")
        return code
    settings = job.spec.checkpoint
    change = "" if not settings.overwrite and settings.resume == "auto" else " with --resume auto and no --overwrite"
    console.print(f"{what}; the same command{change} goes on from step {step}")
    console.print(f"  {'checkpoint':<19}{iteration_dir(place.checkpoints, step)}", highlight=False, soft_wrap=True)
    return code


def conclude(job: Job, place: RunDir, console: Console) -> None:
    """Print where everything lies, and the answers to the sample prompt if there is one."""
    step, best = latest_step(place.checkpoints) or 0, best_step(place.checkpoints)
    stopped_early = _stopped_early(job.spec, place, step)
    if stopped_early and step < job.plan["train_iters"]:
        losses = losses_so_far(iteration_dir(place.checkpoints, step))
        at, loss = min(losses, key=lambda pair: pair[1])
        console.print(f"stopped early at step {step}: the best validation loss is {loss:.4f}, at step {at:g}")
    elif step < job.plan["train_iters"]:
        console.print(f"stopped at step {step} of {job.plan['train_iters']}; the same command goes on from there")
    if job.spec.run.sample_prompt and place.hf.exists() and (stopped_early or step >= job.plan["train_iters"]):
        from raymb.sample import print_answers

        print_answers(job, console)
    places = {
        "metrics": place.metrics,
        "checkpoint": iteration_dir(place.checkpoints, step),
        "best checkpoint": iteration_dir(place.checkpoints, best) if best not in (None, step) else None,
        "failures": place.failures if place.failures.exists() else None,
        "Hugging Face model": place.hf if place.hf.exists() else None,
        "TensorBoard": place.tensorboard,
        "workers' logs": place.logs,
    }
    for name, path in places.items():
        if path is not None:
            console.print(f"  {name:<19}{path}", highlight=False, soft_wrap=True)

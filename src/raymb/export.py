"""`raymb export`: a run's checkpoint as a Hugging Face directory, in this process and on its CPU."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from raymb import run_dir
from raymb.bridge import checkpoint
from raymb.errors import RunDirError
from raymb.fingerprint import described, differences, model_group
from raymb.job import Job


@dataclass(frozen=True)
class Wish:
    """What to export.

    Args:
        run: run directory.
        which: best, latest, or a step.
        merge: of a run with adapters also the merged model.
        to: directory for the model (of a run with adapters: for the adapter, beside it NAME-merged); default: hf/ and
            adapter/ of the run.
        dtype: source, bf16, fp16 or fp32; default: as the run has it.
        overwrite: replace directories that are there.
    """

    run: Path
    which: str = "latest"
    merge: bool = False
    to: Path | None = None
    dtype: str | None = None
    overwrite: bool = False


def export(wish: Wish, console: Console) -> list[Path]:
    """Write the directories, and return them.

    Raises:
        RunDirError: no run there, no such checkpoint, a broken one, another base model, or a directory in the way.
        RunFailed: what was written is not as it should be.
    """
    job = checked_job(wish)
    console.print(f"exporting {job.load_dir}", highlight=False, soft_wrap=True)
    from raymb.worker import activate_alone

    activate_alone(job)
    from raymb.bridge.export import write_results
    from raymb.bridge.from_checkpoint import load_model

    hf_bridge, model = load_model(job)
    return write_results(hf_bridge, model, job)


def checked_job(wish: Wish) -> Job:
    """The run's job as that of one CPU worker that exports; nothing is written."""
    run = wish.run.expanduser().absolute()
    job = _job_of(run)
    has_adapters = job.plan["adapters"] is not None
    if wish.merge and not has_adapters:
        raise RunDirError(f"--merge: {wish.run} trained the whole model and has no adapters", "leave --merge out")
    directory = _checkpoint(wish, run, job)
    _check_base(job, Path(directory).parent)
    adapter, hf = _targets(wish, run, has_adapters)
    _check_targets([*([adapter] if has_adapters else []), *([hf] if not has_adapters or wish.merge else [])], wish)
    settings = {"merge": wish.merge, **({"export_dtype": wish.dtype} if wish.dtype else {})}
    spec = job.spec.model_copy(update={"checkpoint": job.spec.checkpoint.model_copy(update=settings)})
    return replace(job.alone(), spec=spec, load_dir=directory, hf_dir=str(hf), adapter_dir=str(adapter))


def _job_of(run: Path) -> Job:
    content = run_dir.read_object(run / "job.json")
    if not content:
        problem = "there is no job.json" if content is None else "its job.json cannot be read"
        raise RunDirError(f"{run} is no run directory of raymb: {problem}", "give STORAGE_PATH/EXPERIMENT_NAME")
    try:
        return Job.from_json(json.dumps(content))
    except (TypeError, ValueError) as error:
        raise RunDirError(
            f"{run / 'job.json'} was written by another version of raymb ({str(error).splitlines()[0]})",
            "the finetune command of that run, given again, writes it anew",
        ) from None


def _targets(wish: Wish, run: Path, has_adapters: bool) -> tuple[Path, Path]:
    """(directory of the adapter, directory of the model)."""
    if wish.to is None:
        return run / "adapter", run / "hf"
    to = wish.to.expanduser().absolute()
    return to, to.with_name(f"{to.name}-merged") if has_adapters else to


def _checkpoint(wish: Wish, run: Path, job: Job) -> str:
    """The iteration directory, whole to the last byte."""
    home = Path(job.checkpoint_dir) if job.spec.checkpoint.output_dir else run / "checkpoints"
    steps = checkpoint.steps_of(home)
    if wish.which == "best":
        step = checkpoint.best_step(home)
    elif wish.which == "latest":
        step = checkpoint.latest_step(home)
    elif wish.which.isdigit():
        step = int(wish.which)
    else:
        raise RunDirError(f"--checkpoint {wish.which}: best, latest or a step is expected")
    shown = ", ".join(map(str, steps)) or "none"
    if step is None:
        what = "with a --best_metric" if wish.which == "best" and steps else "that is whole"
        raise RunDirError(f"--checkpoint {wish.which}: {home} has no checkpoint {what}", f"steps there: {shown}")
    directory = checkpoint.iteration_dir(home, step)
    if step not in steps:
        raise RunDirError(f"--checkpoint {step}: {home} has none of that step", f"steps there: {shown}")
    problem = checkpoint.why_not_whole(directory) or checkpoint.wrong_content(directory)
    if problem:
        raise RunDirError(f"{directory} is not whole: {problem}", f"give another --checkpoint; steps there: {shown}")
    return directory


def _check_base(job: Job, home: Path) -> None:
    """The model that the run started from must still be that one: its tokenizer, and what adapters lie on."""
    former = (run_dir.read_object(home / "fingerprint.json") or {}).get("model")
    now = model_group(job.model_path, job.spec.model.hf_revision)
    changes = differences({"model": former}, {"model": now}) if isinstance(former, dict) else []
    if changes:
        raise RunDirError(
            f"{job.model_path} is not the model that the run started from:\n{described(changes)}",
            "bring back the former files",
        )


def _check_targets(targets: list[Path], wish: Wish) -> None:
    for target in targets:
        if target.exists() and not wish.overwrite:
            raise RunDirError(f"{target} exists", "ways out: --to ANOTHER_DIR, --overwrite to replace it")

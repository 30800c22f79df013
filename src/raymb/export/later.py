"""`raymb export`: a run's checkpoint as a Hugging Face directory, in this process or on Ray workers, on CPUs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from raymb.checkpoints import manifest as checkpoint
from raymb.data.store import read_manifest
from raymb.errors import RaymbError, RunDirError
from raymb.export.finishing import finish
from raymb.export.model_card import write_card
from raymb.model.remote_code import check_remote_code
from raymb.model.shape import read_model_shape
from raymb.model.tensor_files import tensor_types
from raymb.rank.progress import Progress
from raymb.run import directory as run_dir
from raymb.run.fingerprint import described, differences, model_group
from raymb.run.job import Job
from raymb.run.unverified import UnverifiedExport
from raymb.telemetry.records import Export, Findings


@dataclass(frozen=True)
class ExportRequest:
    """What to export.

    Args:
        run: run directory.
        which: best, latest, or a step.
        merge: of a run with adapters also the merged model.
        to: directory for the model (of a run with adapters: for the adapter, beside it NAME-merged); default: hf/ and
            adapter/ of the run.
        dtype: source, bf16, fp16 or fp32; default: as the run has it.
        overwrite: replace directories that are there.
        ray: on workers of a Ray cluster instead of in this process; ray_address: which one, as finetune takes it.
        trust_remote_code: run code of the model's repository; the run directory's word for it does not count.
        repository: of the hub, that it is pushed to; hub_public: whether that is made public.
    """

    run: Path
    which: str = "latest"
    merge: bool = False
    to: Path | None = None
    dtype: str | None = None
    overwrite: bool = False
    ray: bool = False
    ray_address: str | None = None
    trust_remote_code: bool = False
    repository: str | None = None
    hub_public: bool = False


def export_alone(job: Job, say: Callable[[str], None]) -> Findings:
    """Export in this process."""
    say("loading the checkpoint and writing")
    written = _write_alone(job)
    say("verifying in a fresh process")
    findings = finish(written, lambda: None)
    write_cards(job, findings)
    return findings


def write_cards(job: Job, findings: Findings) -> None:
    step = (checkpoint.read_manifest(job.load_dir) or {}).get("step", 0)
    export: Export = {**findings, "kind": "export", "step": step, "time": time.time()}
    for directory in findings["directories"]:
        write_card(Path(directory), Path(job.run_dir), export, adapter=directory == job.adapter_dir)


def _write_alone(job: Job) -> UnverifiedExport:
    """Load the job's load_dir and write, in this process alone."""
    from raymb.bridge.activation import activate_alone

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # what raymb has to say it says itself
    with contextlib.redirect_stdout(io.StringIO()):  # Megatron prints; the standard output is for what was asked
        activate_alone(job)
        from raymb.bridge.export import write_results
        from raymb.bridge.from_checkpoint import load_model

        hf_bridge, model = load_model(job)
        return write_results(hf_bridge, model, job, Progress())


def main() -> None:
    """`python -m raymb.export.later < JOB.json`: of a training that still runs; the findings are the last line, in
    JSON."""
    os.nice(19)
    try:
        job = exporting_job(Job.from_json(sys.stdin.read()))
        print(json.dumps(export_alone(job, lambda phase: None)), flush=True)
    except RaymbError as error:
        sys.exit(f"error: {error}".replace("\n", "; "))


def checked_job(request: ExportRequest) -> Job:
    """The run's job as one that exports; nothing is written."""
    run = request.run.expanduser().absolute()
    job = _job_of(run)
    has_adapters = job.plan.adapters is not None
    if request.merge and not has_adapters:
        raise RunDirError(f"--merge: {request.run} trained the whole model and has no adapters", "leave --merge out")
    if request.ray and job.spec.parallel.fsdp:
        raise RunDirError(
            f"--ray: {request.run} was trained with --megatron_fsdp, whose checkpoints one process exports",
            "leave --ray out",
        )
    directory = _checkpoint(request, run, job)
    _check_base(job, Path(directory).parent)
    shape = read_model_shape(job.model_path, job.spec.model.hf_revision, "config")
    check_remote_code(shape, str(request.run), request.trust_remote_code)
    rows = _rows(job, run)
    adapter, hf = _targets(request, run, has_adapters)
    _check_targets(
        [*([adapter] if has_adapters else []), *([hf] if not has_adapters or request.merge else [])], request
    )
    settings = {"merge": request.merge, **({"export_dtype": request.dtype} if request.dtype else {})}
    spec = job.spec.changed(checkpoint=settings, model={"trust_remote_code": request.trust_remote_code})
    if request.ray_address:
        spec = spec.changed(cluster={"ray_address": request.ray_address})
    return replace(
        job, spec=spec, run_dir=str(run), load_dir=directory, hf_dir=str(hf), adapter_dir=str(adapter), data_dir=rows
    )


def exporting_job(job: Job) -> Job:
    """The job as that of one CPU worker that exports its load_dir."""
    return in_export_type(job.with_local_model()).alone()


def in_export_type(job: Job) -> Job:
    """The job with its weights in no larger type than what is to be written."""
    manifest = checkpoint.read_manifest(job.load_dir) or {}
    asked, precision = job.spec.checkpoint.export_dtype, manifest.get("precision", "fp32")
    if job.plan.adapters is None:
        stored = set(tensor_types(Path(job.with_local_model().model_path)).values()) if asked == "source" else set()
        precision = "bf16" if asked == "bf16" or stored == {"BF16"} else "fp32"
    return replace(job, spec=job.spec.changed(train={"precision": precision}))


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


def _rows(job: Job, run: Path) -> str:
    """The prepared rows, which the export is measured on, also of a run that was moved together with them."""
    former = Path(job.data_dir)
    for place in (former, run.parent / former.parent.name / former.name):
        if read_manifest(place) is not None:
            return str(place)
    raise RunDirError(
        f"{former}: the rows that the run was trained on are gone, and the export is measured on them",
        f"prepare them again: raymb data prepare --config {run / 'spec.json'}",
    )


def _targets(request: ExportRequest, run: Path, has_adapters: bool) -> tuple[Path, Path]:
    """(directory of the adapter, directory of the model)."""
    if request.to is None:
        return run / "adapter", run / "hf"
    to = request.to.expanduser().absolute()
    return (to, to.with_name(f"{to.name}-merged")) if has_adapters else (run / "adapter", to)


def _checkpoint(request: ExportRequest, run: Path, job: Job) -> str:
    """The iteration directory, whole to the last byte."""
    home = Path(job.checkpoint_dir) if job.spec.checkpoint.output_dir else run / "checkpoints"
    steps = checkpoint.steps_of(home)
    if request.which == "best":
        step = checkpoint.best_step(home)
    elif request.which == "latest":
        step = checkpoint.latest_step(home)
    elif request.which.isdigit():
        step = int(request.which)
    else:
        raise RunDirError(f"--checkpoint {request.which}: best, latest or a step is expected")
    shown = ", ".join(map(str, steps)) or "none"
    if step is None:
        what = "with a --best_metric" if request.which == "best" and steps else "that is whole"
        raise RunDirError(f"--checkpoint {request.which}: {home} has no checkpoint {what}", f"steps there: {shown}")
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


def _check_targets(targets: list[Path], request: ExportRequest) -> None:
    for target in targets:
        if target.exists() and not request.overwrite:
            raise RunDirError(f"{target} exists", "ways out: --to ANOTHER_DIR, --overwrite to replace it")


if __name__ == "__main__":
    main()

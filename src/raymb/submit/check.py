"""From a RunSpec to a job: everything that can be found wrong before it is submitted is found here."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raymb.data.words import read_word
from raymb.errors import DataOutOfReach, ModelOutOfReach, SpecError
from raymb.plan.automatic import NODE
from raymb.spec import RunSpec, without_secrets
from raymb.spec.training import worker_range
from raymb.submit.paths import check_paths, paths_of
from raymb.submit.target import JobOptions, Submission, Target

if TYPE_CHECKING:
    from rich.console import Console

    from raymb.plan import Plan

_SECONDS_TO_COME_UP = 900.0


def submission(spec: RunSpec, options: JobOptions, target: Target, console: Console) -> Submission:
    """Check a run as `raymb finetune --dry_run` does, and whether the target can have what it names.

    Args:
        console: where it says what only the job can check.

    Raises:
        UserError: for the first thing that is wrong.
    """
    _check_flags(spec, options, target)
    check_paths(spec, target)
    there = _as_on_the_cluster(spec, target)
    for line in _checked(there, target):
        console.print(line, highlight=False, soft_wrap=True)
    name = options.job_name or _name(spec)
    workers = worker_range(spec.parallel)[1]
    job = Submission(
        name=name,
        spec=there,
        workers=workers,
        workers_per_node=min(workers, spec.cluster.gpus_per_node or NODE),
        gpus=spec.run.backend != "cpu",
        working_dir=_directory(spec, target),
        directory=(options.output or Path("raymb-jobs", name)).expanduser().absolute(),
        options=options,
    )
    target.check(job)
    return job


def _check_flags(spec: RunSpec, options: JobOptions, target: Target) -> None:
    if spec.cluster.ray_address is not None:
        raise SpecError(
            f"--ray_address {spec.cluster.ray_address}: a job joins the Ray cluster that it runs on",
            "leave it out (raymb submit ray has --address for the cluster's job server)",
        )
    if secret := sorted(spec.cluster.env.keys() - without_secrets(spec).cluster.env.keys()):
        raise SpecError(
            f"--env {', '.join(secret)}: not known to be harmless, and the job's files would hold the value",
            target.way_of_secrets(secret),
        )
    if missing := [name for name in options.pass_env if name not in os.environ]:
        raise SpecError(f"--pass_env {missing[0]}: this variable is not set here", f"export {missing[0]}=...")
    if target.starts_again():
        if spec.checkpoint.overwrite:
            raise SpecError(
                "--overwrite: a job that is started again would delete what it has trained",
                "leave it out, and give a new --experiment_name",
            )
        if spec.checkpoint.resume == "never":
            raise SpecError("--resume never: a job that is started again could not resume", "leave it out")


def _directory(spec: RunSpec, target: Target) -> Path | None:
    """What the target's client uploads instead of the job's own files."""
    directory = spec.cluster.working_dir
    return directory.expanduser().absolute() if directory is not None and target.uploads else None


def _as_on_the_cluster(spec: RunSpec, target: Target) -> RunSpec:
    """The spec of a driver that joins the cluster it is on, and waits for nodes that come up beside it."""
    asked = spec.cluster.wait_for_resources
    seconds = _SECONDS_TO_COME_UP if asked == "auto" else max(asked, _SECONDS_TO_COME_UP)
    there = target.as_the_job_reads_it(spec)
    return there.changed(cluster={"ray_address": "auto", "wait_for_resources": seconds})


def _checked(spec: RunSpec, target: Target) -> Iterator[str]:
    """Look at model, layout and data as far as they are to be had here; a line for what the job has to check."""
    absent = {flag: path for flag, path in paths_of(spec) if Path(path).is_absolute() and not Path(path).exists()}
    if "hf_model_path" in absent:
        yield f"{_BY_THE_JOB}: --hf_model_path {absent['hf_model_path']} and the layout"
        return
    if target.shares_files() and "dataset" not in absent:
        from raymb.driver.preflight import preflight

        with contextlib.suppress(ModelOutOfReach, DataOutOfReach):  # named below
            checked = preflight(spec)
            yield from _described(checked.plan)
            yield checked.prepared.summary()
            return
    from raymb.driver.preflight import checked_shape, local_backend, local_gpu
    from raymb.plan import make_plan

    try:
        shape = checked_shape(spec)
    except ModelOutOfReach:
        yield f"{_BY_THE_JOB}: --hf_model_path {spec.model.hf_model_path} and the layout (no hub answers here)"
        return
    yield from _described(make_plan(spec, shape, backend=local_backend(spec), gpu=local_gpu(spec)))
    for word in spec.data.dataset:
        name = read_word(word).name
        if Path(name).exists() or glob.glob(name, recursive=True):
            from raymb.data.locate import locate

            locate(word, spec.data, chat=shape.has_chat_template)
        else:
            yield f"{_BY_THE_JOB}: --dataset {word}"


_BY_THE_JOB = "not checked here, but by the job first"


def _described(plan: Plan) -> Iterator[str]:
    sizes = (
        plan.layout.tensor_parallel_size,
        plan.layout.pipeline_parallel_size,
        plan.layout.context_parallel_size,
        plan.layout.num_workers // plan.layout.model_parallel_size,
    )
    shape = " x ".join(str(size) for size in sizes)
    yield f"checked: {plan.layout.num_workers} workers = {shape} (tensor x pipeline x context x data parallel)"


def _name(spec: RunSpec) -> str:
    """A DNS label."""
    text = spec.run.experiment_name or Path(spec.model.hf_model_path).name
    return "raymb-" + re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:35].strip("-")

"""`raymb export`: in this process, or by CPU workers of a Ray cluster."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.format import smallest_plan
from raymb.errors import RunFailed
from raymb.export.later import ExportRequest, checked_job, export_alone, exporting_job, in_export_type, write_cards
from raymb.export.push import check_push, push, repositories
from raymb.run import directory as run_dir
from raymb.run.job import Job
from raymb.telemetry.export_line import exported_line
from raymb.telemetry.records import Findings
from raymb.telemetry.sinks import read_metrics


def export(request: ExportRequest, console: Console) -> Findings:
    """Write the directories, verified, with a model card.

    Returns:
        raymb.export.finishing.finish's findings.

    Raises:
        RunDirError: no run there, no such checkpoint, a broken one, another base model, or a directory in the way.
        RunFailed: what was written is not as it should be, or cannot be pushed.
        SpecError: the token may not push to request.repository.
    """
    check_push(request.repository, request.hub_public)
    job = checked_job(request)
    console.print(f"exporting {job.load_dir}", highlight=False, soft_wrap=True)
    if request.ray:
        findings = _on_ray(job, request, console)
    else:
        with console.status("") as status:
            findings = export_alone(exporting_job(job), status.update)
        console.print(exported_line(findings), highlight=False, soft_wrap=True)
    if request.repository is not None:
        adapter = Path(job.adapter_dir) if job.plan.adapters is not None else None
        for directory, repository in repositories(request.repository, Path(job.hf_dir), adapter).items():
            if str(directory) in findings["directories"]:
                page = push(directory, repository, request.hub_public)
                console.print(f"pushed to {page}", highlight=False, soft_wrap=True)
    return findings


def _on_ray(job: Job, request: ExportRequest, console: Console) -> Findings:
    """The same by CPU workers of a Ray cluster, in the checkpoint's layout: no process has the whole model. One has it
    afterwards, to verify it, when the workers have given their memory back."""
    from raymb.driver.after_training import finish_exports
    from raymb.driver.cluster import connect
    from raymb.driver.host_memory import memory_of_an_exporting_worker
    from raymb.driver.outcome import raise_refusal, reason_of
    from raymb.driver.trainer import make_trainer
    from raymb.telemetry.monitor import Monitor

    manifest = checkpoint.read_manifest(job.load_dir) or {}
    home = run_dir.RunDir(request.run.expanduser().absolute() / ".export", Path(job.checkpoint_dir))
    plan = smallest_plan(job.plan, manifest)
    job = in_export_type(job).on_cpus()
    job = replace(
        job,
        task="export",
        spec=job.spec.changed(checkpoint={"save_hf_interval": None}),  # of this checkpoint alone
        plan=plan,
        plans={},
        run_dir=str(home.path),
        log_dir=str(home.logs),
    )
    with connect(job.spec, console) as cluster:
        resources = cluster.resources_of_a_worker("cpu", job.spec.cluster.cpus_per_worker, job.layout.num_workers)
        resources = resources.with_memory(memory_of_an_exporting_worker(job))
        home.logs.mkdir(parents=True, exist_ok=True)
        trainer = make_trainer(job, cluster, resources, home)
        with closing(Monitor(trainer.hub, job, home, console)) as monitor:
            try:
                left = trainer.fit().return_value
            except Exception as error:
                raise_refusal(error)
                raise RunFailed(reason_of(error), f"the workers' logs: {home.logs}") from error
            finish_exports(left, job, monitor.hub, monitor.terminal.phase)
    findings: Any = next(one for one in read_metrics(home.metrics) if one["kind"] == "export")
    shutil.rmtree(home.path)
    write_cards(job, findings)
    return findings

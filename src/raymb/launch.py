"""The driver: from a checked spec to workers that train, and back to an exit code."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raymb.checkpoints.format import check_format
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.data.sharing import share_rows
from raymb.driver.after_training import finish_exports
from raymb.driver.cluster import Cluster, Resources, connect, start_coordinator
from raymb.driver.host_memory import memory_of_a_resharding_worker
from raymb.driver.nodes import check_nodes, check_packages
from raymb.driver.outcome import (
    check_still_owned,
    conclude,
    failed,
    has_ended,
    has_finished,
    has_worker_failures,
    raise_refusal,
    reason_of,
    say_how_to_resume,
    where_to_look,
)
from raymb.driver.preflight import Preflight, as_packed, fingerprint, local_gpu, run_name, validation_line
from raymb.driver.resharding import described, reshaping, to_reshape
from raymb.driver.resources import Request, Reservation, wait_for
from raymb.driver.start import Start
from raymb.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STOPPED,
    OutOfGpuMemory,
    RaymbError,
    RunFailed,
)
from raymb.model.families import family_of
from raymb.model.initial import model_path, share_model
from raymb.plan import Plan, automatic, usable_plans
from raymb.plan.smaller import as_planned_before
from raymb.plan.table import better_line, estimate_line, graphs_line
from raymb.rank.interrupt import Interrupts
from raymb.run import directory as directories
from raymb.run import mirror
from raymb.run.job import Job, with_absolute_paths
from raymb.run.mirror import pushing
from raymb.run.remote_lock import RemoteLock
from raymb.spec import RunSpec
from raymb.spec.duration import seconds_of
from raymb.storage.files import write_atomically
from raymb.telemetry import startup
from raymb.telemetry.monitor import Monitor
from raymb.telemetry.notebook import console_for_people

if TYPE_CHECKING:
    from raymb.driver.trainer import RaymbTrainer


def run(checked: Preflight) -> int:
    """Train. Everything that can be refused is refused before the run directory is made.

    Returns:
        the exit code: 0 finished, 75 out of --max_time, 130 interrupted.

    Raises:
        UserError: the run directory or the cluster does not allow it.
        RunFailed: workers started and did not finish.
    """
    spec, console, began = checked.spec, console_for_people(), time.monotonic()
    place = directories.RunDir.of(spec, run_name(checked))
    if has_finished(checked, place):
        console.print(f"{place.path} has finished {checked.plan.train_iters} steps; raise --train_iters to train on")
        return EXIT_OK

    startup.begin(startup.RAY)
    with ExitStack() as stack:
        cluster = stack.enter_context(connect(spec, console))
        startup.begin(startup.LAYOUT)
        backend = cluster.backend(spec.run.backend)
        cluster.check_profiler(spec.performance.profiler, backend)
        # What kind of GPUs there are is known only when nodes have come: the layout is chosen after that.
        sizes = checked.plan.elastic or [checked.plan.layout.num_workers]
        resources, held = _reserved(cluster, backend, sizes, checked.plan, spec, console)
        kernels = family_of(checked.shape.architecture).kernels if backend == "cuda" else {}
        if cluster.joined:
            check_nodes(checked.prepared.path.parent if place.remote is None else None, backend, kernels)
        else:
            check_packages(kernels)
        gpu = cluster.gpu(local_gpu(spec))
        if not spec.checkpoint.overwrite:
            gpu = as_planned_before(gpu, directories.read_object(place.plan) or {})
        fixed = as_packed(spec, checked.plan)
        plans = usable_plans(fixed, checked.shape, rows=checked.prepared.rows("train"), backend=backend, gpu=gpu)
        plan = plans[max(plans)]
        hints = [graphs_line(plan), better_line(plan, checked.shape, spec)]
        notes = [f"warning: {note}" for note in checked.prepared.manifest["notes"]]
        for line in filter(None, [estimate_line(plan), *hints, validation_line(checked), *notes]):
            console.print(line, highlight=False, soft_wrap=True)
        if list(plans) != sizes or _groups(plan) != _groups(checked.plan):
            held.withdraw()
            resources, held = _reserved(cluster, backend, list(plans), plan, spec, console)
        owned = stack.enter_context(_claimed(place, checked, plan, console))
        with pushing(place, console.print, lost=owned.lost):
            write_atomically(place.data, json.dumps(_data(checked), indent=2) + "\n")
            start = Start(checked, plans, cluster, backend, place, console, began, owned.lost)
            while isinstance(ended := _started(start, resources, held), Start):
                start = ended
                resources, held = _reserved(cluster, backend, list(start.plans), start.plan, spec, console)
            return ended


def _groups(plan: Plan) -> int:
    return plan.layout.tensor_parallel_size


def _reserved(
    cluster: Cluster, backend: str, sizes: list[int], plan: Plan, spec: RunSpec, console: Console
) -> tuple[Resources, Reservation]:
    """What each worker gets where the run has its largest size, and the places of a size that there is room for, once
    there is. Whatever ends the driver gives them back."""
    resources = cluster.resources_of_a_worker(backend, spec.cluster.cpus_per_worker, max(sizes))
    chosen = backend == "cuda" and spec.run.backend == "auto"
    way_out = "; --backend cpu trains on CPUs" if chosen else ""
    request = Request(resources.to_dict(), sorted(sizes), plan.layout.tensor_parallel_size, spec.cluster.placement)
    return resources, wait_for(request, spec.cluster.wait_for_resources, _line(console), way_out)


def _line(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def _claimed(place: directories.RunDir, checked: Preflight, plan: Plan, console: Console) -> Iterator[RemoteLock]:
    """The run directory is this driver's, on its file system and at its URI."""
    spec, owned = checked.spec, RemoteLock(place)
    owned.take(console.print)
    try:
        mirror.pull(place)
        if spec.checkpoint.overwrite:
            mirror.delete_old_run(place)
        directories.claim(place, spec, plan.to_dict(), fingerprint(checked))
        try:
            share_rows(checked.prepared.path, spec.run.storage_path)
            share_model(Path(model_path(spec)), spec.run.storage_path)
            yield owned
        finally:
            directories.release(place)
    finally:
        owned.release()


def _data(checked: Preflight) -> dict[str, Any]:
    return {"path": str(checked.prepared.path), **checked.prepared.manifest}


def job_of(
    checked: Preflight, plans: dict[int, Plan], backend: str, resources: Resources, place: directories.RunDir
) -> Job:
    """The run as every worker is told of it.

    Args:
        plans: by number of workers; the largest is the one to begin with.
    """
    return Job(
        spec=with_absolute_paths(checked.spec),
        plan=plans[max(plans)],
        plans=plans,
        backend=backend,
        architecture=checked.shape.architecture,
        vocab_size=checked.shape.vocab_size,
        model_path=model_path(checked.spec),
        data_dir=str(checked.prepared.path),
        pad_id=checked.prepared.manifest["pad_id"],
        validation_rows=checked.prepared.rows("validation"),
        test_rows=checked.prepared.rows("test"),
        run_dir=str(place.path),
        checkpoint_dir=str(place.checkpoints),
        load_dir="",
        task="train",
        hf_dir=str(place.hf),
        adapter_dir=str(place.adapter),
        log_dir=str(place.logs),
        threads=checked.spec.cluster.omp_num_threads or resources.threads,
    )


def _started(start: Start, resources: Resources, held: Reservation) -> int | Start:
    """Train with a layout. The exit code; or the start with the next layout, where that is to come."""
    plans, place = start.plans, start.place
    job = job_of(start.checked, plans, start.backend, resources, place)
    write_atomically(place.job, job.to_json())
    if len(plans) > 1:
        start_coordinator()
    if _reshape(job, start, held):
        resources, held = _reserved(
            start.cluster, start.backend, list(plans), start.plan, start.checked.spec, start.console
        )
    return _fit(job, _trainer(job, start.cluster, resources, place, held), start)


def _reshape(job: Job, start: Start, held: Reservation) -> bool:
    """Reshard the checkpoint that the run resumes from, if it is of another layout or precision: True then. What the
    training holds is given back for it."""
    cluster, place, console, lost = start.cluster, start.place, start.console, start.lost
    check_format(place.checkpoints, job.spec, RemoteCheckpoints.of_run(place))
    directory = to_reshape(job)
    if directory is None:
        return False
    held.withdraw()
    again = reshaping(job, directory)
    workers = again.layout.num_workers
    console.print(
        f"{directory} was written with {described(again)}; resharding it for {described(job)} with {workers} CPU "
        "workers",
        highlight=False,
        soft_wrap=True,
    )
    resources = cluster.resources_of_a_worker("cpu", "auto", workers)
    resources = resources.with_memory(memory_of_a_resharding_worker(again, directory))
    monitor = Monitor((trainer := _trainer(again, cluster, resources, place)).hub, again, place, console, lost)
    interrupts = Interrupts(lambda: False, 0)
    try:
        with interrupts.noted(), interrupts.ending(lost):
            trainer.fit()
    except Exception as error:
        raise_refusal(error)
        raise RunFailed(f"{directory} cannot be resharded: {reason_of(error)}", where_to_look(place)) from error
    finally:
        monitor.close()
        check_still_owned(place, lost)
    return True


def _fit(job: Job, trainer: RaymbTrainer, start: Start) -> int | Start:
    """Train, and record with which exit code the driver ends, however it ends."""
    startup.begin(startup.PLACES)
    monitor = Monitor(trainer.hub, job, start.place, start.console, start.lost)
    code: int | None = EXIT_FAILED
    try:
        code = _trained(job, trainer, start.place, start.console, start.began, monitor)
        return code
    except OutOfGpuMemory:
        if (another := start.with_less_memory()) is None:
            raise
        code = None
        monitor.give_way(*(automatic.described(one.plan.layout) for one in (start, another)))
        return another
    except RaymbError as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        raise
    finally:
        if code is not None:
            monitor.end(code)


def _trained(
    job: Job, trainer: RaymbTrainer, place: directories.RunDir, console: Console, began: float, monitor: Monitor
) -> int:
    resilience = job.spec.resilience

    def ask() -> bool:
        interrupts.grace = resilience.grace(monitor.seconds_of_a_save)
        return monitor.ask_to_stop("interrupted")

    interrupts, exporting = Interrupts(ask, resilience.grace_time), Interrupts(lambda: False, 0)
    failure: BaseException | None = None
    try:
        with (
            interrupts.noted(),
            interrupts.ending(monitor.lost),
            _asking_at(resilience.max_time, began, monitor) as out_of_time,
        ):
            result = trainer.fit()
            failure = result.error
        if failure is None and result.return_value and not monitor.lost.is_set():
            with exporting.noted(), exporting.ending(monitor.lost):
                finish_exports(result.return_value, job, monitor.hub, monitor.terminal.phase)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # Ray Train's own SIGINT handler exits
        failure = error
    finally:
        monitor.close()
    check_still_owned(place, monitor.lost)
    raise_refusal(failure)
    if isinstance(failure, RunFailed):
        raise failure
    if exporting.received:
        return say_how_to_resume("interrupted", EXIT_INTERRUPTED, job, place, console)
    if failure is not None and not (interrupts.aborted and not has_worker_failures(failure)):
        raise failed(failure, job, place, bool(interrupts.received) or out_of_time.is_set()) from failure
    if failure is None and has_ended(job, place):
        conclude(job, place, console)
        return EXIT_OK
    if interrupts.received:
        return say_how_to_resume("interrupted", EXIT_INTERRUPTED, job, place, console)
    if out_of_time.is_set():
        return say_how_to_resume(f"out of time (--max_time {resilience.max_time})", EXIT_STOPPED, job, place, console)
    conclude(job, place, console)
    return EXIT_OK


def _trainer(
    job: Job,
    cluster: Cluster,
    resources: Resources,
    place: directories.RunDir,
    held: Reservation | None = None,
) -> RaymbTrainer:
    from raymb.driver.trainer import make_trainer  # imports Ray Train, which a refusal need not wait for

    return make_trainer(job, cluster, resources, place, held)


@contextmanager
def _asking_at(max_time: str | None, began: float, monitor: Monitor) -> Iterator[threading.Event]:
    """Ask the workers to stop at --max_time; the event is set if that happens."""
    event = threading.Event()

    def ask() -> None:
        event.set()
        monitor.ask_to_stop("time")

    timer = threading.Timer(max(0.0, began + seconds_of(max_time) - time.monotonic()), ask) if max_time else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield event
    finally:
        if timer is not None:
            timer.cancel()

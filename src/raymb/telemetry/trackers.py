"""Weights & Biases and MLflow: a run's settings, metrics and end, sent by the driver.

A tracker may be slow, gone for a while or misconfigured. So each has a thread of its own, nothing waits for it during
the run. One that cannot be opened is left out with a single warning; of one that refuses a record the first refusal is
told, it is given the others, and its run is ended in any case.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymb import __version__
from raymb.errors import EXIT_OK, SpecError, last_line
from raymb.run.directory import RunDir, read_object
from raymb.spec import RunSpec, without_secrets
from raymb.storage.files import write_atomically
from raymb.telemetry.events import state_after
from raymb.telemetry.records import Metric
from raymb.telemetry.sinks import scalars

if TYPE_CHECKING:
    from raymb.run.job import Job

_SECONDS_FOR_THE_END = 60.0  # for what a tracker has not sent yet


def check_trackers(spec: RunSpec) -> None:
    """Refuse, before a GPU is taken, a tracker whose package or login is missing.

    Raises:
        SpecError: with what to install or set.
    """
    from importlib.util import find_spec

    wanted = spec.telemetry
    if wanted.wandb_project is not None:
        if find_spec("wandb") is None:
            raise SpecError(f"--wandb_project {wanted.wandb_project} needs the package wandb", "pip install wandb")
        _check_login(wanted.wandb_project)
    if wanted.mlflow_experiment is not None:
        asked = f"--mlflow_experiment {wanted.mlflow_experiment}"
        if find_spec("mlflow") is None:
            raise SpecError(f"{asked} needs the package mlflow", "pip install mlflow, or mlflow-skinny")
        uri = wanted.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "sqlite:")
        if uri.partition(":")[0].partition("+")[0] in _DATABASES and find_spec("sqlalchemy") is None:
            raise SpecError(
                f"{asked} writes into a database, which mlflow-skinny cannot",
                "pip install mlflow, or give --mlflow_tracking_uri DIRECTORY or the URI of a server",
            )


_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def _check_login(project: str) -> None:
    """W&B would ask for a key at the terminal, in the middle of a run."""
    import wandb

    mode = wandb.setup().settings.mode
    has_key = bool(wandb.api.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))
    if mode == "online" and not has_key:
        raise SpecError(
            f"--wandb_project {project}: W&B has no API key on this machine",
            "ways out: wandb login; WANDB_API_KEY; WANDB_MODE=offline keeps the run in its directory, to sync it later",
        )


def trackers(job: Job, place: RunDir, say: Callable[[str], None]) -> list[InBackground]:
    """Start the trackers that the spec names.

    Args:
        say: takes a sentence for the terminal.
    """
    wanted, services = job.spec.telemetry, []
    if job.task != "train":
        return services
    if wanted.wandb_project is not None:
        services.append(InBackground("W&B", lambda: WeightsAndBiases(job, place), say))
    if wanted.mlflow_experiment is not None:
        services.append(InBackground("MLflow", lambda: MLflow(job, place), say))
    return services


class InBackground:
    """A tracker on a thread of its own; its methods return at once, and `end` within a minute.

    Args:
        name: for people.
        make: makes the tracker, on that thread.
        say: takes a sentence: where the metrics go, or why they do not.
    """

    def __init__(self, name: str, make: Callable[[], WeightsAndBiases | MLflow], say: Callable[[str], None]):
        self.name, self.make, self.say = name, make, say
        self.calls: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"raymb-{name}", daemon=True)
        self.thread.start()

    def write(self, record: Metric) -> None:
        self.calls.put(("write", record))

    def end(self, code: int) -> None:
        """Send what is left, and with which exit code the run ended."""
        self.calls.put(("end", code))
        self.calls.put(None)
        self.thread.join(_SECONDS_FOR_THE_END)
        if self.thread.is_alive():
            self.say(f"warning: {self.name} has not taken all metrics within {_SECONDS_FOR_THE_END:g} s")

    def _run(self) -> None:
        try:
            tracker = self.make()
            self.say(f"{self.name}: {tracker.where}")
        except Exception as error:
            self.say(f"warning: the run continues without {self.name}: {_reason(error)}")
            return
        refused = 0
        for method, argument in iter(self.calls.get, None):
            try:
                getattr(tracker, method)(argument)
            except Exception as error:
                refused += 1
                if method == "end":
                    self.say(f"warning: {self.name} does not know how the run ended: {_reason(error)}")
                elif refused == 1:
                    self.say(f"warning: {self.name} is incomplete from here on: {_reason(error)}")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {last_line(error)}"


class Once:
    """Each step of a kind once: what trackers have been told they keep, so a step that is done again is left out."""

    def __init__(self) -> None:
        self.reached: dict[str, int] = {}

    def is_new(self, record: Metric) -> bool:
        kind, step = record["kind"], record["step"]
        if kind == "export" or step <= self.reached.get(kind, 0):
            return False
        self.reached[kind] = step
        return True


class WeightsAndBiases:
    """One W&B run for the whole run, over all its drivers. WANDB_MODE, WANDB_API_KEY and WANDB_BASE_URL are its own
    variables. What W&B collects by itself (command line, environment, output) is left out: it may hold secrets."""

    def __init__(self, job: Job, place: RunDir):
        import wandb

        wanted = job.spec.telemetry
        asked = {"project": wanted.wandb_project, "entity": wanted.wandb_entity}
        former = _remembered(place, "wandb", asked)
        identity = former["id"] if former else uuid.uuid4().hex[:8]
        _remember(place, "wandb", {**asked, "id": identity})
        self.once = Once()
        self.run = wandb.init(
            project=wanted.wandb_project,
            entity=wanted.wandb_entity,
            id=identity,
            resume="allow" if wandb.setup().settings.mode == "online" else None,  # offline it would only warn
            name=place.path.name,
            dir=place.path,
            config={**_settings(job.spec), "plan": job.plan.to_dict(), "raymb": __version__},
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.once.reached = dict.fromkeys(("train", "validation", "test"), self.run.starting_step - 1)

    @property
    def where(self) -> str:
        if self.run.offline:
            return f"offline; wandb sync {Path(self.run.dir).parent} sends it"
        return str(self.run.url)

    def write(self, record: Metric) -> None:
        if self.once.is_new(record):
            self.run.log(scalars(record), step=record["step"])

    def end(self, code: int) -> None:
        try:
            self.run.summary["state"] = state_after(code)
        finally:
            self.run.finish(exit_code=code)


class MLflow:
    """One MLflow run for the whole run, over all its drivers. MLFLOW_TRACKING_TOKEN and the like are its own variables.

    Metrics are sent once a second at most.
    """

    def __init__(self, job: Job, place: RunDir):
        from mlflow import MlflowClient

        wanted = job.spec.telemetry
        uri = wanted.mlflow_tracking_uri
        if uri is not None and uri.partition("://")[0] in ("file", uri):  # else MLflow 3 refuses to write files
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client, self.once = MlflowClient(uri), Once()
        self.waiting: list[Any] = []
        self.sent = time.monotonic()
        asked = {"experiment": wanted.mlflow_experiment}
        former = _remembered(place, "mlflow", asked)
        found = self._former_run(former["id"]) if former else None
        self.run_id = found or self._new_run(str(wanted.mlflow_experiment), job, place)
        _remember(place, "mlflow", {**asked, "id": self.run_id})
        self.client.set_tag(self.run_id, "raymb.state", "running")

    @property
    def where(self) -> str:
        return f"run {self.run_id} in {self.client.get_run(self.run_id).info.artifact_uri}"

    def write(self, record: Metric) -> None:
        from mlflow.entities import Metric

        if self.once.is_new(record):
            at = int(record["time"] * 1000)
            self.waiting += [Metric(name, value, at, record["step"]) for name, value in scalars(record).items()]
        if time.monotonic() - self.sent >= 1.0:
            self._send()

    def end(self, code: int) -> None:
        status = "FINISHED" if code == EXIT_OK else "FAILED" if state_after(code) == "failed" else "KILLED"
        try:
            self._send()
            self.client.set_tag(self.run_id, "raymb.state", state_after(code))
        finally:
            self.client.set_terminated(self.run_id, status)

    def _send(self) -> None:
        """What is refused waits for the next time: a server may be away for a while."""
        self.sent = time.monotonic()
        while self.waiting:
            self.client.log_batch(self.run_id, metrics=self.waiting[:1000])  # more at once is refused
            del self.waiting[:1000]

    def _former_run(self, run_id: str) -> str | None:
        """The run of an earlier driver, resumed; None if somebody has deleted it."""
        from mlflow.exceptions import MlflowException

        try:
            if self.client.get_run(run_id).info.lifecycle_stage != "active":
                return None
        except MlflowException:
            return None
        self.client.update_run(run_id, status="RUNNING")
        for kind in ("train", "validation", "test"):
            steps = [metric.step for metric in self.client.get_metric_history(run_id, f"{kind}/loss")]
            self.once.reached[kind] = max(steps, default=0)
        return run_id

    def _new_run(self, experiment: str, job: Job, place: RunDir) -> str:
        from mlflow.entities import Param

        found = self.client.get_experiment_by_name(experiment)
        home = found.experiment_id if found else self.client.create_experiment(experiment)
        run_id = self.client.create_run(home, run_name=place.path.name).info.run_id
        params = [*_flat(_settings(job.spec)), *_flat({"plan": job.plan.to_dict()}), ("raymb", __version__)]
        for start in range(0, len(params), 100):
            batch = [Param(name, str(value)[:6000]) for name, value in params[start : start + 100]]
            self.client.log_batch(run_id, params=batch)
        return run_id


def _settings(spec: RunSpec) -> dict[str, Any]:
    """The resolved spec, as plain data and without secrets."""
    return without_secrets(spec).model_dump(mode="json")


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`a.b` and its value for every leaf; empty mappings and what is not set have none."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        elif value not in (None, []):
            yield f"{above}{name}", value


def _remembered(place: RunDir, tracker: str, asked: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of an earlier driver's run there, if it was of the same project."""
    former = (read_object(place.trackers) or {}).get(tracker)
    return former if former and asked.items() <= former.items() else None


def _remember(place: RunDir, tracker: str, known: dict[str, Any]) -> None:
    with _FILE:
        content = {**(read_object(place.trackers) or {}), tracker: known}
        write_atomically(place.trackers, json.dumps(content, indent=2) + "\n")


_FILE = threading.Lock()

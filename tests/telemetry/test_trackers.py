"""W&B and MLflow for real: written offline by their own packages and read back with their own readers."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymb.errors import SpecError
from raymb.run.directory import RunDir
from raymb.spec import load_spec
from raymb.telemetry.trackers import InBackground, check_trackers, trackers

SECRET = "swordfish-1234"
PLAN = {"num_workers": 2, "train_iters": 6}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login and no settings of who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


class Run:
    """The driver's side of a run that is tracked."""

    def __init__(self, home: Path, **flags: str):
        given = {"hf_model_path": "some/model", "storage_path": str(home), "experiment_name": "run"}
        env = {"HF_TOKEN": SECRET, "NCCL_DEBUG": "INFO"}
        self.spec = load_spec({**given, **flags, "env": env, "learning_rate": "3e-4"})
        self.place = RunDir.of(self.spec, "")
        self.place.path.mkdir(parents=True, exist_ok=True)
        self.said: list[str] = []

    def drive(self, steps: range, code: int, task: str = "train") -> None:
        """One driver: a train record a step, a validation after every second one."""
        job: Any = SimpleNamespace(spec=self.spec, plan=SimpleNamespace(to_dict=lambda: PLAN), task=task)
        services = trackers(job, self.place, self.said.append)
        for step in steps:
            for one in services:
                one.write({"kind": "train", "step": step, "time": 1.7e9 + step, "loss": 1 / step, "grad_norm": None})
                if step % 2 == 0:
                    one.write({"kind": "validation", "step": step, "time": 1.7e9 + step, "loss": 10.0 + step})
        for one in services:
            one.write({"kind": "export", "step": steps[-1], "time": 1.7e9, "error": 1e-7})
            one.end(code)

    def holds(self, text: str) -> list[Path]:
        return [
            file for file in self.place.path.parent.rglob("*") if file.is_file() and text.encode() in file.read_bytes()
        ]


def wandb_records(run: Run) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    for file in sorted(run.place.path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(bytes(data))
            yield record


def wandb_history(run: Run) -> list[dict[str, Any]]:
    rows = [record.history for record in wandb_records(run) if record.WhichOneof("record_type") == "history"]
    return [{".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows]


def test_wandb_offline_holds_every_step_the_settings_and_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, wandb_project="tuning", wandb_entity="team")
    run.drive(range(1, 5), code=75)
    run.drive(range(5, 7), code=0)
    rows = [row for row in wandb_history(run) if "train/loss" in row]
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(step, 1 / step) for step in range(1, 7)]
    assert {row["_step"]: row["validation/loss"] for row in rows if "validation/loss" in row} == {2: 12, 4: 14, 6: 16}
    records = list(wandb_records(run))
    begun = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {(one.project, one.entity, one.display_name) for one in begun} == {("tuning", "team", "run")}
    assert len({one.run_id for one in begun}) == 1, "the second driver resumes the first one's run"
    config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert config["optimizer"]["learning_rate"] == 3e-4 and config["plan"]["num_workers"] == 2
    assert config["cluster"]["env"] == {"NCCL_DEBUG": "INFO"} and run.holds(SECRET) == []
    exits = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert exits == [75, 0]
    assert [line.startswith("W&B: offline; wandb sync ") for line in run.said] == [True, True]


def test_mlflow_holds_every_step_the_settings_and_the_end(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = Run(tmp_path / "runs", mlflow_experiment="tuning", mlflow_tracking_uri=str(tmp_path / "store"))
    run.drive(range(1, 5), code=130)
    client = MlflowClient(str(tmp_path / "store"))
    experiment = client.get_experiment_by_name("tuning")
    assert experiment is not None
    (stopped,) = client.search_runs([experiment.experiment_id])
    assert (stopped.info.status, stopped.data.tags["raymb.state"]) == ("KILLED", "interrupted")
    run.drive(range(3, 7), code=0)  # a driver that was killed after its checkpoint of step 2, say
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status, found.data.tags["raymb.state"]) == ("run", "FINISHED", "finished")
    curve = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in curve] == [(step, 1 / step) for step in range(1, 7)]
    assert curve[0].timestamp == int((1.7e9 + 1) * 1000)
    assert [one.value for one in client.get_metric_history(found.info.run_id, "validation/loss")] == [12, 14, 16]
    assert found.data.params["optimizer.learning_rate"] == "0.0003" and found.data.params["plan.num_workers"] == "2"
    assert found.data.params["cluster.env.NCCL_DEBUG"] == "INFO" and run.holds(SECRET) == []


def test_a_failed_run_is_marked_and_a_deleted_one_begun_anew(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = Run(tmp_path / "runs", mlflow_experiment="tuning", mlflow_tracking_uri=str(tmp_path / "store"))
    run.drive(range(1, 3), code=1)
    client = MlflowClient(str(tmp_path / "store"))
    experiment: Any = client.get_experiment_by_name("tuning")
    (failed,) = client.search_runs([experiment.experiment_id])
    assert failed.info.status == "FAILED"
    client.delete_run(failed.info.run_id)
    run.drive(range(3, 5), code=0)
    (again,) = client.search_runs([experiment.experiment_id])
    assert again.info.run_id != failed.info.run_id and again.info.status == "FINISHED"


def test_a_tracker_that_fails_harms_nothing_and_is_told_once(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    run = Run(tmp_path / "runs", mlflow_experiment="tuning", mlflow_tracking_uri=str(blocked / "store"))
    run.drive(range(1, 5), code=0)
    (line,) = run.said
    assert line.startswith("warning: the run continues without MLflow: ")


def test_wandb_is_finished_although_it_refused_a_record(tmp_path: Path) -> None:
    run = Run(tmp_path, wandb_project="tuning")
    job: Any = SimpleNamespace(spec=run.spec, plan=SimpleNamespace(to_dict=dict), task="train")
    (service,) = trackers(job, run.place, run.said.append)
    for step in (1, 2, 3):
        loss: Any = {"loss": 1 / step} if step != 2 else {}
        wrong: Any = {"step": "two"} if step == 2 else {"step": step}
        service.write({"kind": "train", "time": 1.7e9, **wrong, **loss})
    service.end(0)
    _, refusal = run.said
    assert refusal.startswith("warning: W&B is incomplete from here on: TypeError: ")
    assert [row["train/loss"] for row in wandb_history(run) if "train/loss" in row] == [1.0, 1 / 3]
    exits = [record.exit.exit_code for record in wandb_records(run) if record.WhichOneof("record_type") == "exit"]
    assert exits == [0], "the run is finished"


def test_a_server_that_was_away_gets_what_it_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real MLflow store, whose directory is away for a while."""
    from mlflow import MlflowClient

    run, store = Run(tmp_path / "runs", mlflow_experiment="tuning", mlflow_tracking_uri=str(tmp_path / "store")), None
    job: Any = SimpleNamespace(spec=run.spec, plan=SimpleNamespace(to_dict=dict), task="train")
    (service,) = trackers(job, run.place, run.said.append)
    store = tmp_path / "store"
    for step in range(1, 7):
        service.write({"kind": "train", "step": step, "time": 1.7e9 + step, "loss": 1 / step})
        time.sleep(1.1)  # metrics are sent once a second
        if step == 2:
            store.rename(tmp_path / "away")
            store.write_text("")
        if step == 4:
            store.unlink()
            (tmp_path / "away").rename(store)
    service.end(0)
    assert len(run.said) == 2 and run.said[1].startswith("warning: MLflow is incomplete from here on: ")
    known, client = json.loads(run.place.trackers.read_text())["mlflow"], MlflowClient(str(store))
    assert [one.step for one in client.get_metric_history(known["id"], "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert client.get_run(known["id"]).info.status == "FINISHED"


def test_a_tracker_that_hangs_is_waited_for_at_the_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymb.telemetry.trackers._SECONDS_FOR_THE_END", 0.2)
    said, release = [], threading.Event()

    def hangs() -> Any:
        release.wait(30)
        raise OSError("gone")

    began = time.monotonic()
    tracker = InBackground("W&B", hangs, said.append)
    for step in range(1000):
        tracker.write({"kind": "train", "step": step})
    assert time.monotonic() - began < 0.15
    tracker.end(0)
    assert said == ["warning: W&B has not taken all metrics within 0.2 s"] and time.monotonic() - began < 5
    release.set()
    tracker.thread.join(10)


def test_a_reshaping_is_not_tracked(tmp_path: Path) -> None:
    run = Run(tmp_path, wandb_project="tuning", mlflow_experiment="tuning")
    run.drive(range(1, 3), code=0, task="reshape")
    assert run.said == [] and not run.place.trackers.exists()


def _spec(**flags: str) -> Any:
    return load_spec({"hf_model_path": "some/model", **flags})


@pytest.mark.parametrize(
    ("missing", "flags", "message"),
    [
        ("wandb", {"wandb_project": "p"}, "--wandb_project p needs the package wandb\n  pip install wandb"),
        ("mlflow", {"mlflow_experiment": "e"}, "--mlflow_experiment e needs the package mlflow"),
        ("sqlalchemy", {"mlflow_experiment": "e"}, "--mlflow_experiment e writes into a database"),
    ],
)
def test_a_missing_package_is_named_before_anything_starts(
    missing: str, flags: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(SpecError) as caught:
        check_trackers(_spec(**flags))
    assert message in str(caught.value)


def test_wandb_without_a_login_is_refused_before_it_could_ask_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    check_trackers(_spec(wandb_project="p"))  # offline
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    with pytest.raises(SpecError, match="W&B has no API key on this machine"):
        check_trackers(_spec(wandb_project="p"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    check_trackers(_spec(wandb_project="p"))
    wandb.teardown()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"wandb_entity": "team"}, "--wandb_entity says where, and nothing is sent without --wandb_project"),
        ({"mlflow_tracking_uri": "dir"}, "--mlflow_tracking_uri says where, and nothing is sent without"),
        (
            {"mlflow_experiment": "e", "mlflow_tracking_uri": f"http://me:{SECRET}@host"},
            "--mlflow_tracking_uri: a password or token in the URI would be stored",
        ),
    ],
)
def test_flags_that_contradict_each_other(flags: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _spec(**flags)
    assert message in str(caught.value) and SECRET not in str(caught.value)


def test_not_a_number_is_sent(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = Run(tmp_path / "runs", mlflow_experiment="tuning", mlflow_tracking_uri=str(tmp_path / "store"))
    job: Any = SimpleNamespace(spec=run.spec, plan=SimpleNamespace(to_dict=dict), task="train")
    (tracker,) = trackers(job, run.place, run.said.append)
    tracker.write({"kind": "train", "step": 1, "time": 1.0, "loss": math.nan})
    tracker.end(0)
    client = MlflowClient(str(tmp_path / "store"))
    known = json.loads(run.place.trackers.read_text())["mlflow"]
    assert math.isnan(client.get_metric_history(known["id"], "train/loss")[0].value)

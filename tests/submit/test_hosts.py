"""What runs on the nodes of a job, as far as it starts no Ray: test_real.py does."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from raymb.spec import RunSpec
from raymb.submit import node
from raymb.submit.sagemaker_host import channels_of, hosts_of, sections_of, take_export


def test_the_hosts_of_sagemaker(tmp_path: Path) -> None:
    toolkit = {"SM_HOSTS": '["algo-2", "algo-1"]', "SM_CURRENT_HOST": "algo-2"}
    assert hosts_of(toolkit, tmp_path) == ("algo-2", ["algo-1", "algo-2"])
    config = tmp_path / "input/config/resourceconfig.json"
    assert hosts_of({}, tmp_path) == ("127.0.0.1", ["127.0.0.1"])
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}))
    assert hosts_of({}, tmp_path) == ("algo-1", ["algo-1", "algo-2"])


def test_channels_stand_for_data_that_no_flag_names(tmp_path: Path) -> None:
    (tmp_path / "input/data/model").mkdir(parents=True)
    channels = channels_of({"SM_CHANNEL_TRAIN": "/rows", "SM_CHANNEL_VALIDATION": "/held-out"}, tmp_path)
    assert channels == {"model": str(tmp_path / "input/data/model"), "train": "/rows", "validation": "/held-out"}
    asked = {"data": json.dumps({"validation_dataset": "mine.jsonl"}), "sagemaker_program": "x"}
    sections = sections_of(asked, channels, tmp_path, hosts=1)
    spec = RunSpec.model_validate(sections)
    assert spec.model.hf_model_path == channels["model"]
    assert (spec.data.dataset, spec.data.validation_dataset) == (["/rows"], "mine.jsonl")
    assert spec.run.storage_path == str(tmp_path / "checkpoints")
    assert "storage_path" not in sections_of(asked, channels, tmp_path, hosts=2)["run"]


@pytest.mark.parametrize("channels", [["training"], ["train", "training"], ["train"]])
def test_the_channel_that_the_sdk_names_itself(channels: list[str], tmp_path: Path) -> None:
    found = channels_of({f"SM_CHANNEL_{name.upper()}": f"/{name}" for name in channels}, tmp_path)
    sections = sections_of({"model": json.dumps({"hf_model_path": "m"})}, found, tmp_path, hosts=1)
    assert RunSpec.model_validate(sections).data.dataset == [f"/{name}" for name in channels]


@pytest.mark.parametrize("kept_at", ["directory", "uri"])
@pytest.mark.parametrize("names", [["hf"], ["adapter"], ["hf", "adapter"]])
def test_what_was_exported_is_the_root_of_sagemakers_model(
    names: list[str], kept_at: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = str(tmp_path / "runs")
    if kept_at == "uri":
        storage = f"{request.getfixturevalue('s3')}/runs"
        request.getfixturevalue("monkeypatch").setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    import fsspec

    filesystem, root = fsspec.url_to_fs(storage)
    for name in names:
        for file in ("config.json", "original/params.json"):
            filesystem.makedirs(f"{root}/job/{name}/{file}".rpartition("/")[0], exist_ok=True)
            filesystem.pipe(f"{root}/job/{name}/{file}", name.encode())
    (tmp_path / "model").mkdir()  # SageMaker makes it
    run = {"storage_path": storage, "experiment_name": "job"}
    take_export({"model": {"hf_model_path": "a"}, "run": run}, tmp_path / "model")
    places = dict(zip(["", "adapter/"], names, strict=False))
    assert {
        path.relative_to(tmp_path / "model").as_posix(): path.read_text()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    } == {f"{place}{file}": name for place, name in places.items() for file in ("config.json", "original/params.json")}


def test_a_head_waits_until_its_own_name_is_known(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "SECONDS_FOR_THE_HEAD", 1.0)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert node.lead("never.invalid", 6379, [], ["true"]) == 1
    said = capfd.readouterr().err
    assert "never.invalid, the head's own name, is not known to DNS here after 1 s" in said
    known, real = [OSError("not yet"), OSError("not yet")], socket.gethostbyname

    def later(host: str) -> str:
        if known:
            raise known.pop()
        return real("localhost")

    monkeypatch.setattr(node.socket, "gethostbyname", later)
    assert node._address_of("head-0", 30) == "127.0.0.1" and not known


def test_a_node_whose_head_never_comes_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "SECONDS_FOR_THE_HEAD", 0.1)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert node.follow("127.0.0.1", closed.getsockname()[1], []) == 1

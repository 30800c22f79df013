"""What is known to keep Ray from starting is said before it is tried, by finetune and by doctor."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from raymb.cli import main
from raymb.doctor.environment import check_ray_start
from raymb.driver.cluster import Cluster, connect
from raymb.driver.ray_start import check_start, obstacles
from raymb.errors import ClusterError
from raymb.spec import load_spec

SOURCE = str(Path(__file__).parents[2] / "src")
NOBODY = 65534


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as place:
        yield Path(place)


def refusal(**flags: str) -> str:
    """What connecting is refused with, without a Ray that starts."""
    with pytest.raises(ClusterError) as refused, connect(load_spec({"hf_model_path": "sample", **flags}), Console()):
        pass
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_a_long_directory_for_sockets(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long := short / ("l" * 40)))
    said = refusal(ray_address="local")
    assert f"{long} is too long for Ray's sockets" in said and "export RAY_TMPDIR=/tmp/ray-$USER" in said
    (finding,) = check_ray_start()
    assert (finding.status, finding.said) == ("error", said.splitlines()[0])
    check_start(own=False)  # a cluster that is joined has its own
    assert [one.status for one in check_ray_start(joins=True)] == ["warning"]
    room = int(said.splitlines()[0].rpartition(" ")[2])
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'l' * (room - len('/tmp/'))}")  # counts before TMPDIR
    assert list(obstacles()) == []
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'l' * (room - len('/tmp/') + 1)}")
    assert len(list(obstacles())) == 1


def test_the_limit_is_rays_own(short: Path) -> None:
    """Ray's socket of the longest directory that is let through is one that Linux takes, and of the next is not."""
    import socket

    from raymb.driver.ray_start import _LONGEST_SOCKET

    for length, works in ((_LONGEST_SOCKET, True), (_LONGEST_SOCKET + 1, False)):
        name = str(short / ("s" * (length - len(str(short)) - 1)))
        with socket.socket(socket.AF_UNIX) as one:
            if works:
                one.bind(name)
            else:
                with pytest.raises(OSError, match="AF_UNIX path too long"):
                    one.bind(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_of_another_user(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "ray").mkdir(mode=0o755)
    short.chmod(0o755)
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    check_start(own=True)
    os.seteuid(NOBODY)
    try:
        said = refusal(ray_address="local")
        (finding,) = check_ray_start()
    finally:
        os.seteuid(0)
    assert f"Ray cannot write {short}/ray: Permission denied ({short}/ray belongs to root)" in said
    assert finding.status == "error" and "RAY_TMPDIR" in finding.fix


def test_a_file_where_the_directory_should_be(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "ray").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert f"Ray cannot write {short}/ray: Not a directory" in refusal(ray_address="local")


@pytest.mark.parametrize("value", ["0", "false"])
def test_the_old_ray_train_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", value)
    assert f"RAY_TRAIN_V2_ENABLED={value}: raymb trains with Ray Train V2\n  unset" in refusal(ray_address="local")
    assert [one.status for one in check_ray_start()] == ["error"]
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    assert [one.status for one in check_ray_start()] == ["ok"]


def test_the_address_of_a_job_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    server = "http://head.example:8265"
    monkeypatch.setenv("RAY_ADDRESS", server)
    for said in (refusal(), refusal(ray_address=server)):
        assert f"{server} is the address of a job server" in said
        assert f"raymb submit ray --address {server}" in said and "--ray_address head.example:6379" in said
    main(["doctor", "--storage_path", "/tmp", "--json"])
    assert "is the address of a job server" in capsys.readouterr().out


def test_uv_run_changes_no_worker() -> None:
    """Ray's own switch, as Ray reads it; a user's own word counts."""
    code = (
        "from raymb.cli import main; import sys; assert 'ray' not in sys.modules; main(['--version']);"
        "from ray._private import ray_constants; print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    )
    for given, expected in (({}, "False"), ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, "True")):
        own = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}
        words, env = [sys.executable, "-c", code], {**own, "PYTHONPATH": SOURCE, **given}
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=True)
        assert done.stdout.split()[-1] == expected


def test_gpus_of_a_machine_with_few_cpus_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 8.0})
    assert Cluster(joined=False).resources_of_a_worker("cuda", "auto", 8).cpus == 0.25
    assert Cluster(joined=True).resources_of_a_worker("cuda", "auto", 8).cpus == 1.0

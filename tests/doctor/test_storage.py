"""Room on disks, and storage that cannot be written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raymb.doctor.machine import Disk, Machine, disk_of, from_dict, this_machine
from raymb.doctor.storage import check_disks, check_storage_path, room_for_a_run

GIB = 1 << 30


def with_disk(machine: Machine, name: str, total: float, free: float) -> Machine:
    return replace(machine, disks={**machine.disks, name: Disk("/place", int(total * GIB), int(free * GIB))})


@pytest.fixture
def roomy(here: Machine) -> Machine:
    for name in ("storage", "temp", "shm"):
        here = with_disk(here, name, 1000, 900)
    return here


@pytest.mark.parametrize(
    ("disk", "total", "free", "parameters", "status", "said"),
    [
        ("storage", 1000, 800, 7_000_000_000, "ok", "800 of 1,000 GiB free at /place"),
        ("storage", 1000, 100, 7_000_000_000, "error", "2 checkpoints and an export of 7B parameters take 196"),
        ("storage", 1000, 1, None, "warning", "0.5B parameters"),
        ("temp", 1000, 10, None, "error", "99% full, and Ray stops starting tasks at 95%"),
        ("shm", 0.0625, 0.0625, None, "warning", "/dev/shm has 0.062 GiB"),
    ],
)
def test_room(
    roomy: Machine, disk: str, total: float, free: float, parameters: int | None, status: str, said: str
) -> None:
    found = list(check_disks(with_disk(roomy, disk, total, free), parameters))
    hit = [finding for finding in found if said in finding.said]
    assert [finding.status for finding in hit] == [status]
    assert bool(hit[0].fix) == (status != "ok")
    assert all(finding.status == "ok" for finding in found if finding not in hit)


def test_a_run_of_7b_parameters_takes_two_checkpoints_and_an_export() -> None:
    assert room_for_a_run(7_000_000_000) == 7_000_000_000 * (2 * (2 + 4 + 8) + 2)


@pytest.mark.parametrize("path", ["/proc/nowhere", "/dev/null/runs"])
def test_storage_that_cannot_be_written(path: str) -> None:
    (found,) = check_storage_path(path)
    assert found.status == "error" and "--storage_path" in found.fix


def test_storage_that_can(tmp_path: Path) -> None:
    assert [finding.status for finding in check_storage_path(str(tmp_path / "not" / "yet"))] == ["ok"]
    assert list(tmp_path.iterdir()) == []
    assert disk_of(tmp_path / "not" / "yet").path == str(tmp_path)


def test_an_address_that_nobody_answers_at(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = check_storage_path("nosuchprotocol://bucket/prefix")
    assert found.status == "error" and "nosuchprotocol" in found.said


def test_a_machine_survives_json(here: Machine, tmp_path: Path) -> None:
    import json
    from dataclasses import asdict

    machine = this_machine(str(tmp_path))
    assert from_dict(json.loads(json.dumps(asdict(machine)))) == machine

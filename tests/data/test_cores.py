"""Processes for preparation: as many as affinity and control groups allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymb.data.cores import usable_cores, usable_cpus

GIB = 1 << 30


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000"}, 16),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/pod/me\n", {"pod/cpu.max": "300000 100000", "pod/me/cpu.max": "max 100000"}, 3),
        ("0::/pod/me\n", {"other/cpu.max": "300000 100000"}, 16),
        ("0::/\n", {"memory.max": f"{6 * GIB}", "cpu.max": "max 100000"}, 6),
        ("0::/\n", {"memory.max": "max"}, 16),
        (
            "4:cpu,cpuacct:/me\n2:memory:/me\n1:name=systemd:/me\n",
            {"cpu,cpuacct/me/cpu.cfs_quota_us": "500000", "cpu,cpuacct/me/cpu.cfs_period_us": "100000"},
            5,
        ),
        (
            "4:cpu,cpuacct:/\n2:memory:/\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": f"{3 * GIB}",
            },
            3,
        ),
        ("2:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 16),
        ("", {"cpu.max": "100000 100000"}, 16),
    ],
)
def test_limits(own: str, files: dict[str, str], cores: int, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    assert usable_cores(tmp_path / "groups", tmp_path / "own") == cores


def test_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3})
    assert usable_cores(tmp_path, tmp_path / "none") == 1


def test_memory_limits_processes_and_no_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert (usable_cpus(tmp_path, tmp_path / "own"), usable_cores(tmp_path, tmp_path / "own")) == (16, 2)
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert (usable_cpus(tmp_path, tmp_path / "own"), usable_cores(tmp_path, tmp_path / "own")) == (2.5, 2)

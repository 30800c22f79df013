"""Which Ray cluster a command uses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymb.driver.ray_address import RayAddress, find_ray, init_argument, joins_a_cluster, latest_cluster


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Ray's directory of temporary files, in which no cluster is noted."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path


@pytest.fixture
def alive() -> Iterator[str]:
    """An address at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def note(home: Path, address: str) -> None:
    (home / "ray" / "ray_current_cluster").write_text(address)


@pytest.mark.parametrize(
    ("asked", "variable", "address"),
    [
        ("a:1", "b:2", "a:1"),
        (None, "b:2", "b:2"),
        ("local", "b:2", None),
        (None, "local", None),
        ("auto", None, "auto"),
        ("auto", "b:2", "b:2"),
        ("auto", "local", None),
        (None, "auto", "auto"),
        (None, "", None),
        (None, None, None),
    ],
)
def test_the_flag_comes_before_the_variable(
    home: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, variable: str | None, address: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert find_ray(asked) == RayAddress(address)
    assert joins_a_cluster(asked) == (address is not None)


@pytest.mark.parametrize("asked", [None, "auto"])
def test_the_cluster_that_runs_on_this_machine_is_joined(home: Path, alive: str, asked: str | None) -> None:
    note(home, alive)
    assert find_ray(asked) == RayAddress(alive)
    assert find_ray("local") == RayAddress(None)


def test_ray_finds_by_itself_the_cluster_that_it_has_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows a token to no other one."""
    note(home, "10.0.0.5:6379")
    assert [init_argument(address) for address in ("10.0.0.5:6379", "10.0.0.6:6379", "auto")] == [
        None,
        "10.0.0.6:6379",
        "auto",
    ]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.6:6379")  # which Ray would take before its note
    assert init_argument("10.0.0.5:6379") == "10.0.0.5:6379"


def test_the_note_of_a_dead_cluster_is_no_error(home: Path, alive: str) -> None:
    note(home, "127.0.0.1:1")
    assert find_ray(None) == RayAddress(None, stale="127.0.0.1:1")
    assert not joins_a_cluster(None)


@pytest.mark.parametrize("variables", [{"RAY_TMPDIR": "x"}, {"TMPDIR": "y"}, {"RAY_TMPDIR": "x", "TMPDIR": "y"}])
def test_the_note_is_where_ray_has_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str]
) -> None:
    """Fails when Ray moves it: raymb reads the file without importing Ray."""
    from ray._private.utils import read_ray_address, write_ray_address

    monkeypatch.delenv("RAY_TMPDIR")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
        (tmp_path / value / "ray").mkdir(parents=True)
    write_ray_address("10.0.0.5:6379")
    assert latest_cluster() == read_ray_address() == "10.0.0.5:6379"

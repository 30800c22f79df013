"""Ranks, relays and a hub as real Ray actors, and 256 ranks as scripts/bench-hub simulates them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from raymb.telemetry.hub import Hub, Receiver, Sender
from raymb.worker import _relay

ROOT = Path(__file__).parents[2]
SECONDS = 60.0  # after which something hangs


@pytest.fixture
def hub(node: str) -> Any:
    return Hub.remote()  # pyright: ignore[reportAttributeAccessIssue]


def _until(condition: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def _process_of(actor: Any) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


class Run:
    """Senders of ranks that have a relay, and what their driver hears."""

    def __init__(self, hub: Any, node: str, ranks: int):
        self.steps: dict[int, list[int]] = {rank: [] for rank in range(ranks)}
        self.receiver = Receiver(hub, self._hears)
        self.senders = [Sender(hub, relay=hub.relay.remote(node, ranks, 2)) for _ in range(ranks)]

    def _hears(self, record: Any) -> None:
        if record is not None:
            self.steps[record["copy"]].append(record["step"])

    def goes_to(self, step: int, begin: int = 0) -> None:
        for number in range(begin, step):
            for rank, sender in enumerate(self.senders):
                sender.emit({"kind": "part", "step": number, "copy": rank})  # type: ignore[typeddict-item]
            time.sleep(0.02)

    def ends_whole(self, step: int) -> None:
        for sender in self.senders:
            sender.close()
        self.receiver.close()
        assert self.steps == {rank: list(range(step)) for rank in self.steps}, "each record once, in order"


def test_the_ranks_of_a_node_share_a_relay_which_ends_with_them(hub: Any, node: str) -> None:
    first, second = (ray.get(hub.relay.remote(node, 2, 2)) for _ in range(2))
    other = ray.get(hub.relay.remote(node, 1, 2))
    assert first._actor_id == second._actor_id != other._actor_id, "a later start has one of its own"
    run = Run(hub, node, 2)
    _until(lambda: all(sender.to is not hub for sender in run.senders))
    run.goes_to(20)
    process = _process_of(run.senders[0].to)
    assert process == _process_of(run.senders[1].to) != _process_of(hub)
    run.ends_whole(20)
    assert os.path.exists(f"/proc/{process}")
    run.senders.clear()
    _until(lambda: not os.path.exists(f"/proc/{process}"))


@pytest.mark.parametrize(("ranks", "nodes"), [(4, 0), (5, 2), (8, 2), (9, 3)])
def test_a_run_on_one_node_has_no_relay(node: str, ranks: int, nodes: int) -> None:
    asked: list[tuple[Any, ...]] = []
    hub = SimpleNamespace(relay=SimpleNamespace(remote=lambda *given: asked.append(given)))
    context = SimpleNamespace(get_local_world_size=lambda: 4, get_world_size=lambda: ranks)
    _relay(hub, context)
    assert asked == ([(node, 4, nodes)] if nodes else [])


def test_a_relay_that_is_killed_takes_no_record_with_it(hub: Any, node: str) -> None:
    run = Run(hub, node, 3)
    _until(lambda: all(sender.to is not hub for sender in run.senders))
    relay = run.senders[0].to
    run.goes_to(20)
    os.kill(_process_of(relay), signal.SIGKILL)
    run.goes_to(60, begin=20)
    run.ends_whole(60)
    assert all(sender.to is hub for sender in run.senders)
    with pytest.raises(ActorDiedError):
        ray.get(relay.receive.remote([]))


def test_a_hub_and_a_relay_that_are_frozen_for_a_while_lose_nothing(hub: Any, node: str) -> None:
    run = Run(hub, node, 3)
    _until(lambda: all(sender.to is not hub for sender in run.senders))
    run.goes_to(10)
    for begin, actor in ((10, hub), (40, run.senders[0].to)):
        process = _process_of(actor)
        os.kill(process, signal.SIGSTOP)
        run.goes_to(begin + 30, begin=begin)
        os.kill(process, signal.SIGCONT)
    run.ends_whole(70)


def test_256_ranks_are_heard_in_time_and_nothing_is_lost() -> None:
    """The script fails where a record is lost, or one takes 2 s."""
    command = [sys.executable, str(ROOT / "scripts" / "bench_hub.py"), "--seconds", "6", "--no_agreement", "256"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("| ").split("|")]
    # Six parts of steps a rank, a validation that begins and ends, and what it does at first.
    assert row[:2] + row[3:6] == ["256", "32", str(256 * (6 + 2 + 1)), "0", "0"]

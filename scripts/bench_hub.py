"""What scripts/bench-hub runs.

Every rank is a data parallel copy: it has a part of each step, a step a second, all ranks at once, and tells that it
validates and trains again after every fifth one. Half-way the driver asks the ranks to stop. At the end as many ranks
agree on a last step over a real store, on threads that have waited in it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any, cast

import ray
import tensorboardX  # noqa: F401 - else the first size pays for the import
from rich.console import Console

from raymb.rank.stopping import StopTogether
from raymb.run.directory import RunDir
from raymb.spec import load_spec
from raymb.telemetry.hub import Hub, Relay, Sender, seconds_between_messages
from raymb.telemetry.monitor import Monitor
from raymb.telemetry.sinks import read_metrics

RANKS_OF_A_NODE, NODES_OF_A_PROCESS = 8, 128
MOST_ACTORS = 8
"""Relays that are actors of their own; more of them are objects in the ranks' processes."""
MOST_LAG = 2.0
STEPS_BETWEEN_VALIDATIONS, SECONDS_OF_ONE = 5, 0.5
TURNS = 5  # of a process for its ranks' senders, each of which has its turn four times a second
SECONDS_TO_END = 30.0
COLUMNS = (
    *("ranks", "nodes", "messages/s", "records", "lost", "twice", "lag median", "p99", "worst", "a command"),
    *("CPU driver", "CPU hub", "all agree"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-hub")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--no_agreement", action="store_true", help="leave out the last column, which imports torch")
    parser.add_argument("sizes", metavar="RANKS[/NODES]", nargs="*", default=["64", "512", "4096"])
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection to one store for each rank
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    good = True
    for ranks, _, nodes in (size.partition("/") for size in given.sizes):
        figures = Figures(int(ranks), int(nodes or max(1, int(ranks) // RANKS_OF_A_NODE)), given.seconds)
        _measure(figures, agreement=not given.no_agreement)
        print("| " + " | ".join(figures.row()) + " |", flush=True)
        good = good and figures.are_good()
    sys.exit(0 if good else 1)


@dataclass
class Figures:
    """Of one size. CPU is seconds a second; steps are those that the driver has written, a step a second."""

    ranks: int
    nodes: int
    seconds: int
    steps: int = 0
    sent: int = 0
    messages: float = 0.0
    command: float = 0.0
    driver: float = 0.0
    hub: float = 0.0
    agree: float = float("nan")
    lags: dict[tuple[int, int], float] = field(default_factory=dict)
    twice: int = 0

    def row(self) -> list[str]:
        lags = list(self.lags.values())
        seconds = median(lags), quantiles(lags, n=100)[98], max(lags), self.command
        shares = (f"{cpu:.3f}" for cpu in (self.driver, self.hub))
        counts = f"{self.messages:.0f}", str(self.sent), str(self.sent - len(lags)), str(self.twice)
        times = (f"{value:.2f} s" for value in seconds)
        return [str(self.ranks), str(self.nodes), *counts, *times, *shares, f"{self.agree:.2f} s"]

    def are_good(self) -> bool:
        whole = len(self.lags) == self.sent and not self.twice and self.steps == self.seconds
        return whole and max(self.lags.values()) < MOST_LAG and 0 <= self.command < MOST_LAG


class CountingHub(Hub.__ray_metadata__.modified_class):  # pyright: ignore
    """The hub, and what it did."""

    messages = 0

    def receive(self, batches: list[Any]) -> dict[str, int]:
        self.messages += 1
        return super().receive(batches)

    def figures(self) -> tuple[int, float]:
        return self.messages, time.process_time()


class Driver(Monitor):
    """The driver's telemetry, and what arrives there when."""

    def __init__(self, figures: Figures, *given: Any):
        self.figures = figures
        super().__init__(*given)

    def _handle(self, record: Any) -> None:
        super()._handle(record)
        if record is not None:
            rank, number, sent = record["mark"]
            self.figures.twice += (rank, number) in self.figures.lags
            self.figures.lags[rank, number] = time.time() - sent


class Machines:
    """Nodes of one process: their relays, and their ranks' senders."""

    def __init__(self, hub: Any, nodes: range, of: int, ranks: int):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.ranks = [
            rank
            for node in nodes
            for to in [hub if of == 1 else self._relay(hub, of)]
            for rank in (Rank(number, hub, to) for number in range(ranks * node // of, ranks * (node + 1) // of))
        ]

    def _relay(self, hub: Any, nodes: int) -> Any:
        period = seconds_between_messages(nodes)
        if nodes <= MOST_ACTORS:
            relay = Relay.remote(hub, period)
            ray.get(relay.receive.remote([]))
            return relay
        relay = cast(Any, Relay).__ray_metadata__.modified_class(hub, period)

        def receive(batches: list[Any]) -> Any:
            answer = asyncio.run_coroutine_threadsafe(relay.receive(batches), self.loop)
            return SimpleNamespace(future=lambda: answer)

        return SimpleNamespace(receive=SimpleNamespace(remote=receive))

    def train(self, begin: float, steps: int) -> tuple[int, float]:
        """(records, when the driver's request came)."""
        step, turn, validates = 0, 0, False
        for rank in self.ranks:
            rank.enters("step")
        while step < steps or validates or any(not rank.has_told_all() for rank in self.ranks):
            now = time.time()
            if step < steps and now >= begin + step:
                step += 1
                for rank in self.ranks:
                    rank.finishes(step)
            after = now - begin - step + 1
            if validates != (step % STEPS_BETWEEN_VALIDATIONS == 0 and step > 0 and after < SECONDS_OF_ONE):
                validates = not validates
                for rank in self.ranks:
                    rank.enters("validating" if validates else "step")
            if now > begin + steps + SECONDS_TO_END:
                break
            for rank in self.ranks[turn % TURNS :: TURNS]:
                rank.sender._turn()
            turn += 1
            time.sleep(max(0.0, now + 0.25 / TURNS - time.time()))
        return sum(rank.records for rank in self.ranks), max(rank.asked for rank in self.ranks)

    def wait_in(self, port: int, ranks: int) -> None:
        from torch._C._distributed_c10d import TCPStore

        def connect(number: int = 0) -> Any:
            return TCPStore("127.0.0.1", port, is_master=False)

        voice, numbers = connect(), [rank.number for rank in self.ranks]
        with ThreadPoolExecutor(64) as pool:  # each asks for a name of the other end, which may take its time
            stores = pool.map(connect, numbers)
            self.stops = [StopTogether(one, voice, number, ranks) for one, number in zip(stores, numbers, strict=True)]
        for stop in self.stops:
            stop.start(0)

    def ask(self) -> float:
        self.stops[0].ask("time")
        return time.monotonic()

    def agreed(self) -> float:
        for stop in self.stops:
            stop.thread.join(SECONDS_TO_END)
        assert [stop.leave_after(1) for stop in self.stops] == ["time"] * len(self.stops)
        return time.monotonic()


class Rank:
    """
    Attributes:
        records: that it has sent.
        asked: when the driver's request came.
    """

    def __init__(self, number: int, hub: Any, to: Any):
        self.number, self.phase, self.step = number, "", 0
        self.records, self.asked = 0, 0.0
        self.sender = Driven(hub, self._status, listens=number == 0)
        self.sender.to = to
        self.sender.on_command = self._hears

    def finishes(self, step: int) -> None:
        self.step = step
        counted = {"step": step, "copy": self.number, "tokens": 4096, "trained_tokens": 2048, "memory_bytes": 1 << 36}
        known = {"time": time.time(), "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-5, "step_seconds": 1.0}
        loss = {**known, "tflops_per_worker": 400.0} if self.number == 0 else {}
        self.sender.emit({"kind": "part", "mark": self._mark(), **counted, **loss})  # type: ignore[arg-type]

    def enters(self, phase: str) -> None:
        """As Progress does: at once."""
        self.phase, self.since = phase, self._mark()
        self.sender._turn()

    def has_told_all(self) -> bool:
        return not self.sender.batches and self.sender.queue.empty()

    def _mark(self) -> tuple[int, int, float]:
        self.records += 1
        return self.number, self.records, time.time()

    def _status(self) -> Any:
        place = {"rank": self.number, "node": f"node-{self.number // RANKS_OF_A_NODE}", "pid": os.getpid()}
        return {"kind": "rank", "mark": self.since, **place, "in": self.phase, "step": self.step}

    def _hears(self, command: str) -> None:
        self.asked = self.asked or time.time()


class Driven(Sender):
    """A rank's sender without its thread: the process gives it its turns."""

    def _run(self) -> None:
        pass


def _measure(figures: Figures, agreement: bool) -> None:
    ranks, nodes, seconds = figures.ranks, figures.nodes, figures.seconds
    with _driver(figures) as driver:
        count = -(-nodes // NODES_OF_A_PROCESS)
        parts = [range(nodes * part // count, nodes * (part + 1) // count) for part in range(count)]
        actor = ray.remote(num_cpus=0)(Machines)
        machines: list[Any] = [actor.remote(driver.hub, part, nodes, ranks) for part in parts]
        ray.get([one.__ray_ready__.remote() for one in machines])
        begin = time.time() + 1
        runs = [one.train.remote(begin, seconds) for one in machines]
        time.sleep(1)
        before, cpu = ray.get(driver.hub.figures.remote()), time.process_time()
        time.sleep(seconds / 2)
        asked = time.time()
        driver.ask_to_stop("time")
        time.sleep(max(0.0, begin + seconds - time.time()))
        after, figures.driver = ray.get(driver.hub.figures.remote()), (time.process_time() - cpu) / seconds
        figures.messages, figures.hub = ((one - other) / seconds for one, other in zip(after, before, strict=True))
        results = ray.get(runs)
        figures.sent, figures.command = sum(sent for sent, _ in results), max(at for _, at in results) - asked
        while len(figures.lags) < figures.sent and time.time() < begin + seconds + SECONDS_TO_END:
            time.sleep(0.1)
        figures.steps = len(read_metrics(driver.place.metrics))
        if agreement:
            figures.agree = _seconds_to_agree(machines, ranks)


def _seconds_to_agree(machines: list[Any], ranks: int) -> float:
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ray.get([one.wait_in.remote(store.port, ranks) for one in machines])
    time.sleep(1)
    asked = ray.get(machines[-1].ask.remote())
    return max(ray.get([one.agreed.remote() for one in machines])) - asked


@contextmanager
def _driver(figures: Figures) -> Iterator[Driver]:
    """The driver's telemetry, with a hub in a Ray of its own."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=40)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-hub-") as work, open(os.devnull, "w") as nowhere:
            spec = load_spec({"hf_model_path": "some/model", "storage_path": work, "experiment_name": "run"})
            place = RunDir.of(spec, "")
            Path(place.logs).mkdir(parents=True)
            layout = SimpleNamespace(data_parallel_size=figures.ranks, num_workers=figures.ranks)
            job = SimpleNamespace(spec=spec, layout=layout, train_iters=10**6, backend="cpu", task="train")
            hub = ray.remote(num_cpus=0)(CountingHub).remote()
            driver = Driver(figures, hub, job, place, Console(file=nowhere))
            yield driver
            driver.close()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()

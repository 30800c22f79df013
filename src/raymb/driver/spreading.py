"""Rows tokenized by the nodes of a Ray cluster that the run joins, a shard a task; few rows, and images, stay here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from rich.console import Console

from raymb.data.encoded import Encoded
from raymb.data.parallel import Encoders, encode, leave_out_torch
from raymb.data.settings import Settings
from raymb.data.sources import Batch, Source
from raymb.driver.environment import given_variables
from raymb.errors import ClusterError, RaymbError, last_line
from raymb.model.files import base_directory
from raymb.runtime.carried import Carried
from raymb.spec import RunSpec

_FEW = 16
"""Shards that are done here before a cluster's processes have started."""
_IN_FLIGHT = 2  # shards for each CPU, so that none waits
_ENVIRONMENT = {"env_vars": {"RAYMB_TOKENIZES": "1"}}
"""A process with an environment of its own takes no other work of the run's, for which torch would be missing."""


class SpreadEncoders(Encoders):
    """Encodes on a cluster's CPUs that are free, where they are more than this machine's."""

    def __init__(self, spec: RunSpec, settings: Settings, console: Console | None):
        super().__init__(settings, console)
        self.spec, self.cluster = spec, ExitStack()
        self.model = (spec.model.hf_model_path, spec.model.hf_revision) if spec.model.hf_revision else None
        self.cpus: int | None = None

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.cluster.close()

    def encoded(self, source: Source) -> Iterator[Encoded]:
        batches = iter(source.batches())
        head = list(islice(batches, _FEW))
        if len(head) == _FEW and not self.settings.architecture and self._free_cpus() > self.workers:
            return self._there(chain(head, batches), source.name)
        return self.here(chain(head, batches))

    def _free_cpus(self) -> int:
        """Of the whole cluster, which is joined for it; 0 where none answers."""
        if self.cpus is None:
            import ray

            from raymb.driver.cluster import connect

            try:
                self.cluster.enter_context(connect(self.spec, Console(quiet=True)))
                self.cpus = int(ray.available_resources().get("CPU", 0))
            except ClusterError as error:
                self.cpus = 0
                self._say(f"rows are tokenized on this machine alone: {error.message}")
        return self.cpus

    def _there(self, batches: Iterator[Batch], name: str) -> Iterator[Encoded]:
        """On the cluster; here where a task fails for its sake, such as on a node without this raymb."""
        import ray
        from ray.exceptions import RayError

        task = ray.remote(_encode).options(
            num_cpus=1, scheduling_strategy="SPREAD", runtime_env=_ENVIRONMENT, name="raymb tokenizes"
        )
        variables = Carried(given_variables(self.spec.cluster.env))
        waiting, nodes = deque[tuple[Any, Batch]](), set[str]()
        at_once = (self.cpus or 1) * _IN_FLIGHT
        try:
            for batch in chain(batches, [None] * at_once):
                if batch is not None:
                    waiting.append((task.remote(self.settings, self.model, batch, variables), batch))
                if waiting and (batch is None or len(waiting) >= at_once):
                    node, encoded = ray.get(waiting[0][0])
                    waiting.popleft()
                    nodes.add(node)
                    yield encoded
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, RaymbError):
                raise cause from None
            self.cpus = 0
            self._say(f"{name}: a task on the Ray cluster failed ({_in_short(cause)}); this machine goes on alone")
            left = [batch for _, batch in waiting]
            _cancel(waiting)
            yield from self.here(chain(left, batches))
        else:
            self._say(f"{name}: tokenized by {len(nodes)} node{'' if len(nodes) == 1 else 's'} of the Ray cluster")
        finally:
            _cancel(waiting)

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {last_line(error)}"[:200]


def _cancel(waiting: deque[tuple[Any, Batch]]) -> None:
    import ray

    while waiting:
        ray.cancel(waiting.popleft()[0], force=True)


def _encode(settings: Settings, model: tuple[str, str] | None, batch: Batch, variables: Carried) -> tuple[str, Encoded]:
    """(the node, what it made of the batch).

    Args:
        model: hub id and commit; None for a directory, which every node sees.
        variables: are in the environment by now, for the hub.
    """
    import ray

    leave_out_torch()
    if model is not None:
        settings = replace(settings, model_path=base_directory(*model, weights=False))
    return ray.get_runtime_context().get_node_id(), encode(settings, batch)

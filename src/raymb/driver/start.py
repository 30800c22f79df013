"""A start of a run's workers, and the one with the next layout where they run out of GPU memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from rich.console import Console

from raymb.driver.cluster import Cluster
from raymb.driver.preflight import Preflight, as_packed
from raymb.plan import Plan
from raymb.plan.automatic import settled
from raymb.plan.smaller import smaller_line, smaller_plans
from raymb.run import directory as directories


@dataclass(frozen=True)
class Start:
    """Of a run's workers, with one layout.

    Args:
        plans: by number of workers; the largest is the one to begin with.
        began: when the driver did, on the monotonic clock.
        lost: is set when another driver has taken the run over.
        second: whether another layout has run out of GPU memory.
    """

    checked: Preflight
    plans: dict[int, Plan]
    cluster: Cluster
    backend: str
    place: directories.RunDir
    console: Console
    began: float
    lost: threading.Event
    second: bool = False

    @property
    def plan(self) -> Plan:
        return self.plans[max(self.plans)]

    def with_less_memory(self) -> Start | None:
        """The start with the next layout, which is said, and written to the run's files. None where there is none, and
        after a second layout."""
        checked, rows = self.checked, self.checked.prepared.rows("train")
        fixed = as_packed(checked.spec, checked.plan)
        plans = None if self.second else smaller_plans(fixed, checked.shape, self.plans, rows)
        if plans is None:
            return None
        self.console.print(smaller_line(self.plans, plans), highlight=False, soft_wrap=True)
        plan = plans[max(plans)]
        # With its sizes in the place of `auto`: what spec.json repeats is what runs.
        checked = replace(checked, spec=settled(checked.spec, plan.layout), plan=plan)
        directories.describe(self.place, checked.spec, plan.to_dict())
        return replace(self, checked=checked, plans=plans, second=True)

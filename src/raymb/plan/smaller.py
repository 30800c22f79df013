"""The next layout of a run whose automatic one has run out of GPU memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan.automatic import ERROR, described
from raymb.plan.gpus import GIB, Gpu, gpu_named
from raymb.plan.layout import Plan, usable_plans
from raymb.plan.search import USABLE
from raymb.spec.sections import RunSpec

SHARE = 1 - ERROR
"""Of the memory that the failed layout takes by estimate, what the next one may take: what is smaller by as much as the
estimate may be wrong fits, even where all of that error was in the first one."""


def smaller_plans(spec: RunSpec, shape: ModelShape, failed: Mapping[int, Plan], rows: int) -> dict[int, Plan] | None:
    """The plans of the fastest layout that takes at most SHARE of a failed one's memory, chosen as on a GPU that has
    less. None where what the user has set leaves no such layout, and for CPU workers.

    Args:
        failed: of usable_plans.
        rows: training rows.
    """
    plan = failed[min(failed)]  # the smallest size of an elastic run has to hold the model
    if plan.chip is None or plan.memory is None:
        return None
    most = SHARE * plan.memory["total"]
    gpu = replace(plan.chip, memory=int(most / USABLE))
    try:
        plans = usable_plans(spec, shape, rows=rows, backend=plan.backend, gpu=gpu)
    except PlanError:
        return None
    found = plans[min(plans)].memory
    return plans if found is not None and found["total"] <= most else None


def smaller_line(failed: Mapping[int, Plan], plans: Mapping[int, Plan]) -> str:
    """Both layouts, and why the second one is tried."""
    before, after = (described(of[max(of)].layout) for of in (failed, plans))
    takes, instead = ((of[min(of)].memory or {})["total"] / GIB for of in (plans, failed))
    return (
        f"{before} was chosen automatically and ran out of GPU memory before the first checkpoint; starting once more "
        f"with {after}, the fastest layout that takes at most {SHARE:.0%} of its memory by estimate ({takes:.1f} GiB a "
        f"GPU instead of {instead:.1f})"
    )


def as_planned_before(gpu: Gpu | None, former: Mapping[str, Any]) -> Gpu | None:
    """The GPU as a run goes by it that is resumed: with less memory than it has, if a layout has run out of that.

    Args:
        gpu: what the workers have, where somebody knows.
        former: plan.json of the run, empty where there is none.
    """
    name, memory = former.get("gpu"), former.get("gpu_memory")
    if not memory or (gpu is not None and gpu.name != name):
        return gpu
    return replace(gpu or gpu_named(str(name)), memory=int(memory))

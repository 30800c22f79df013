"""The layout after one that has run out of GPU memory."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.plan.test_automatic import LLAMA_8B, LLAMA_405B, TINY, spec_of

from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan, usable_plans
from raymb.plan.automatic import searched, settled
from raymb.plan.gpus import GIB, gpu_named
from raymb.plan.search import SAME
from raymb.plan.smaller import SHARE, as_planned_before, smaller_line, smaller_plans
from raymb.spec.sections import RunSpec

H100 = gpu_named("h100-80gb")
FLAGS = {"num_workers": 8, "global_batch_size": 64, "seq_length": 4096}
GIVEN = {
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "virtual_pipeline_parallel_size": 1,
    "context_parallel_size": 1,
    "expert_parallel_size": 1,
    "sequence_parallel": True,
    "micro_batch_size": 1,
    "recompute": "full",
    "optimizer_offload": 0,
    "cuda_graphs": False,
}


def planned(spec: RunSpec, shape: ModelShape = LLAMA_8B, **more: Any) -> dict[int, Plan]:
    return usable_plans(spec, shape, rows=1000, **({"backend": "cuda", "gpu": H100} | more))


def total(plan: Plan) -> int:
    assert plan.memory is not None
    return plan.memory["total"]


def smaller(spec: RunSpec, shape: ModelShape = LLAMA_8B) -> tuple[dict[int, Plan], dict[int, Plan]]:
    """The plans that fail, and the next ones."""
    failed = planned(spec, shape)
    plans = smaller_plans(spec, shape, failed, 1000)
    assert plans is not None
    return failed, plans


def test_the_next_layout_is_the_fastest_of_those_that_take_enough_less() -> None:
    spec = spec_of(**FLAGS, cuda_graphs=False)
    failed, plans = smaller(spec)
    most = SHARE * total(failed[8])
    assert total(plans[8]) <= most
    # The search stops at the first way of saving that fits, so that it has to look for the smaller ones itself.
    gpu = replace(H100, memory=plans[8].gpu_memory)
    times = [one.time.total for one in searched(spec, LLAMA_8B, gpu, 8) if one.memory.total <= most]
    assert len(times) > 10 and plans[8].step_time is not None
    assert plans[8].step_time["total"] <= min(times) * (1 + SAME)
    assert plans[8].gpu == "h100-80gb" and plans[8].gpu_memory == pytest.approx(most / 0.9, rel=1e-6)
    assert f"fit into {plans[8].gpu_memory / GIB:.1f} GiB of h100-80gb" in plans[8].chosen["micro_batch_size"]


def test_both_layouts_and_the_reason_are_one_line() -> None:
    said = smaller_line(*smaller(spec_of(**FLAGS)))
    before, after = (f"{total(of[8]) / GIB:.1f}" for of in smaller(spec_of(**FLAGS)))
    assert "\n" not in said and said.endswith(
        f"takes at most 85% of its memory by estimate ({after} GiB a GPU instead of {before})"
    )


def test_what_the_user_has_set_stays() -> None:
    failed, plans = smaller(spec_of(**FLAGS, tensor_parallel_size=2, pipeline_parallel_size=2, micro_batch_size="auto"))
    for plan in (failed[8], plans[8]):
        assert (plan.layout.tensor_parallel_size, plan.layout.pipeline_parallel_size) == (2, 2)
    assert plans[8].layout != failed[8].layout


@pytest.mark.parametrize(
    ("flags", "shape", "more"),
    [
        ({**FLAGS, **GIVEN}, LLAMA_8B, {}),
        (FLAGS, LLAMA_405B, {"gpu": None}),  # even the smallest layout is too large
        ({**FLAGS, "seq_length": 64}, TINY, {}),  # all of it is CUDA's context
        (FLAGS, LLAMA_8B, {"backend": "cpu", "gpu": None}),
    ],
    ids=["everything is given", "too large", "too small", "CPU workers"],
)
def test_there_is_no_next_layout(flags: dict[str, Any], shape: ModelShape, more: dict[str, Any]) -> None:
    spec = spec_of(**flags)
    assert smaller_plans(spec, shape, planned(spec, shape, **more), 1000) is None


def test_the_sizes_of_an_elastic_run_have_the_smaller_layout_too() -> None:
    spec = spec_of(**FLAGS | {"num_workers": "8:32"})
    failed, plans = smaller(spec)
    assert all(total(plan) <= SHARE * total(failed[min(failed)]) for plan in plans.values())
    again = planned(settled(spec, plans[max(plans)].layout))
    assert {size: again[size].layout for size in plans} == {size: plan.layout for size, plan in plans.items()}


@pytest.mark.parametrize("flags", [FLAGS, FLAGS | {"tensor_parallel_size": 2}, FLAGS | {"recompute": "full"}])
def test_the_settled_spec_repeats_the_layout_where_the_gpu_has_its_whole_memory(flags: dict[str, Any]) -> None:
    failed, plans = smaller(spec_of(**flags))
    again = planned(settled(spec_of(**flags), plans[8].layout))
    assert again[8].layout == plans[8].layout != failed[8].layout
    assert again[8].gpu_memory is None


def test_a_resumed_run_is_planned_as_before() -> None:
    spec = spec_of(**FLAGS)
    _, plans = smaller(spec)
    former = json.loads(json.dumps(plans[8].to_dict()))
    assert Plan.from_dict(former) == plans[8]
    for gpu in (H100, None):  # one that nobody knows is taken for an H100
        assert make_plan(spec, LLAMA_8B, backend="cuda", gpu=as_planned_before(gpu, former)).layout == plans[8].layout


def test_other_gpus_and_other_runs_are_planned_with_all_their_memory() -> None:
    former = {"gpu": "h100-80gb", "gpu_memory": 50 * GIB}
    assert as_planned_before(gpu_named("h200"), former) == gpu_named("h200")
    assert as_planned_before(H100, {}) is H100
    assert as_planned_before(H100, {"gpu": "h100-80gb", "gpu_memory": None}) is H100
    assert as_planned_before(None, {}) is None

"""Memory of the hosts that an offloaded optimizer takes: counted, printed, chosen by, and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.plan.test_automatic import MOE_1B, QWEN_05B, QWEN_7B
from tests.plan.test_published import MODELS

from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan
from raymb.plan.automatic import searched
from raymb.plan.gpus import GIB, Gpu, gpu_named
from raymb.plan.table import print_plan
from raymb.spec import load_spec
from raymb.spec.sections import RunSpec

H100, QWEN_72B = gpu_named("h100-80gb"), MODELS["Qwen--Qwen2.5-72B"].shape
EIGHT = {"num_workers": 8, "gpus_per_node": 8, "global_batch_size": 64, "seq_length": 4096}


def spec_of(**flags: Any) -> RunSpec:
    return load_spec({"hf_model_path": "m"} | {flag: str(value) for flag, value in flags.items()})


def plan_of(shape: ModelShape, gpu: Gpu = H100, **flags: Any) -> Plan:
    return make_plan(spec_of(**flags), shape, backend="cuda", gpu=gpu)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_workers": 1, "gpus_per_node": 8},
        {"num_workers": 8, "gpus_per_node": 8},
        {"num_workers": 8, "gpus_per_node": 8, "tensor_parallel_size": 2},
        {"num_workers": 8, "gpus_per_node": 8, "tensor_parallel_size": 2, "data_parallel_size": 4},
    ],
)
def test_every_trained_number_is_on_one_host_with_16_bytes(sizes: dict[str, int]) -> None:
    """Of copies each has its part; without the distributed optimizer nothing can be offloaded."""
    plan = plan_of(QWEN_7B, optimizer_offload=1, pipeline_parallel_size=1, recompute="full", **sizes)
    assert plan.host_memory == pytest.approx(16 * QWEN_7B.parameter_count, rel=1e-3)
    half = plan_of(QWEN_7B, optimizer_offload=0.5, pipeline_parallel_size=1, recompute="full", **sizes)
    assert half.host_memory == pytest.approx(plan.host_memory / 2, abs=1)


def test_nodes_share_it_and_adapters_have_little() -> None:
    flags = {"optimizer_offload": 1, "recompute": "full", "pipeline_parallel_size": 1, "tensor_parallel_size": 4}
    four = plan_of(QWEN_7B, **flags, num_workers=16, gpus_per_node=4)
    assert four.host_memory == pytest.approx(16 * QWEN_7B.parameter_count / 4, rel=1e-3)
    assert plan_of(QWEN_7B, num_workers=1, optimizer_offload=1, peft="lora").host_memory < 1e9
    assert plan_of(QWEN_05B, num_workers=1).host_memory == 0


def test_experts_are_counted_too() -> None:
    plan = plan_of(MOE_1B, num_workers=4, expert_parallel_size=4, optimizer_offload=1, gpus_per_node=8)
    assert plan.host_memory == pytest.approx(16 * MOE_1B.parameter_count, rel=1e-2)


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, said in (({}, "about 1,083 GiB on the host"), ({"host_memory": 2000}, "about 1,083 GiB of 2,000 on")):
        spec = spec_of(**EIGHT, **flags, gpu="h100-80gb")
        print_plan(make_plan(spec, QWEN_72B, backend="cuda", gpu=H100), QWEN_72B, spec)
        assert f"memory a node {said}" in " ".join(capsys.readouterr().out.split())
    spec = spec_of(num_workers=1)
    print_plan(make_plan(spec, QWEN_05B, backend="cuda", gpu=H100), QWEN_05B, spec)
    assert "memory a node" not in capsys.readouterr().out


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(QWEN_72B, **EIGHT, host_memory=1000)
    (problem,) = caught.value.problems
    assert "takes about 1,083 GiB of memory on the host of each node, and it has 1,000 (--host_memory); " in problem
    assert "no layout of so many fits: --num_workers 16 fits (" in problem and " and --peft lora fits (" in problem
    sixteen = plan_of(QWEN_72B, **EIGHT | {"num_workers": 16}, host_memory=1000)
    assert 0 < sixteen.host_memory <= 0.8 * 1000 * GIB
    assert plan_of(QWEN_72B, **EIGHT, host_memory=1000, peft="lora").host_memory == 0


def test_a_choice_of_the_users_is_refused_for_the_host_alone() -> None:
    flags = EIGHT | {"optimizer_offload": 1, "tensor_parallel_size": 4, "recompute": "full", "micro_batch_size": 1}
    plan = plan_of(QWEN_7B, **flags, host_memory=120)  # more than 80 % of it, which the search would not take
    assert 0.8 * 120 * GIB < plan.host_memory < 120 * GIB
    with pytest.raises(PlanError, match=r"takes about 113 GiB of memory on the host of each node, and it has 100 "):
        plan_of(QWEN_7B, **flags, host_memory=100)


def test_the_search_keeps_to_what_the_host_has() -> None:
    with_host = replace(H100, host=1000 * GIB)
    found = searched(spec_of(**EIGHT), QWEN_72B, with_host, 8)
    assert not any(one.fits(with_host) for one in found) and any(one.fits(H100) for one in found)
    plenty = replace(H100, host=1400 * GIB)
    assert searched(spec_of(**EIGHT), QWEN_72B, plenty, 8)[0].fits(plenty)


def test_where_nobody_knows_nothing_is_refused_for_it() -> None:
    plan = plan_of(QWEN_72B, **EIGHT)
    assert plan.host_memory > 1000 * GIB and plan.node_memory is None
    assert Plan.from_dict(plan.to_dict()) == plan

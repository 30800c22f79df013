"""An elastic run: which sizes are usable, what is the same for all of them, and why there may be none."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS

from raymb.driver.preflight import Preflight, run_name
from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan, usable_plans
from raymb.plan.table import plan_rows
from raymb.spec import load_spec
from raymb.spec.sections import RunSpec

DENSE = ModelShape.from_config(QWEN2_4_LAYERS)
MOE = ModelShape.from_config(QWEN3_MOE_4_LAYERS)

OF_A_SIZE = {"num_workers", "data_parallel_size", "expert_data_parallel_size", "micro_batches", "memory", "step_time"}
"""Keys of a plan in which the sizes of an elastic run may differ."""


def spec_of(**flags: object) -> RunSpec:
    return load_spec({"hf_model_path": "some/model"} | {name: str(value) for name, value in flags.items()})


def plans_of(shape: ModelShape = DENSE, *, backend: str = "cpu", rows: int | None = None, **flags) -> dict[int, Plan]:
    return usable_plans(spec_of(**flags), shape, rows=rows, backend=backend)


def problems_of(shape: ModelShape = DENSE, *, rows: int | None = None, **flags: object) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plans_of(shape, rows=rows, **flags)
    return caught.value.problems


LAYOUTS: list[tuple[ModelShape, dict[str, Any]]] = [
    (DENSE, {}),
    (DENSE, {"tensor_parallel_size": 2}),
    (DENSE, {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}),
    (DENSE, {"tensor_parallel_size": 2, "context_parallel_size": 2, "packing": True}),
    (MOE, {"tensor_parallel_size": 2, "expert_parallel_size": 4}),
    (MOE, {"pipeline_parallel_size": 2, "expert_parallel_size": 2, "expert_tensor_parallel_size": 1}),
]
BATCHES = list(itertools.product((1, 6, 8, 24, 60), ("auto", 1, 2, 3)))


@pytest.mark.parametrize(("batch", "micro"), BATCHES)
@pytest.mark.parametrize(("shape", "flags"), LAYOUTS)
def test_usable_is_what_a_fixed_size_could_have(shape, flags, batch, micro):
    """Against trying every size; `auto` never makes a size unusable that another micro batch would train."""
    flags = flags | {"global_batch_size": batch, "micro_batch_size": micro}
    fixed = {}
    for size in range(3, 41):
        try:
            fixed[size] = plans_of(shape, num_workers=size, **flags)[size]
        except PlanError:
            continue
    if not fixed:
        assert all("--" in problem for problem in problems_of(shape, num_workers="3:40", **flags))
        return
    plans = plans_of(shape, num_workers="3:40", **flags)
    assert list(plans) == sorted(fixed)
    for size, plan in plans.items():
        assert (plan.layout.num_workers, plan.elastic) == (size, sorted(fixed))
        assert size == plan.layout.model_parallel_size * plan.layout.data_parallel_size
        assert batch == plan.layout.micro_batch_size * plan.layout.data_parallel_size * plan.layout.micro_batches
        assert plan.layout.micro_batch_size == min(other.layout.micro_batch_size for other in fixed.values())


@pytest.mark.parametrize(("shape", "flags"), LAYOUTS)
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_sizes_differ_in_data_parallel_and_accumulation_only(shape, flags, backend):
    plans = list(plans_of(shape, backend=backend, rows=500, num_workers="1:64", global_batch_size=64, **flags).values())
    assert len(plans) > 2
    first = {key: value for key, value in plans[0].to_dict().items() if key not in OF_A_SIZE}
    for plan in plans[1:]:
        assert {key: value for key, value in plan.to_dict().items() if key not in OF_A_SIZE} == first


def test_a_fixed_size_has_one_plan_and_todays_errors():
    assert plans_of(num_workers=4) == {4: make_plan(spec_of(num_workers=4), DENSE, backend="cpu")}
    assert plans_of(num_workers=4)[4].elastic is None
    assert [text.partition(" must")[0] for text in problems_of(num_workers=7, tensor_parallel_size=2)] == [
        "--num_workers 7"
    ]


def test_a_range_of_one_size_is_that_size():
    fixed, elastic = plans_of(num_workers=4)[4], plans_of(num_workers="4:4")[4]
    assert elastic.to_dict() == fixed.to_dict() | {"elastic": [4]}


def test_without_a_size_the_plan_is_the_largest_usable_one():
    spec = spec_of(num_workers="4:16", global_batch_size=24, tensor_parallel_size=2)
    plans = usable_plans(spec, DENSE, backend="cpu")
    assert list(plans) == [4, 6, 8, 12, 16]
    assert make_plan(spec, DENSE, backend="cpu") == plans[16]
    assert make_plan(spec, DENSE, backend="cpu", num_workers=6) == plans[6]
    for size in (10, 24):
        with pytest.raises(
            PlanError, match=rf"{size} workers are no usable size of --num_workers 4:16.*4, 6, 8, 12, 16"
        ):
            make_plan(spec, DENSE, backend="cpu", num_workers=size)
    with pytest.raises(PlanError, match="2 workers are no usable size of --num_workers 4; the usable ones: 4"):
        make_plan(spec_of(num_workers=4), DENSE, backend="cpu", num_workers=2)


@pytest.mark.parametrize(("batch", "expected", "of"), [(64, 4, 16), (24, 1, 8), (16, 1, 16)])
def test_auto_micro_batch_is_the_least_of_the_sizes_choices_and_says_so(batch, expected, of):
    plans = plans_of(num_workers="4:16", global_batch_size=batch, backend="cuda")
    assert {plan.layout.micro_batch_size for plan in plans.values()} == {expected}
    (reason,) = {plan.chosen["micro_batch_size"] for plan in plans.values()}
    assert reason.startswith(f"{expected}: one for all sizes")
    assert f"that of {of} workers is the largest power of 2" in reason


def test_a_micro_batch_that_was_given_is_kept_and_leaves_sizes_out():
    plans = plans_of(num_workers="1:8", global_batch_size=8, micro_batch_size=4)
    assert [(plan.layout.num_workers, plan.layout.micro_batches) for plan in plans.values()] == [(1, 2), (2, 1)]
    assert "micro_batch_size" not in plans[1].chosen


def test_a_backend_that_is_not_known_yet_changes_no_size():
    """The run directory's name must not change when the cluster has been asked."""
    spec = spec_of(num_workers="2:48", global_batch_size=48, pipeline_parallel_size=2)
    sizes = [list(usable_plans(spec, DENSE, backend=backend)) for backend in ("auto", "cpu", "cuda")]
    assert sizes == [sizes[0]] * 3


NONE_FITS = [
    (
        DENSE,
        {"num_workers": "5:7", "tensor_parallel_size": 4},
        ["--num_workers 5 must be a multiple of tensor x pipeline x context parallel = 4 x 1 x 1 = 4; ", "4 and 8"],
    ),
    (
        DENSE,
        {"num_workers": "5:7", "tensor_parallel_size": 2},
        ["2 x 1 x 1 = 2", "at size 6 --global_batch_size 8 must be a multiple of", "1 x 3 = 3", "4 and 8"],
    ),
    (DENSE, {"num_workers": "9:100", "global_batch_size": 8}, ["at size 9 --global_batch_size 8", "nearest is 8"]),
    (DENSE, {"num_workers": "3:3", "global_batch_size": 8}, ["1 x 3 = 3", "nearest are 2 and 4"]),
    (
        DENSE,
        {
            "num_workers": "7:8",
            "pipeline_parallel_size": 2,
            "virtual_pipeline_parallel_size": 2,
            "global_batch_size": 12,
            "micro_batch_size": 1,
        },
        ["at size 8", "3 micro-batches of a step", "nearest are 6 and 12"],
    ),
    (
        MOE,
        {"num_workers": "3:7", "expert_parallel_size": 8, "global_batch_size": 24},
        ["expert tensor x expert x pipeline parallel = 1 x 8 x 1 = 8; ", "nearest is 8"],
    ),
    (
        DENSE,
        {"num_workers": "1:4", "global_batch_size": 10, "micro_batch_size": 4},
        ["at size 1 --global_batch_size 10", "set --global_batch_size to 8 or 12, or change --micro_batch_size"],
    ),
]


@pytest.mark.parametrize(("shape", "flags", "parts"), NONE_FITS)
def test_no_usable_size_names_range_rules_and_the_nearest_sizes(shape, flags, parts):
    problems = problems_of(shape, **flags)
    assert all(f"no size of --num_workers {flags['num_workers']} is usable: " in text for text in problems)
    assert [part for part in parts if part not in "\n".join(problems)] == []


@pytest.mark.parametrize("flags", [flags for shape, flags, _ in NONE_FITS[:5]])
def test_the_nearest_sizes_are_usable(flags):
    text = problems_of(**flags)[0]
    nearest = [int(size) for size in text.rpartition("the nearest ")[2].split() if size.isdigit()]
    assert nearest
    for size in nearest:
        assert plans_of(**flags | {"num_workers": size})


def test_a_rule_that_no_size_can_keep_is_told_as_for_a_fixed_size():
    broken = {"tensor_parallel_size": 3, "sequence_parallel": "false"}
    fixed = problems_of(num_workers=6, global_batch_size=12, **broken)
    assert problems_of(num_workers="4:16", global_batch_size=12, **broken) == fixed
    *same, of_range = problems_of(num_workers="4:5", global_batch_size=12, **broken)
    assert same == fixed
    assert "no size of --num_workers 4:5 is usable: --num_workers 4 must be a multiple" in of_range


def test_too_few_rows_are_told_besides():
    assert "the 5 training rows do not fill" in problems_of(num_workers="4:16", rows=5)[0]
    assert len(problems_of(num_workers="5:7", global_batch_size=8, rows=5)) == 2


def test_a_wide_range_costs_no_time():
    began = time.perf_counter()
    assert len(plans_of(num_workers="1:1000000000", global_batch_size=5040)) == 60
    assert problems_of(num_workers="5041:1000000000", global_batch_size=5040)
    assert time.perf_counter() - began < 5


def name_of(**flags: object) -> str:
    spec = spec_of(**flags)
    plans = usable_plans(spec, DENSE)
    (name,) = {run_name(cast(Preflight, SimpleNamespace(spec=spec, shape=DENSE, plan=plan))) for plan in plans.values()}
    return name


def test_the_run_directory_has_one_name_for_all_sizes():
    assert name_of(num_workers="3:16", tensor_parallel_size=2) == "model-tp2-pp1-dp2-8"
    assert name_of(num_workers="3:16", context_parallel_size=2) == "model-tp1-pp1-dp2-8-cp2"
    assert name_of(num_workers=8, tensor_parallel_size=2) == "model-tp2-pp1-dp4"
    assert name_of(num_workers="4:4") == "model-tp1-pp1-dp4"


def test_the_table_names_every_size_and_its_accumulation():
    plan = make_plan(spec_of(num_workers="4:16", global_batch_size=64, tensor_parallel_size=2), DENSE, backend="cpu")
    rows = dict(plan_rows(plan, DENSE, "m"))
    assert rows["workers"].startswith("16 = 2 x 1 x 1 x 8 ")
    assert rows["elastic"] == "4, 8, 16 workers (shown: 16) with 8, 4, 2 micro-batches a step"
    many = make_plan(spec_of(num_workers="1:5040", global_batch_size=5040), DENSE, backend="cpu")
    assert dict(plan_rows(many, DENSE, "m"))["elastic"].startswith(
        "1, 2, 3, 4, 5, 6, 7, 8, ..., 1680, 2520, 5040 workers"
    )
    assert "elastic" not in dict(plan_rows(make_plan(spec_of(num_workers=4), DENSE), DENSE, "m"))

"""--data_parallel_size beside --num_workers: alone, agreeing, disagreeing, elastic; on CPUs and on GPUs."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS
from tests.test_configs import shape_of

from raymb.driver.preflight import Preflight, as_packed, run_name
from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan, usable_plans
from raymb.plan.automatic import searched
from raymb.plan.gpus import gpu_named
from raymb.plan.search import SAME
from raymb.plan.table import print_plan
from raymb.spec import load_spec, worker_range
from raymb.spec.sections import RunSpec

DENSE = ModelShape.from_config(QWEN2_4_LAYERS)
MOE = ModelShape.from_config(QWEN3_MOE_4_LAYERS)
QWEN = shape_of("Qwen/Qwen2.5-0.5B")
H200 = gpu_named("h200")
FACTORS = "tensor x pipeline x context x data parallel"
NAMES = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "cp": "context_parallel_size"}
NAMES |= {"dp": "data_parallel_size", "ep": "expert_parallel_size", "workers": "num_workers"}


def spec_of(**flags: Any) -> RunSpec:
    words = {NAMES.get(name, name): str(value) for name, value in flags.items() if value is not None}
    return load_spec({"hf_model_path": "some/model"} | words)


def plans_of(backend: str = "cpu", shape: ModelShape = DENSE, **flags: Any) -> dict[int, Plan]:
    return usable_plans(spec_of(**flags), shape, backend=backend, gpu=None if backend == "cpu" else H200)


def plan_of(backend: str = "cpu", shape: ModelShape = DENSE, **flags: Any) -> Plan:
    (plan,) = plans_of(backend, shape, **flags).values()
    return plan


def problem_of(backend: str = "cpu", shape: ModelShape = DENSE, **flags: Any) -> str:
    """The one message of a layout that is refused."""
    with pytest.raises(PlanError) as caught:
        plans_of(backend, shape, **flags)
    (problem,) = caught.value.problems
    return problem


def but_reasons(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in plan.to_dict().items() if name != "chosen"}


GRID = list(itertools.product((1, 2, 4), (1, 2, 4), (1, 2), (1, 3, 4)))


@pytest.mark.parametrize(("tp", "pp", "cp", "dp"), GRID)
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_copies_and_workers_say_the_same(backend: str, tp: int, pp: int, cp: int, dp: int) -> None:
    """Together, and each alone; and no other number of workers goes with them."""
    sizes = {"tp": tp, "pp": pp, "cp": cp, "global_batch_size": 24}
    workers = tp * pp * cp * dp
    expected = plan_of(backend, workers=workers, **sizes)
    assert (expected.layout.num_workers, expected.layout.data_parallel_size) == (workers, dp)
    assert plan_of(backend, workers=workers, dp=dp, **sizes) == expected
    assert but_reasons(plan_of(backend, dp=dp, **sizes)) == but_reasons(expected)
    for others in (workers - 1, workers + 1, 2 * workers):
        if others:
            text = problem_of(backend, workers=others, dp=dp, **sizes)
            rule, _, ways = text.partition("; ")
            assert rule == f"--num_workers {others} is not {FACTORS} = {tp} x {pp} x {cp} x {dp} = {workers}"
            assert ways.startswith(f"set --num_workers {workers}")


@pytest.mark.parametrize(
    ("flags", "workers", "copies"),
    [
        ({}, 1, 1),
        ({"tp": 2}, 2, 1),
        ({"tp": 2, "pp": 2, "dp": 2}, 8, 2),
        ({"dp": 4}, 4, 4),
        ({"cp": 2, "dp": 2}, 4, 2),
        ({"workers": "auto", "pp": 4}, 4, 1),
        ({"workers": 8, "tp": 2, "pp": 1, "cp": 1}, 8, 4),
        ({"workers": 8, "tp": 2, "pp": 1, "cp": 1, "dp": "auto"}, 8, 4),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "cuda", "auto"])
def test_without_workers_the_sizes_make_them(backend: str, flags: dict[str, Any], workers: int, copies: int) -> None:
    plan = plan_of(backend, **flags)
    assert (plan.layout.num_workers, plan.layout.data_parallel_size, plan.elastic) == (workers, copies, None)
    assert worker_range(spec_of(**flags).parallel) == (workers, workers)


def test_a_way_out_is_named_where_there_is_one_and_is_one() -> None:
    sizes = {"tp": 2, "pp": 2, "cp": 1, "global_batch_size": 16}
    assert problem_of(workers=16, dp=2, **sizes) == (
        f"--num_workers 16 is not {FACTORS} = 2 x 2 x 1 x 2 = 8; set --num_workers 8, or --data_parallel_size 4"
    )
    assert plan_of(workers=8, dp=2, **sizes) and plan_of(workers=16, dp=4, **sizes)
    assert problem_of(workers=10, dp=2, **sizes).endswith(" = 8; set --num_workers 8")
    text = problem_of(workers=7, **sizes)
    assert "--num_workers 7 must be a multiple of tensor x pipeline x context parallel = 2 x 2 x 1 = 4" in text


def test_sizes_that_are_auto_are_1_on_cpus_and_the_message_says_so() -> None:
    assert problem_of(workers=8, dp=2) == (
        f"--num_workers 8 is not {FACTORS} = 1 x 1 x 1 x 2 = 2 (sizes that are auto are 1 on CPU workers); "
        "set --num_workers 2, or --data_parallel_size 8"
    )
    assert plan_of(workers=2, dp=2).layout.num_workers == 2 and plan_of(workers=8, dp=8).layout.num_workers == 8


@pytest.mark.parametrize("copies", [1, 2, 4, 8, 16])
def test_on_gpus_the_search_takes_the_best_layout_of_so_many_copies(copies: int) -> None:
    """Against the search among all of them."""
    flags = {"workers": 16, "global_batch_size": 64, "seq_length": 2048, "cuda_graphs": False}
    of_so_many = [one for one in searched(spec_of(**flags), QWEN, H200, 16) if one.layout.data_parallel_size == copies]
    fitting = [one for one in of_so_many if one.fits(H200)]
    fastest = min(one.time.total for one in fitting)
    best = min((one for one in fitting if one.time.total <= fastest * (1 + SAME)), key=lambda one: one.memory.total)
    plan = plan_of("cuda", QWEN, dp=copies, **flags)
    assert plan.layout.data_parallel_size == copies and f"the fastest of {len(fitting)} layouts" in str(plan.chosen)
    assert (
        plan.layout.tensor_parallel_size,
        plan.layout.pipeline_parallel_size,
        plan.layout.micro_batch_size,
        plan.layout.recompute,
    ) == (
        *(
            best.layout.tensor_parallel_size,
            best.layout.pipeline_parallel_size,
            best.layout.micro_batch_size,
            best.layout.recompute,
        ),
    )


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            {"workers": 16, "dp": 3},
            ["must be a multiple of", "1 x 1 x 1 x 3 = 3, where sizes that are auto", "15 or 18", "1, 2, 4, 8, 16"],
        ),
        ({"workers": 7, "tp": 2, "dp": 2}, ["must be a multiple of", "2 x 1 x 1 x 2 = 4", "to 4 or 8"]),
        (
            {"workers": 16, "tp": 2, "pp": 2, "dp": 2, "seq_length": 512},
            ["is not", "2 x 2 x 1 x 2 = 8, and auto finds no other sizes", "8, or --data_parallel_size 4, or give"],
        ),
        ({"workers": 16, "dp": 8, "global_batch_size": 12}, ["--global_batch_size 12 must be a multiple", "1 x 8 = 8"]),
    ],
)
def test_what_no_search_can_find_on_gpus_is_refused_with_the_reason(flags: dict[str, Any], parts: list[str]) -> None:
    text = problem_of("cuda", **{"global_batch_size": 16} | flags)
    assert [part for part in parts if part not in text] == []
    assert ("--data_parallel_size to" in text) == ("15 or 18" in parts)


def test_an_expert_grid_that_the_copies_do_not_fill() -> None:
    text = problem_of(shape=MOE, ep=4, dp=2)
    assert "1 x 4 x 1 = 4; set --data_parallel_size to 4, with as many workers as that makes, or lower" in text
    assert plan_of(shape=MOE, ep=4, dp=4).layout.expert_data_parallel_size == 1
    assert "2 x 8 x 1 = 16; set --data_parallel_size to 8, " in problem_of(shape=MOE, tp=2, ep=8, dp=2)
    assert plan_of(shape=MOE, tp=2, ep=8, dp=8).layout.num_workers == 16
    assert "set --num_workers to 4, or lower" in problem_of(shape=MOE, ep=4)


# Elastic


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("sizes", [{}, {"tp": 2}, {"tp": 2, "pp": 2}, {"cp": 2}])
def test_a_range_of_copies_alone_is_one_of_workers(backend: str, sizes: dict[str, int]) -> None:
    whole = {name: sizes.get(name, 1) for name in ("tp", "pp", "cp")}
    unit = whole["tp"] * whole["pp"] * whole["cp"]
    expected = plans_of(backend, workers=f"{unit}:{6 * unit}", global_batch_size=24, **whole)
    plans = plans_of(backend, dp="1:6", global_batch_size=24, **sizes)
    assert list(plans) == [copies * unit for copies in (1, 2, 3, 4, 6)]
    assert [but_reasons(plan) for plan in plans.values()] == [but_reasons(plan) for plan in expected.values()]
    for plan in plans.values():
        assert plan.chosen.keys() >= {NAMES[name] for name in whole if name not in sizes}
        assert not plan.chosen.keys() & {NAMES[name] for name in sizes}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_usable_size_lies_in_both_ranges(data: st.DataObject) -> None:
    """On CPUs, where the layout does not depend on them."""
    tp, batch = data.draw(st.sampled_from((1, 2, 4))), data.draw(st.sampled_from((8, 12, 24)))
    workers, copies = (sorted(data.draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))) for _ in range(2))
    flags = {"tp": tp, "global_batch_size": batch}
    expected = [
        tp * count
        for count in range(copies[0], copies[1] + 1)
        if batch % count == 0 and workers[0] <= tp * count <= workers[1]
    ]
    flags |= {"workers": f"{workers[0]}:{workers[1]}", "dp": f"{copies[0]}:{copies[1]}"}
    if expected:
        plans = plans_of(**flags)
        assert list(plans) == expected
        assert all(plan.elastic == expected for plan in plans.values())
        return
    with pytest.raises(PlanError, match=f"no size of --num_workers {flags['workers']} is usable: "):
        plans_of(**flags)


def test_on_gpus_the_layout_of_two_ranges_is_one_that_can_grow() -> None:
    """Copies alone would be faster at 4 workers, and could have no other size."""
    flags = {"workers": "4:16", "global_batch_size": 64, "seq_length": 2048}
    assert plans_of("cuda", QWEN, **flags)[4].layout.data_parallel_size == 4
    plans = plans_of("cuda", QWEN, dp="1:4", **flags)
    assert {size: plan.layout.data_parallel_size for size, plan in plans.items()} == {4: 1, 8: 2, 16: 4}
    assert "and have the most sizes" in str(plans[4].chosen)
    free = plans_of("cuda", QWEN, dp="1:16", **flags)
    assert {size: plan.layout.data_parallel_size for size, plan in free.items()} == {4: 4, 8: 8, 16: 16}


def test_a_range_of_copies_alone_leaves_a_copy_on_one_gpu_and_is_refused_where_that_is_too_small() -> None:
    """With --num_workers the search may share it."""
    shape = shape_of("meta-llama/Llama-3.1-70B")
    assert "DP4, micro batch 1, recompute full" in (text := problem_of("cuda", shape, dp="1:4"))
    assert "takes about" in text and "TP4" in text and "fits" in text
    assert plans_of("cuda", shape, dp="1:4", workers="1:4")[4].layout.tensor_parallel_size == 4


ELASTIC_REFUSED = [
    (
        {"dp": "3:3", "tp": 2},
        "no size of --data_parallel_size 3:3 is usable: at size 3 --global_batch_size 8 must be a multiple of micro "
        "batch x data parallel = 1 x 3 = 3",
        "give --data_parallel_size a range that holds a usable size, the nearest are 2 and 4",
    ),
    (
        {"workers": "4:16", "dp": "1:3"},
        f"no size of --num_workers 4:16 is usable: --num_workers 4 would be {FACTORS} = 1 x 1 x 1 x 4, and "
        "--data_parallel_size is 1:3",
        "give --num_workers a range that holds a usable size, the nearest is 2, or --data_parallel_size a range that "
        "holds 4 or 8",
    ),
    (
        {"workers": "5:7", "tp": 4, "dp": "1:4"},
        "no size of --num_workers 5:7 is usable: --num_workers 5 must be a multiple of tensor x pipeline x context "
        "parallel = 4 x 1 x 1 = 4",
        "give --num_workers a range that holds a usable size, the nearest are 4 and 8",
    ),
]


@pytest.mark.parametrize(("flags", "rule", "ways"), ELASTIC_REFUSED)
def test_no_usable_size_is_told_in_the_flags_that_were_given(flags: dict[str, Any], rule: str, ways: str) -> None:
    assert problem_of(**flags) == f"{rule}; {ways}"


def test_the_ways_out_of_no_usable_size_are_some() -> None:
    assert list(plans_of(dp="2:3", tp=2)) == [4] and list(plans_of(dp="3:4", tp=2)) == [8]
    assert list(plans_of(workers="2:16", dp="1:3")) == [2] and list(plans_of(workers="4:16", dp="1:8")) == [4, 8]
    assert "a range that holds a usable size, the nearest is 8" in problem_of(shape=MOE, ep=8, dp="1:2")
    assert list(plans_of(shape=MOE, ep=8, dp="2:8")) == [8]


def test_a_size_that_is_not_usable_is_told_in_the_flag_that_was_given() -> None:
    for flags, asked in ({"dp": "1:4"}, "--data_parallel_size 1:4"), ({"dp": 4}, "--data_parallel_size 4"):
        with pytest.raises(PlanError, match=f"3 workers are no usable size of {asked}; the usable ones: .*4 workers"):
            make_plan(spec_of(**flags), DENSE, backend="cpu", num_workers=3)
    with pytest.raises(PlanError, match="3 workers are no usable size of --num_workers 2; the usable ones: 2 workers"):
        make_plan(spec_of(tp=2), DENSE, backend="cpu", num_workers=3)


# Whatever is given

SIZES = st.sampled_from((None, None, 1, 2, 4))


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes, with workers and copies, each of them absent, a number or a range; more often than not they agree."""
    flags: dict[str, Any] = {name: draw(SIZES) for name in ("tp", "pp", "cp")}
    whole = 1
    for name in ("tp", "pp", "cp"):
        whole *= flags[name] or draw(st.sampled_from((1, 1, 2)))
    copies = draw(st.integers(1, 6))
    workers = draw(st.sampled_from((whole * copies, whole * copies, whole * copies + 1, 2 * whole * copies)))
    elastic = draw(st.booleans())
    for name, size in (("dp", copies), ("workers", workers)):
        if draw(st.booleans()):
            flags[name] = f"{size}:{size * draw(st.integers(1, 3))}" if elastic else size
    return {**flags, "global_batch_size": copies * draw(st.sampled_from((1, 2, 4, 12)))}


@given(layouts())
@pytest.mark.parametrize(("backend", "gpu"), [("cpu", None), ("cuda", H200), ("auto", None)])
@settings(max_examples=150, deadline=None)
def test_what_is_planned_multiplies_up_and_is_what_was_asked(backend: str, gpu: Any, flags: dict[str, Any]) -> None:
    spec = spec_of(**flags)
    try:
        plans = usable_plans(spec, DENSE, backend=backend, gpu=gpu)
    except PlanError as error:
        assert error.problems and all("--" in problem for problem in error.problems)
        return
    assert plans
    low, high = worker_range(spec.parallel)
    for size, plan in plans.items():
        product = (
            plan.layout.tensor_parallel_size * plan.layout.pipeline_parallel_size * plan.layout.context_parallel_size
        )
        assert product * plan.layout.data_parallel_size == plan.layout.num_workers == size and low <= size <= high
        if flags.get("dp"):
            least, _, most = str(flags["dp"]).partition(":")
            assert int(least) <= plan.layout.data_parallel_size <= int(most or least)
        elif not flags.get("workers"):
            assert plan.layout.data_parallel_size == 1
        for name in ("tp", "pp", "cp"):
            assert flags[name] in (None, getattr(plan.layout, NAMES[name]))
            assert flags[name] or flags.get("workers") or getattr(plan.layout, NAMES[name]) == 1
        assert (
            plan.layout.micro_batch_size * plan.layout.data_parallel_size * plan.layout.micro_batches
            == flags["global_batch_size"]
        )
    assert plan.elastic == (list(plans) if ":" in f"{flags.get('dp')} {flags.get('workers')}" else None)


# What stays as it is


def name_of(**flags: Any) -> str:
    spec = spec_of(**flags)
    plan = make_plan(spec, DENSE, backend="cpu")
    return run_name(cast(Preflight, SimpleNamespace(spec=spec, shape=DENSE, plan=plan)))


def test_the_run_directory_has_the_same_name() -> None:
    assert name_of(tp=2, dp=4) == name_of(tp=2, workers=8) == name_of(tp=2, dp=4, workers=8) == "model-tp2-pp1-dp4"
    assert name_of(tp=2, dp="2:8") == name_of(tp=2, workers="4:16") == "model-tp2-pp1-dp2-8"


def test_a_reason_is_given_for_the_workers_where_sizes_made_them_and_else_the_plan_says_no_more() -> None:
    assert not plan_of(workers=4).chosen.keys() & {"num_workers", "data_parallel_size"}
    assert plan_of(workers=1, tp=1).chosen == plan_of(workers=1, tp=1, dp=1).chosen
    assert not plan_of().chosen.keys() & {"num_workers", "data_parallel_size"}
    reason = "the product of tensor, pipeline, context and data parallel sizes that were given"
    assert plan_of(tp=2, dp=2).chosen["num_workers"] == f"4: {reason}"
    assert {plan.chosen["num_workers"] for plan in plans_of(tp=2, dp="1:2").values()} == {f"2:4: {reason}"}


def test_the_table_compares_with_other_numbers_of_copies(capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(workers=4, dp=2, global_batch_size=64, seq_length=2048)
    print_plan(make_plan(spec, QWEN, backend="cuda", gpu=H200), QWEN, spec)
    shown = " ".join(capsys.readouterr().out.split())
    assert "other layouts DP4, micro batch" in shown


@pytest.mark.parametrize("flags", [{"dp": 2}, {"cp": 2, "dp": 2}, {"dp": "1:4"}, {"workers": 8, "dp": 2}])
def test_packed_rows_that_fix_sizes_leave_the_workers_as_they_were(flags: dict[str, Any]) -> None:
    spec = spec_of(packing=True, seq_length=1024, **flags)
    plan = make_plan(spec, DENSE, backend="cuda", gpu=H200)
    again = make_plan(as_packed(spec, plan), DENSE, backend="cuda", gpu=H200)
    assert but_reasons(again) == but_reasons(plan)

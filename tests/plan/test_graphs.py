"""--cuda_graphs auto: on where it has been compared, fits and gains, else off with a reason; never a refusal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN3_MOE_4_LAYERS
from tests.plan.test_automatic import QWEN_05B

from raymb.errors import PlanError, SpecError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan, usable_plans
from raymb.plan.automatic import searched
from raymb.plan.gpus import Gpu, gpu_named
from raymb.plan.search import USABLE
from raymb.spec import load_spec, spec_from_json, spec_to_json
from raymb.spec.sections import RunSpec

MOE = ModelShape.from_config(QWEN3_MOE_4_LAYERS)
H200 = gpu_named("h200")
SMALL = {"num_workers": 2, "tensor_parallel_size": 2, "micro_batch_size": 1, "seq_length": 512}
"""Steps that take as long as Python does."""
LARGE = {"num_workers": 2, "tensor_parallel_size": 1, "global_batch_size": 64, "seq_length": 2048}


def spec_of(*overrides: str, **flags: Any) -> RunSpec:
    return load_spec({"hf_model_path": "m"} | {flag: str(one) for flag, one in flags.items()}, overrides=overrides)


def plan_of(*overrides: str, shape: ModelShape = QWEN_05B, gpu: Gpu = H200, **flags: Any) -> Plan:
    return make_plan(spec_of(*overrides, **flags), shape, backend="cuda", gpu=gpu)


def gain_of(plan: Plan) -> float:
    """Times as fast, of the reason for graphs that are on."""
    said = re.fullmatch(r"by estimate a step is ([\d.]+) times as fast .*", plan.reasons["cuda_graphs"].text)
    assert said and plan.layout.cuda_graphs and plan.reasons["cuda_graphs"].value == "on"
    return float(said[1])


@pytest.mark.parametrize(
    ("gpu", "flags", "least"),
    [
        ("h200", SMALL, 6),
        ("h100-80gb", SMALL | {"num_workers": 8, "pipeline_parallel_size": 2, "train_iters": 100}, 4),
        ("h200", SMALL | {"num_workers": 1, "tensor_parallel_size": 1}, 3),
        ("h200", SMALL | {"peft": "lora"}, 6),
        ("h200", SMALL | {"peft": "dora"}, 6),
        ("h200", SMALL | {"peft": "lora", "lora_dropout": 0.1}, 6),
        ("h200", SMALL | {"precision": "fp8"}, 6),
        ("h200", SMALL | {"precision": "fp8_blockwise"}, 6),
        ("h200", SMALL | {"recompute": "selective"}, 6),
        ("h200", SMALL | {"tensor_parallel_size": 1, "context_parallel_size": 2}, 4),
        ("h200", SMALL | {"tensor_parallel_size": 1, "overlap_grad_reduce": True, "overlap_param_gather": True}, 3),
        (
            "h200",
            SMALL | {"tensor_parallel_size": 1, "pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2},
            3,
        ),
    ],
)
def test_on_where_a_step_takes_as_long_as_python(gpu: str, flags: dict[str, Any], least: float) -> None:
    plan = plan_of(gpu=gpu_named(gpu), **flags)
    assert gain_of(plan) >= least
    without = plan_of(gpu=gpu_named(gpu), **flags, cuda_graphs=False)
    assert plan.step_time and without.step_time
    assert without.step_time["total"] / plan.step_time["total"] == pytest.approx(gain_of(plan), rel=0.05)


def test_off_where_the_gpu_is_the_slower_one() -> None:
    some = r"by estimate a step is ([\d.]+) times as fast with them, and from 1.15 on they are taken"
    for length, why in ((3072, "by estimate a step is no faster with them"), (2560, some)):
        flags = LARGE | {"micro_batch_size": 4, "seq_length": length}
        plan = plan_of(**flags)
        said = re.fullmatch(why, plan.reasons["cuda_graphs"].text)
        assert said and all(1.01 <= float(gain) < 1.15 for gain in said.groups())
        assert plan.reasons["cuda_graphs"].value == "off" and plan == plan_of(**flags, cuda_graphs=False)


UNTRIED = [
    ({"packing": True}, "--packing is not possible with them"),
    ({"recompute": "full"}, "--recompute full has not been tried with them"),
    ({"recompute": "selective", "recompute_modules": "mlp"}, "--recompute_modules mlp has not been tried with them"),
    ({"activation_offload_layers": 2}, "--activation_offload_layers 2 is not possible with them"),
    ({"megatron_fsdp": "optim", "tensor_parallel_size": 1}, "--megatron_fsdp optim has not been tried with them"),
    ({"precision": "mxfp8"}, "--precision mxfp8 has not been tried with them"),
    ({"precision": "fp32"}, "they are recorded with bf16 weights, and --precision is fp32"),
    ({"freeze": "embed_tokens"}, "--freeze or --unfreeze has not been tried with them"),
    ({"optimizer_offload": 0.5}, "--optimizer_offload 0.5 has not been tried with them"),
    ({"optimizer_moments": "bf16"}, "--optimizer_moments bf16 has not been tried with them"),
    ({"distributed_optimizer": False}, "--no_distributed_optimizer has not been tried with them"),
    ({"grad_reduce_in_fp32": False}, "--no_grad_reduce_in_fp32 has not been tried with them"),
    ({"fused_gradient_accumulation": False}, "--no_fused_gradient_accumulation has not been tried with them"),
    ({"fused_activation": False}, "--no_fused_activation has not been tried with them"),
    ({"fused_rope": False}, "--no_fused_rope has not been tried with them"),
    ({"profile_steps": "3:4"}, "--profile_steps 3:4 has not been tried with them"),
    ({"sequence_parallel": False}, "tensor parallel without sequence parallel has not been tried with them"),
    ({"num_workers": "2:4"}, "an elastic run has not been tried with them"),
    (
        {"tensor_parallel_size": 1, "pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 6},
        "a number of 6 virtual stages has not been tried with them",
    ),
    (
        {
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 2,
            "virtual_pipeline_parallel_size": 1,
            "global_batch_size": 64,
        },
        "a worker with 768 recorded passes (layers of a stage x micro-batches) has not been tried with them",
    ),
]


@pytest.mark.parametrize(("flags", "why"), UNTRIED, ids=[why.split()[0] for _, why in UNTRIED])
def test_off_where_nobody_has_compared(flags: dict[str, Any], why: str) -> None:
    flags = SMALL | flags
    gpu = gpu_named("b200") if flags.get("precision") == "mxfp8" else H200
    plan = plan_of(gpu=gpu, **flags)
    assert (plan.layout.cuda_graphs, plan.chosen["cuda_graphs"]) == (False, f"off: {why}")
    assert plan == plan_of(gpu=gpu, **flags, cuda_graphs=False)


def test_off_with_other_families_and_with_overrides_of_what_is_inside_of_a_layer() -> None:
    plan = plan_of(shape=MOE, num_workers=1, micro_batch_size=1, seq_length=64)
    assert plan.chosen["cuda_graphs"] == "off: the model's Qwen3MoeForCausalLM has not been tried with them"
    plan = plan_of("model.attention_dropout=0.1", **SMALL)
    assert plan.chosen["cuda_graphs"] == "off: override model.attention_dropout has not been tried with them"
    assert plan_of("train.exit_interval=3", "logger.log_params_norm=true", **SMALL).layout.cuda_graphs


def test_what_is_asked_for_is_honoured_or_refused() -> None:
    assert plan_of(**LARGE, cuda_graphs=True).layout.cuda_graphs
    assert not plan_of(**SMALL, cuda_graphs=False).layout.cuda_graphs
    assert plan_of(**SMALL | {"num_workers": "2:4"}, cuda_graphs=True).layout.cuda_graphs
    for asked in (True, False):
        assert "cuda_graphs" not in plan_of(**SMALL, cuda_graphs=asked).chosen
    with pytest.raises(SpecError, match="--packing is not possible with --cuda_graphs; drop one of them"):
        spec_of(**SMALL, packing=True, cuda_graphs=True)
    with pytest.raises(PlanError, match="--cuda_graphs needs GPUs"):
        make_plan(spec_of(num_workers=1, cuda_graphs=True), QWEN_05B, backend="cpu")


@pytest.mark.parametrize(("written", "meant"), [("true", True), ("false", False), ("auto", "auto")])
def test_yaml_has_the_booleans_of_before(written: str, meant: object, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{hf_model_path: m}}\nperformance: {{cuda_graphs: {written}}}\n")
    spec = load_spec({}, [file])
    assert spec.performance.cuda_graphs == meant and spec_from_json(spec_to_json(spec)) == spec


def test_cpu_workers_have_none_and_say_nothing() -> None:
    plan = make_plan(spec_of(num_workers=1), QWEN_05B, backend="cpu")
    assert not plan.layout.cuda_graphs and "cuda_graphs" not in plan.chosen


def test_no_size_of_an_elastic_run_has_them() -> None:
    plans = usable_plans(spec_of(**SMALL | {"num_workers": "2:8"}), QWEN_05B, backend="cuda", gpu=H200)
    assert [size for size, plan in plans.items() if plan.layout.cuda_graphs] == [] and len(plans) > 1


def test_off_where_their_memory_does_not_fit() -> None:
    given = SMALL | {"pipeline_parallel_size": 1, "seq_length": 4096, "micro_batch_size": 8, "recompute": "none"}
    flags = given | {"optimizer_offload": 0}
    need, with_them = (plan_of(**flags, cuda_graphs=asked).memory for asked in (False, True))
    assert need and with_them and with_them["graphs"] > 0 == need["graphs"]
    tight = replace(H200, memory=int((need["total"] + with_them["total"]) / 2 / USABLE))
    slow = replace(tight, tflops=1e5, bandwidth=1e15, link=1e15)  # nothing takes time but Python
    plan = plan_of(gpu=slow, **flags)
    assert plan.chosen["cuda_graphs"] == "off: no layout fits into h200 with them"
    assert plan_of(gpu=replace(slow, memory=2 * tight.memory), **flags).layout.cuda_graphs


def test_another_layout_is_chosen_where_it_fits_with_them() -> None:
    flags = {"num_workers": 2, "tensor_parallel_size": 2, "seq_length": 2048, "global_batch_size": 32}
    fast = replace(H200, tflops=1e5, bandwidth=1e15, link=1e15)
    without = plan_of(gpu=fast, **flags, cuda_graphs=False)
    roomy = plan_of(gpu=fast, **flags)
    assert without.memory and roomy.memory and roomy.layout.micro_batch_size == without.layout.micro_batch_size
    tight = replace(fast, memory=int((without.memory["total"] + roomy.memory["total"]) / 2 / USABLE))
    plan = plan_of(gpu=tight, **flags)
    assert plan.memory and plan.memory["total"] <= USABLE * tight.memory
    assert plan.layout.cuda_graphs and plan.layout.micro_batch_size < without.layout.micro_batch_size


def test_no_layout_without_them_is_less_than_1_15_times_as_slow() -> None:
    for flags in ({"global_batch_size": 64, "seq_length": 2048}, {"global_batch_size": 8, "seq_length": 512}):
        for workers in (1, 2, 4, 8):
            found = [one for one in searched(spec_of(**flags), QWEN_05B, H200, workers) if one.fits(H200)]
            with_them, without = (
                min(one.time.total for one in found if one.layout.cuda_graphs == on) for on in (True, False)
            )
            gains = without / with_them >= 1.15
            assert plan_of(**flags, num_workers=workers).layout.cuda_graphs == gains


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [
        ({"tensor_parallel_size": 1, "micro_batch_size": 8}, (35.3, 35.5)),
        ({"tensor_parallel_size": 2, "micro_batch_size": 8}, (18.4, 19.1)),
        ({"tensor_parallel_size": 1, "pipeline_parallel_size": 2, "micro_batch_size": 2}, (12.3, 14.2)),
    ],
)
def test_they_are_counted_with_at_least_what_the_allocator_held_for_them(
    sizes: dict[str, int], reserved: tuple[float, float]
) -> None:
    """GB without and with them, docs/performance.md."""
    sizes = {"pipeline_parallel_size": 1, "virtual_pipeline_parallel_size": 1} | sizes
    memory = plan_of(**LARGE | sizes, recompute="none", cuda_graphs=True).memory
    assert memory and reserved[1] - reserved[0] <= 1.02 * memory["graphs"] / 1e9 <= reserved[1] - reserved[0] + 1.3


def test_a_plan_is_stored_with_them_and_read_from_before_there_were_any() -> None:
    plan = plan_of(**SMALL)
    stored = plan.to_dict()
    assert stored["cuda_graphs"] is True and stored["chosen"]["cuda_graphs"].startswith("on: ")
    assert Plan.from_dict(stored) == plan
    assert not Plan.from_dict(
        {name: value for name, value in stored.items() if name != "cuda_graphs"}
    ).layout.cuda_graphs

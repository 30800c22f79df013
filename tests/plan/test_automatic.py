"""The automatic layout, its memory and its speed, against what was measured and what is known."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from statistics import median

import pytest
from tests.conftest import QWEN2_4_LAYERS

from raymb.driver.preflight import as_packed, local_gpu
from raymb.errors import PlanError, SpecError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan, usable_plans
from raymb.plan.automatic import searched
from raymb.plan.gpus import Gpu, gpu_named
from raymb.plan.memory import estimate
from raymb.plan.rules import broken_rules
from raymb.plan.search import USABLE
from raymb.plan.sizes import DetailedLayout
from raymb.plan.speed import step_time
from raymb.plan.table import better_line, estimate_line, graphs_line, print_plan
from raymb.spec import load_spec
from raymb.spec.sections import RunSpec

TINY = ModelShape.from_config(QWEN2_4_LAYERS)
QWEN_05B, QWEN_15B, QWEN_7B = (
    ModelShape.from_config(
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": vocabulary == 151936,
        }
    )
    for vocabulary, hidden, inner, layers, heads, groups in (
        (151936, 896, 4864, 24, 14, 2),
        (151936, 1536, 8960, 28, 12, 2),
        (152064, 3584, 18944, 28, 28, 4),
    )
)
MOE_1B, MOE_TIED = (
    ModelShape.from_config(
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "moe_intermediate_size": 768,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": tied,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    )
    for tied in (False, True)
)
LLAMA_405B, LLAMA_70B, LLAMA_8B = (
    ModelShape.from_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
        }
    )
    for hidden, inner, layers, heads in ((16384, 53248, 126, 128), (8192, 28672, 80, 64), (4096, 14336, 32, 32))
)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


SHORT = {kind: f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "context", "expert", "data")}
SHORT |= {"virtual": "virtual_pipeline_parallel_size", "micro": "micro_batch_size", "batch": "global_batch_size"}
ONE = {SHORT[kind]: 1 for kind in ("tensor", "pipeline", "context", "expert", "data")}


def layout_of(**sizes) -> DetailedLayout:
    """1 worker with micro batch 8 of a global batch of 64; a size may be given by a key of SHORT."""
    given = {SHORT.get(name, name): value for name, value in sizes.items()}
    values = ONE | {"micro_batch_size": 8, "global_batch_size": 64} | given
    stages = dict.fromkeys(("num_layers_in_first_stage", "num_layers_in_last_stage", SHORT["virtual"]))
    workers = values[SHORT["tensor"]] * values[SHORT["pipeline"]] * values[SHORT["data"]]
    fixed = {"num_workers": workers, "expert_tensor_parallel_size": 1, "seq_length": 2048}
    return DetailedLayout(**stages | fixed | {"sequence_parallel": values[SHORT["tensor"]] > 1} | values)


def unfused(**sizes) -> DetailedLayout:
    return replace(layout_of(**sizes), fused_activation=False)


LORA = {"lora_rank": 16, "adapter_targets": ALL}
MEASURED_MEMORY = [
    (QWEN_05B, layout_of(batch=16), 35.2),
    (QWEN_05B, layout_of(data=4), 30.8),
    (QWEN_05B, layout_of(batch=16, fused_cross_entropy=False), 49.1),
    (QWEN_15B, layout_of(batch=16), 72.1),
    (QWEN_15B, layout_of(batch=16, fp8=True), 69.4),
    (QWEN_7B, layout_of(batch=8, micro=4, **LORA), 57.6),
    (MOE_1B, layout_of(batch=16, micro=4), 32.3),
    (QWEN_05B, unfused(batch=16), 42.62),
    (QWEN_05B, unfused(batch=16, **LORA), 34.96),
    (QWEN_05B, unfused(tensor=2), 21.40),
    (QWEN_05B, unfused(pipeline=2), 29.66),
    (QWEN_05B, unfused(pipeline=2, micro=4), 16.7),
    (QWEN_05B, unfused(data=4), 38.2),
    (QWEN_05B, unfused(data=4, micro=16), 71.8),
    (QWEN_05B, unfused(data=2, micro=16), 73.3),
    (QWEN_05B, unfused(batch=16, fused_cross_entropy=False), 56.8),
    (QWEN_05B, unfused(data=4, fused_cross_entropy=False), 53.1),
    (QWEN_05B, unfused(data=2, fused_cross_entropy=False), 54.6),
    (QWEN_05B, layout_of(batch=16, recompute="full"), 20.0),
    (QWEN_05B, layout_of(batch=16, recompute="full", recompute_method="block", recompute_num_layers=8), 30.2),
    (QWEN_05B, layout_of(batch=16, recompute="selective", recompute_modules=("mlp",)), 23.1),
    (QWEN_05B, layout_of(batch=16, optimizer_offload=0.5), 33.2),
    (QWEN_05B, layout_of(batch=16, optimizer_offload=1.0), 29.3),
    (QWEN_05B, layout_of(batch=16, activation_offload_layers=8), 30.0),
    (QWEN_05B, layout_of(batch=16, optimizer_moments="bf16"), 33.3),
    (QWEN_05B, layout_of(batch=16, gradient_bytes=2), 34.3),
    (QWEN_05B, layout_of(batch=16, **LORA), 29.6),
    (QWEN_05B, layout_of(data=2, micro=32), 110.1),
    (QWEN_05B, layout_of(data=2, micro=1), 10.0),
    (QWEN_05B, layout_of(num_workers=2, context=2), 19.4),
    (QWEN_05B, layout_of(pipeline=2, virtual=2, micro=4), 17.1),
    (QWEN_05B, layout_of(pipeline=2, virtual=3, micro=4), 19.2),
    (QWEN_05B, layout_of(pipeline=2, virtual=6, micro=32), 104.9),
    (QWEN_05B, layout_of(tensor=2, recompute="full"), 10.4),
    (QWEN_15B, layout_of(batch=16, micro=16, recompute="full"), 51.4),
    (QWEN_15B, layout_of(batch=16, recompute="selective", recompute_modules=("mlp",)), 46.0),
    (QWEN_15B, layout_of(data=2, micro=16, batch=32), 106.5),
    (QWEN_15B, layout_of(tensor=2, micro=32, batch=32), 102.6),
    (QWEN_15B, layout_of(pipeline=2, virtual=2, micro=16, batch=32), 87.7),
    (MOE_TIED, layout_of(data=2, micro=4, batch=16, expert=2), 20.6),
    (MOE_TIED, layout_of(data=2, micro=4, batch=16), 23.0),
]
"""Peaks of torch's allocator in GB at 2048 tokens in bf16 (docs/estimates.md)."""
MEASURED_SECONDS = [
    (QWEN_05B, layout_of(batch=16), 0.237),
    (QWEN_05B, layout_of(batch=16, micro=16), 0.226),
    (QWEN_05B, layout_of(data=4), 0.2771),
    (QWEN_15B, layout_of(batch=16), 0.540),
    (QWEN_15B, layout_of(batch=16, fp8=True), 0.468),
    (QWEN_7B, layout_of(batch=8, micro=4, **LORA), 0.967),
    (QWEN_05B, unfused(data=4, micro=16), 0.2999),
    (QWEN_05B, unfused(data=4), 0.3054),
    (QWEN_05B, unfused(data=2, micro=16), 0.5930),
    (QWEN_05B, unfused(batch=32), 0.5790),
    (QWEN_05B, unfused(tensor=2), 0.8355),
    (QWEN_05B, unfused(pipeline=2), 0.7930),
    (QWEN_05B, unfused(pipeline=2, micro=4), 0.9266),
    (QWEN_05B, unfused(tensor=2, pipeline=2, micro=1), 3.3538),
    (QWEN_05B, layout_of(data=2, micro=32), 0.426),
    (QWEN_05B, layout_of(data=2, micro=4), 0.689),
    (QWEN_05B, layout_of(data=2, micro=1), 3.382),
    (QWEN_05B, layout_of(tensor=2, micro=32), 0.545),
    (QWEN_05B, layout_of(pipeline=2, micro=8), 0.635),
    (QWEN_05B, layout_of(pipeline=2, virtual=4), 0.567),
    (QWEN_05B, layout_of(num_workers=2, context=2), 1.048),
    (QWEN_05B, layout_of(batch=16, recompute="full"), 0.287),
    (QWEN_05B, layout_of(batch=16, recompute="selective", recompute_modules=("mlp",)), 0.267),
    (QWEN_05B, layout_of(batch=16, optimizer_offload=1.0), 1.054),
    (QWEN_05B, layout_of(batch=16, activation_offload_layers=8), 0.457),
    (QWEN_05B, layout_of(batch=16, **LORA), 0.378),
    (QWEN_15B, layout_of(data=2, micro=16, batch=32), 0.547),
    (QWEN_15B, layout_of(data=2, micro=1, batch=32), 1.692),
    (QWEN_15B, layout_of(tensor=2, micro=32, batch=32), 0.633),
    (QWEN_15B, layout_of(pipeline=2, virtual=2, batch=32), 0.669),
    (QWEN_15B, layout_of(pipeline=2, micro=16, batch=32), 0.821),
    (MOE_TIED, layout_of(data=2, micro=4, batch=16, expert=2), 0.504),
    (MOE_TIED, layout_of(data=2, micro=4, batch=16), 0.603),
]
"""Of a step on H200s; unfused: without fused activation, rotary positions and gradient accumulation."""


def test_memory_is_what_was_measured() -> None:
    errors = [
        abs(estimate(layout, shape).allocated / 1e9 / measured - 1) for shape, layout, measured in MEASURED_MEMORY
    ]
    assert median(errors) <= 0.02 and max(errors) <= 0.10, errors


def test_steps_take_what_was_measured() -> None:
    gpu = gpu_named("h200")
    errors = [abs(step_time(one, shape, gpu, 4).total / measured - 1) for shape, one, measured in MEASURED_SECONDS]
    assert median(errors) <= 0.06 and max(errors) <= 0.25, errors


def spec_of(**flags: object) -> RunSpec:
    return load_spec({"hf_model_path": "some/model"} | {name: str(value) for name, value in flags.items()})


def plan_of(shape: ModelShape, gpu: str | Gpu, **flags: object) -> Plan:
    chip = gpu_named(gpu) if isinstance(gpu, str) else gpu
    return make_plan(spec_of(**flags), shape, backend="cuda", gpu=chip)


def sizes_of(plan: Plan) -> tuple[int, int, int]:
    return plan.layout.tensor_parallel_size, plan.layout.pipeline_parallel_size, plan.layout.data_parallel_size


def test_a_small_model_is_copied() -> None:
    plan = plan_of(QWEN_05B, "h200", num_workers=4, global_batch_size=64, seq_length=2048)
    assert sizes_of(plan) == (1, 1, 4) and plan.layout.micro_batch_size >= 8
    assert (plan.layout.recompute, plan.layout.optimizer_offload, plan.layout.virtual_pipeline_parallel_size) == (
        "none",
        0.0,
        None,
    )
    assert all("the fastest of" in reason for flag, reason in plan.chosen.items() if flag != "cuda_graphs")


@pytest.mark.parametrize(
    ("shape", "workers", "flags"),
    [
        (LLAMA_8B, 8, {}),
        (LLAMA_8B, 1, {"peft": "lora"}),
        (LLAMA_70B, 32, {}),
        (LLAMA_70B, 8, {"peft": "lora"}),
        (LLAMA_405B, 256, {"seq_length": 8192}),
    ],
)
def test_a_large_model_fits_and_obeys_the_rules(shape: ModelShape, workers: int, flags: dict[str, object]) -> None:
    given = {"num_workers": workers, "global_batch_size": 256, "seq_length": 4096, **flags}
    plan, gpu = plan_of(shape, "h100-80gb", **given), gpu_named("h100-80gb")
    assert plan.memory is not None and plan.memory["total"] <= USABLE * gpu.memory
    assert sum(plan.layers_per_stage) == shape.num_layers
    assert plan.layout.tensor_parallel_size <= 8


def test_sixteen_thousand_gpus_in_two_seconds() -> None:
    began = time.process_time()
    plan = plan_of(LLAMA_405B, "h100-80gb", num_workers=16384, global_batch_size=2048, seq_length=8192, gpus_per_node=8)
    assert time.process_time() - began <= 2
    assert plan.layout.num_workers == plan.layout.model_parallel_size * plan.layout.data_parallel_size == 16384
    assert plan.memory is not None and plan.memory["total"] <= USABLE * gpu_named("h100-80gb").memory


def test_every_layout_of_the_search_obeys_the_rules_and_the_first_is_the_fastest_that_fits() -> None:
    gpu = gpu_named("h100-80gb")
    found = searched(spec_of(global_batch_size=64, seq_length=4096), LLAMA_8B, gpu, 16)
    assert len(found) > 100 and not any(broken_rules(one.layout, LLAMA_8B) for one in found)
    fitting = [one.time.total for one in found if one.fits(gpu)]
    assert fitting[0] <= min(fitting) * 1.01
    assert [one.fits(gpu) for one in found] == sorted((one.fits(gpu) for one in found), reverse=True)


def test_what_is_given_stays() -> None:
    flags = {"num_workers": 8, "global_batch_size": 64, "tensor_parallel_size": 4, "recompute": "full"}
    plan = plan_of(LLAMA_8B, "h100-80gb", **flags)
    assert (plan.layout.tensor_parallel_size, plan.layout.recompute) == (4, "full")
    assert not {"tensor_parallel_size", "recompute"} & plan.chosen.keys()


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    flags = {"num_workers": 8, "global_batch_size": 64, "seq_length": 4096}
    one_copy = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "recompute": "none", "optimizer_offload": 0}
    with pytest.raises(PlanError, match=r"DP8, micro batch 8.* takes about .* GiB a GPU .*has 79.2; .* fits"):
        plan_of(LLAMA_8B, "h100-80gb", **flags, **one_copy, micro_batch_size=8)
    with pytest.raises(PlanError, match=r"no layout of so many fits: --num_workers 256 fits \(TP8 x PP32, "):
        plan_of(LLAMA_405B, "l4", **flags)
    with pytest.raises(PlanError, match="no layout of so many fits: give more --num_workers"):
        plan_of(LLAMA_405B, replace(gpu_named("l4"), memory=2 * 2**30), **flags)
    # Where nobody knows the GPU, nothing is refused for its size.
    assert make_plan(spec_of(**flags), LLAMA_405B, backend="cuda").memory


def test_recomputation_and_offload_come_where_they_must() -> None:
    small = replace(gpu_named("h100-80gb"), memory=int(6.5 * 2**30))
    flags = {"num_workers": 1, "global_batch_size": 8, "seq_length": 1024, "micro_batch_size": 8}
    many = ModelShape.from_config(
        QWEN2_4_LAYERS | {"num_hidden_layers": 96, "hidden_size": 256, "intermediate_size": 1024}
    )
    assert plan_of(many, "h100-80gb", **flags).layout.recompute == "none"
    assert plan_of(many, small, **flags).layout.recompute == "full"
    plan = plan_of(LLAMA_8B, "h100-80gb", num_workers=1, global_batch_size=8, seq_length=512)
    assert plan.layout.optimizer_offload == 1.0


def test_an_elastic_run_has_one_layout_that_its_smallest_size_holds() -> None:
    spec = spec_of(num_workers="8:64", global_batch_size=64, seq_length=4096)
    plans = usable_plans(spec, LLAMA_8B, backend="cuda", gpu=gpu_named("h100-80gb"))
    assert len(plans) > 2
    assert (
        len(
            {
                (plan.layout.model_parallel_size, plan.layout.recompute, plan.layout.micro_batch_size)
                for plan in plans.values()
            }
        )
        == 1
    )
    for plan in plans.values():
        assert plan.memory is not None and plan.memory["total"] <= USABLE * gpu_named("h100-80gb").memory


def test_the_table_names_better_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"num_workers": 4, "global_batch_size": 16, "seq_length": 2048, "gpu": "h200", "micro_batch_size": 1}
    spec = spec_of(**flags, tensor_parallel_size=2, pipeline_parallel_size=2)
    print_plan(make_plan(spec, QWEN_05B, backend="cuda", gpu=gpu_named("h200")), QWEN_05B, spec)
    shown = " ".join(capsys.readouterr().out.split())
    assert "--cuda_graphs on: by estimate a step is" in shown
    assert "memory a GPU about" in shown and "other layouts DP4, micro batch" in shown and "times as fast" in shown


def test_what_a_run_says_of_its_layout() -> None:
    flags = {"num_workers": 4, "global_batch_size": 64, "seq_length": 2048}
    given = {**flags, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "micro_batch_size": 1}
    best, slow = plan_of(QWEN_05B, "h200", **flags), plan_of(QWEN_05B, "h200", **given)
    assert estimate_line(best).startswith("TP1 x PP1 x DP4: by estimate 53.9 GiB of 139.8 a GPU (h200), 0.22")
    assert better_line(best, QWEN_05B, spec_of(**flags)) == ""
    assert better_line(slow, QWEN_05B, spec_of(**given)).startswith(
        "by estimate DP4, micro batch 16 is 17 times as fast"
    )
    on_cpus = make_plan(spec_of(**flags), QWEN_05B, backend="cpu")
    assert estimate_line(on_cpus) == better_line(on_cpus, QWEN_05B, spec_of(**flags)) == ""


def test_a_run_says_of_graphs_what_matters() -> None:
    given = {"num_workers": 2, "tensor_parallel_size": 2, "micro_batch_size": 1, "seq_length": 512}
    on, off = (plan_of(QWEN_05B, "h200", **given, **more) for more in ({}, {"recompute": "full"}))
    assert re.fullmatch(r"CUDA graphs on: by estimate a step is [\d.]+ times as fast with .*", graphs_line(on))
    assert graphs_line(off) == "CUDA graphs off: --recompute full has not been tried with them"
    fast = plan_of(QWEN_05B, "h200", num_workers=4, global_batch_size=64, seq_length=2048)
    assert fast.reasons["cuda_graphs"].value == "off" and graphs_line(fast) == ""
    assert graphs_line(plan_of(QWEN_05B, "h200", **given, cuda_graphs=True)) == ""
    assert graphs_line(make_plan(spec_of(**given), QWEN_05B, backend="cpu")) == ""


def test_nothing_is_searched_again_where_everything_was_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"num_workers": 4, "global_batch_size": 64, "seq_length": 2048}
    plan = plan_of(QWEN_05B, "h200", **flags)
    monkeypatch.delattr("raymb.plan.table.searched")
    assert better_line(plan, QWEN_05B, spec_of(**flags)) == ""


def test_the_gpu_at_hand() -> None:
    named = local_gpu(spec_of(gpu="A100-80GB"))
    assert named is not None and named.name == "a100-80gb"
    assert local_gpu(spec_of(backend="cpu")) is None
    with pytest.raises(SpecError, match="--gpu b300 is not known"):
        local_gpu(spec_of(gpu="b300"))


def test_packed_rows_fix_what_they_were_packed_for() -> None:
    spec = spec_of(num_workers=8, packing=True, context_parallel_size=2, tensor_parallel_size=2, seq_length=1024)
    plan = make_plan(spec, QWEN_05B, backend="cuda")
    fixed = as_packed(spec_of(num_workers=8, packing=True), plan)
    assert (fixed.parallel.context_parallel_size, fixed.parallel.tensor_parallel_size) == (2, 2)
    assert as_packed(spec_of(num_workers=8), plan).parallel.context_parallel_size == "auto"


def test_fp32_takes_more_of_both() -> None:
    layout, gpu = layout_of(), gpu_named("h200")
    wide = replace(layout, number_bytes=4)
    assert estimate(wide, QWEN_05B).total > 1.6 * estimate(layout, QWEN_05B).total
    assert step_time(wide, QWEN_05B, gpu, 8).total > 1.5 * step_time(layout, QWEN_05B, gpu, 8).total

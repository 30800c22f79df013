"""Settings of large training: what they take and save, and what refuses them."""

from __future__ import annotations

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS

from raymb.errors import PlanError, SpecError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan
from raymb.plan.gpus import gpu_named
from raymb.spec import RunSpec, load_spec

DENSE, MOE = ModelShape.from_config(QWEN2_4_LAYERS), ModelShape.from_config(QWEN3_MOE_4_LAYERS)
SHARED = ModelShape.from_config(QWEN3_MOE_4_LAYERS | {"shared_expert_intermediate_size": 32})
LARGE = ModelShape.from_config(
    QWEN2_4_LAYERS | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 32000}
)
BATCH = {
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "recompute": "none",
    "optimizer_offload": 0,
    "cuda_graphs": False,
}


def spec_of(*overrides: str, **flags: object) -> RunSpec:
    given = {"hf_model_path": "some/model", **flags}
    return load_spec({name: str(value) for name, value in given.items()}, overrides=overrides)


def plan_of(shape: ModelShape = LARGE, backend: str = "cuda", gpu: str = "h100-80gb", **flags: object) -> Plan:
    chip = gpu_named(gpu) if backend == "cuda" else None
    return make_plan(spec_of(**{**BATCH, **flags}), shape, backend=backend, gpu=chip)


def part(name: str, shape: ModelShape = LARGE, **flags: object) -> int:
    """Bytes."""
    memory = plan_of(shape, **flags).memory
    assert memory is not None
    return memory[name]


def seconds(**flags: object) -> float:
    times = plan_of(**flags).step_time
    assert times is not None
    return times["total"]


def test_recomputing_some_layers_lies_between_none_and_all() -> None:
    none, full = part("activations"), part("activations", recompute="full")
    block = [
        part("activations", recompute="full", recompute_method="block", recompute_num_layers=layers)
        for layers in (6, 12, 24)
    ]
    assert none > block[0] > block[1] > block[2] == full
    assert round((none - block[0]) / (none - full), 6) == 0.25  # 6 of 24 layers
    times = [seconds(recompute="full", recompute_method="block", recompute_num_layers=layers) for layers in (6, 24)]
    assert seconds() < times[0] < times[1] == seconds(recompute="full")


def test_groups_keep_less_and_compute_more_at_a_time() -> None:
    one, four = ({"recompute": "full", "recompute_num_layers": layers} for layers in (1, 4))
    assert part("activations", **four) * 4 == pytest.approx(part("activations", **one), rel=1e-6)
    assert part("buffers", **four) == pytest.approx(4 * part("buffers", **one), rel=1e-6)


def test_modules_that_are_recomputed_are_not_kept() -> None:
    dense = [part("activations", recompute="selective", recompute_modules=words) for words in ("core_attn", "mlp")]
    assert dense[0] == part("activations") > dense[1]
    sparse = [
        part("activations", MOE, recompute="selective", recompute_modules=words)
        for words in ("layernorm", "moe_act", "moe", "moe,moe_act")
    ]
    assert part("activations", MOE) > max(sparse) and sparse[2] == sparse[3] == min(sparse)


def test_what_gradients_and_moments_take() -> None:
    assert part("gradients", grad_reduce_in_fp32="false") * 2 == pytest.approx(part("gradients"), rel=1e-6)
    assert part("optimizer", optimizer_moments="bf16") * 12 == pytest.approx(part("optimizer") * 8, rel=1e-6)
    shared, whole = (part("optimizer", num_workers=4, tensor_parallel_size=1, pipeline_parallel_size=1,
                          distributed_optimizer=kind) for kind in ("true", "false"))  # fmt: skip
    assert shared * 4 == pytest.approx(whole, rel=1e-6)


def test_layers_whose_activations_are_on_the_host_leave_two_on_their_way() -> None:
    none = part("activations")
    assert part("activations", activation_offload_layers=12) == pytest.approx(none * (24 - 12 + 2) / 24, rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"recompute_num_layers": 2}, "--recompute_num_layers needs --recompute full, and it is auto"),
        ({"recompute_method": "block", "recompute": "selective"}, "--recompute_method needs --recompute full"),
        ({"recompute_modules": "mlp", "recompute": "full"}, "--recompute_modules needs --recompute selective"),
        ({"recompute_modules": "mlp,attention", "recompute": "selective"}, "--recompute_modules attention"),
        ({"activation_offload_layers": 2, "recompute": "full"}, "--recompute full exclude each other"),
        ({"optimizer_moments": "bf16", "optimizer_offload": 0.5}, "the host's moments are fp32"),
        ({"optimizer_moments": "bf16", "precision": "fp8"}, "another optimizer under FP8"),
        ({"distributed_optimizer": False, "optimizer_offload": 1}, "--optimizer_offload 1.0 needs the distributed"),
        ({"distributed_optimizer": False, "optimizer_moments": "bf16"}, "--optimizer_moments bf16 needs the distrib"),
        (
            {"distributed_optimizer": False, "overlap_param_gather": True, "overlap_grad_reduce": True},
            "--overlap_param_gather needs the distributed optimizer",
        ),
        ({"moe_load_balancing": "none", "moe_aux_loss_coeff": 0.1}, "--moe_load_balancing none does not have"),
        ({"moe_load_balancing": "sinkhorn", "moe_capacity_factor": 1}, "not possible with --moe_load_balancing sink"),
        ({"moe_shared_expert_overlap": True, "moe_token_dispatcher": "allgather"}, "needs --moe_token_dispatcher all"),
    ],
)
def test_flags_that_contradict_each_other(flags: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(**flags)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("distributed_optimizer", False),
        ("optimizer_offload", 0.5),
        ("optimizer_moments", "bf16"),
        ("activation_offload_layers", 2),
        ("precision", "fp8"),
        ("peft", "lora"),
    ],
)
def test_what_megatron_fsdp_does_not_go_with(flag: str, value: object) -> None:
    with pytest.raises(SpecError, match=rf"{flag}.* is not possible with --megatron_fsdp optim_grads; drop one"):
        spec_of(megatron_fsdp="optim_grads", **{flag: value})


def test_megatron_fsdp_is_a_flag_and_torch_fsdp_is_refused() -> None:
    with pytest.raises(SpecError, match="belongs to the flag --megatron_fsdp"):
        spec_of("ddp.use_megatron_fsdp=true")
    with pytest.raises(SpecError, match=r"torch's FSDP2.*--megatron_fsdp"):
        spec_of("dist.use_torch_fsdp2=true")


def test_megatron_fsdp_has_no_stages_and_wants_bf16() -> None:
    flags = {"num_workers": 4, "megatron_fsdp": "optim_grads_params"}
    with pytest.raises(PlanError, match="--pipeline_parallel_size 2 must be 1 with --megatron_fsdp optim_grads_params"):
        make_plan(spec_of(**flags, pipeline_parallel_size=2), DENSE, backend="cuda")
    with pytest.raises(PlanError, match="--megatron_fsdp optim_grads_params needs bf16 weights"):
        make_plan(spec_of(**flags), DENSE, backend="cpu")
    assert make_plan(spec_of(**flags, precision="bf16"), DENSE, backend="cpu").layout.data_parallel_size == 4


def test_megatron_fsdp_takes_less_memory_and_more_time() -> None:
    kinds = ("none", "optim", "optim_grads", "optim_grads_params")
    flags = {"num_workers": 8, "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "micro_batch_size": 1}
    plans = [make_plan(spec_of(**flags, megatron_fsdp=kind), DENSE, gpu=gpu_named("h100-80gb")) for kind in kinds]
    weights, gradients = ([(plan.memory or {})[part] for plan in plans] for part in ("weights", "gradients"))
    assert weights[0] == weights[1] == weights[2] > weights[3]
    assert gradients[0] == gradients[1] > gradients[2] == gradients[3]
    times = [(plan.step_time or {})["data"] for plan in plans]
    assert times[0] < times[1] <= times[2] < times[3]
    assert [plan.layout.megatron_fsdp for plan in plans] == list(kinds)


def test_cuda_graphs_take_the_launching_out_of_a_step() -> None:
    flags = {"num_workers": 2, "tensor_parallel_size": 2, "seq_length": 512}
    eager, graphed = plan_of(**flags), plan_of(**flags, cuda_graphs=True)
    assert eager.step_time and graphed.step_time
    assert eager.step_time["launch"] > 0.5 * eager.step_time["total"] > 2 * graphed.step_time["total"]
    assert seconds(**flags, peft="lora", cuda_graphs=True) > seconds(**flags, peft="lora") / 20
    assert plan_of(**{**flags, "recompute": "auto"}, cuda_graphs=True).layout.recompute == "none"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("recompute", "full"),
        ("recompute_modules", "mlp"),
        ("activation_offload_layers", 2),
        ("megatron_fsdp", "optim"),
        ("packing", True),
        ("precision", "mxfp8"),
    ],
)
def test_what_cuda_graphs_do_not_go_with(flag: str, value: object) -> None:
    flags = {"num_workers": 2, "cuda_graphs": True, flag: value}
    if flag == "recompute_modules":
        flags |= {"recompute": "selective"}
    with pytest.raises((PlanError, SpecError), match=rf"--{flag}.* --cuda_graphs; drop one of them"):
        plan_of(**flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"recompute": "selective"},
        {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2},
        {"precision": "fp8"},
        {"overlap_grad_reduce": True},
        {"peft": "dora"},
        {"peft": "lora", "lora_dropout": 0.1},
    ],
)
def test_what_cuda_graphs_go_with(flags: dict[str, object]) -> None:
    eager, graphed = plan_of(num_workers=2, **flags), plan_of(num_workers=2, cuda_graphs=True, **flags)
    assert eager.step_time and graphed.step_time and eager.step_time["launch"] > 2 * graphed.step_time["launch"]


def test_cuda_graphs_are_for_dense_models_on_gpus_in_bf16() -> None:
    with pytest.raises(PlanError, match="has not been tried with the model's Qwen3MoeForCausalLM"):
        plan_of(MOE, num_workers=1, cuda_graphs=True)
    with pytest.raises(PlanError, match="--cuda_graphs needs GPUs"):
        plan_of(backend="cpu", num_workers=1, cuda_graphs=True)
    with pytest.raises(PlanError, match="--cuda_graphs needs bf16 weights"):
        plan_of(num_workers=1, cuda_graphs=True, precision="fp32")
    with pytest.raises(SpecError, match="belongs to the flag --cuda_graphs"):
        spec_of("model.cuda_graph_impl=local")


def test_weights_on_the_host_are_refused() -> None:
    with pytest.raises(SpecError, match=r"takes no weights to the host any more.*--optimizer_offload"):
        spec_of("model.cpu_offloading_weights=true")


@pytest.mark.parametrize(
    ("shape", "flags", "message"),
    [
        (DENSE, {"recompute": "full", "recompute_num_layers": 5}, "more than the 4 layers of a stage"),
        (
            DENSE,
            {"recompute": "full", "recompute_num_layers": 3, "num_workers": 2, "pipeline_parallel_size": 2},
            "more than the 2 layers of a stage",
        ),
        (DENSE, {"recompute": "selective", "recompute_modules": "moe"}, "moe needs a mixture-of-experts model"),
        (DENSE, {"recompute": "selective", "recompute_modules": "layernorm"}, "layernorm needs a mixture-of-exp"),
        (DENSE, {"recompute": "selective", "recompute_modules": "mla_up_proj"}, "and the model's is gqa"),
        (MOE, {"recompute": "selective", "recompute_modules": "mlp"}, "write moe"),
        (MOE, {"recompute": "selective", "recompute_modules": "shared_experts"}, "has none; leave it out"),
        (DENSE, {"activation_offload_layers": 4}, "must be less than the model's 4 layers"),
        (
            DENSE,
            {"activation_offload_layers": 1, "num_workers": 2, "pipeline_parallel_size": 2},
            "needs --pipeline_parallel_size 1, and it is 2",
        ),
        (DENSE, {"moe_aux_loss_coeff": 0.1}, "--moe_aux_loss_coeff needs a mixture-of-experts model"),
        (MOE, {"moe_shared_expert_overlap": True}, "has no shared experts"),
        (
            SHARED,
            {"moe_shared_expert_overlap": True, "recompute": "selective", "recompute_modules": "shared_experts"},
            "exclude each other",
        ),
        (MOE, {"moe_token_dispatcher": "deepep"}, "all experts are on each"),
        (DENSE, {"optimizer_moments": "bf16", "precision": "fp32"}, "--optimizer_moments bf16 needs bf16 weights"),
        (DENSE, {"precision": "mxfp8"}, "--precision mxfp8 is not possible on --gpu h100-80gb"),
    ],
)
def test_what_the_model_or_the_layout_cannot_have(shape: ModelShape, flags: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(shape, **flags)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"optimizer_offload": 0.5}, "--optimizer_offload 0.5 needs GPUs"),
        ({"activation_offload_layers": 1}, "--activation_offload_layers 1 needs GPUs"),
        ({"grad_reduce_in_fp32": False}, "--no_grad_reduce_in_fp32 needs bf16 weights, and they are fp32"),
        ({"optimizer_moments": "bf16"}, "--optimizer_moments bf16 needs bf16 weights, and they are fp32"),
    ],
)
def test_what_needs_gpus(flags: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_of(DENSE, "cpu", **flags)


def test_gradients_and_moments_may_be_bf16_on_cpus_that_train_in_bf16() -> None:
    settings = {"grad_reduce_in_fp32": False, "optimizer_moments": "bf16", "precision": "bf16"}
    assert plan_of(DENSE, "cpu", **settings).backend == "cpu"


def test_auto_leaves_alone_what_excludes_its_means() -> None:
    """A small GPU, on which `auto` would recompute and offload."""
    free = {"recompute": "auto", "optimizer_offload": "auto", "num_workers": 1, "seq_length": 1024}
    assert plan_of(activation_offload_layers=4, **free).layout.recompute == "none"
    assert plan_of(optimizer_moments="bf16", **free).layout.optimizer_offload == 0.0
    assert plan_of(distributed_optimizer=False, **free).layout.optimizer_offload == 0.0


def test_mxfp8_is_for_blackwell_and_its_blocks_of_32() -> None:
    assert plan_of(LARGE, gpu="b200", precision="mxfp8").gpu == "b200"
    with pytest.raises(PlanError, match="multiples of 32"):
        plan_of(ModelShape.from_config(QWEN2_4_LAYERS | {"intermediate_size": 112}), gpu="b200", precision="mxfp8")

"""The sections of the schema (raymb.spec.sections) that say how a model is trained."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from raymb.spec.values import (
    Auto,
    AutoSize,
    Common,
    Names,
    Patterns,
    Section,
    ShownAs,
    Size,
    WorkerRange,
    bounds,
    bridge,
    comma_words,
)

Recomputed = Literal["core_attn", "layernorm", "mlp", "moe", "moe_act", "shared_experts", "mla_up_proj"]
"""A module of a layer that Megatron-Core 0.19.2 can recompute alone."""


class Parallel(Section):
    num_workers: Common[Size | WorkerRange | Auto] = "auto"
    """Workers, one GPU each (on CPU: one process each). The world size. MIN:MAX is elastic: as many as the cluster has
    and the layout can use, growing and shrinking during the run. auto: tensor x pipeline x context x data parallel,
    where sizes that are auto count as 1."""
    tensor_parallel_size: Common[AutoSize] = bridge("model.tensor_model_parallel_size", default="auto", short="tp")
    """TP: how many workers share each layer's matrices."""
    pipeline_parallel_size: Common[AutoSize] = bridge("model.pipeline_model_parallel_size", default="auto", short="pp")
    """PP: how many stages the layers are cut into."""
    virtual_pipeline_parallel_size: AutoSize = bridge(
        "model.virtual_pipeline_model_parallel_size", default="auto", short="vpp"
    )
    """VPP: model chunks on each pipeline stage (interleaved schedule); 1 for the plain schedule."""
    context_parallel_size: Common[AutoSize] = bridge("model.context_parallel_size", default="auto", short="cp")
    """CP: how many workers share one sequence."""
    data_parallel_size: Size | WorkerRange | Auto = bridge(default="auto", short="dp")
    """DP: how many copies of the model share the batch. Without --num_workers it makes the number of workers; with it
    the two must agree. MIN:MAX is elastic. auto: as many as the workers make."""
    expert_parallel_size: AutoSize = bridge("model.expert_model_parallel_size", default="auto", short="ep")
    """EP: how many workers share a layer's experts (mixture-of-experts models)."""
    expert_tensor_parallel_size: Size | None = bridge("model.expert_tensor_parallel_size", default=None, short="etp")
    """ETP: tensor parallelism inside experts; default: the same as TP for dense layers."""
    sequence_parallel: bool | Auto = bridge("model.sequence_parallel", default="auto")
    """Split norm and dropout activations along the sequence inside a TP group."""
    num_layers_in_first_stage: Size | None = bridge("model.num_layers_in_first_pipeline_stage", default=None)
    """Uneven pipeline: layers on the first stage."""
    num_layers_in_last_stage: Size | None = bridge("model.num_layers_in_last_pipeline_stage", default=None)
    """Uneven pipeline: layers on the last stage."""
    megatron_fsdp: Literal["none", "optim", "optim_grads", "optim_grads_params"] = bridge(
        "ddp.use_megatron_fsdp",
        "ddp.use_custom_fsdp",
        "ddp.data_parallel_sharding_strategy",
        "dist.use_megatron_fsdp",
        "checkpoint.ckpt_format",
        default="none",
    )
    """Megatron-FSDP: data parallel workers share the optimizer's state, gradients as well, weights as well (ZeRO 1, 2
    and 3). none: each has its own weights and gradients."""

    @property
    def fsdp(self) -> bool:
        return self.megatron_fsdp != "none"

    @property
    def workers_follow(self) -> bool:
        """Whether nobody has said how many workers there are, so that the sizes make them."""
        return self.num_workers == "auto"

    @property
    def model_parallel_size(self) -> int:
        """Workers that share one copy of the model, where sizes that are `auto` count as 1."""
        sizes = (self.tensor_parallel_size, self.pipeline_parallel_size, self.context_parallel_size)
        return math.prod(1 if size == "auto" else size for size in sizes)


def worker_range(parallel: Parallel) -> tuple[int, int]:
    """(MIN, MAX) of the number of workers."""
    if not parallel.workers_follow:
        return bounds(parallel.num_workers)
    low, high = data_range(parallel) or (1, 1)
    return parallel.model_parallel_size * low, parallel.model_parallel_size * high


def data_range(parallel: Parallel) -> tuple[int, int] | None:
    """(MIN, MAX) of --data_parallel_size; None where any will do."""
    return None if parallel.data_parallel_size == "auto" else bounds(parallel.data_parallel_size)


def worker_flag(parallel: Parallel) -> str:
    """The flag that says how many workers there may be, with its value: `--num_workers 4:16`."""
    if parallel.workers_follow and data_range(parallel):
        return f"--data_parallel_size {parallel.data_parallel_size}"
    return f"--num_workers {worker_range(parallel)[0] if parallel.workers_follow else parallel.num_workers}"


class Train(Section):
    train_iters: Common[Size | None] = bridge("train.train_iters", default=None)
    """Optimizer steps (default: 100, unless --num_epochs is given)."""
    num_epochs: Common[float | None] = bridge("train.num_epochs", default=None, gt=0)
    """Passes over the training rows, instead of --train_iters."""
    global_batch_size: Common[Size] = bridge("train.global_batch_size", "validation.eval_global_batch_size", default=8)
    """Samples in an optimizer step, over all workers."""
    micro_batch_size: Common[AutoSize] = bridge(
        "train.micro_batch_size", "validation.eval_micro_batch_size", default="auto"
    )
    """Samples in one forward and backward pass of a worker."""
    precision: Common[Literal["auto", "bf16", "fp32", "fp8", "fp8_blockwise", "mxfp8"]] = bridge(
        "mixed_precision",
        "model.bf16",
        "model.fp16",
        "model.fp8",
        "model.fp8_recipe",
        "model.fp8_param",
        default="auto",
    )
    """auto: bf16 on CUDA, fp32 on CPU. fp8: bf16 weights, matrix products in FP8 but those of the first and the last
    layer, a scale a tensor (Hopper, Ada or later); fp8_blockwise: a scale a block (Hopper); mxfp8: a scale 32
    numbers (Blackwell)."""
    recompute: Literal["auto", "none", "selective", "full"] = bridge("model.recompute_granularity", default="auto")
    """Recompute activations in the backward pass, to save memory: of some modules of every layer, or of whole
    layers."""
    recompute_method: Literal["uniform", "block"] | None = bridge("model.recompute_method", default=None)
    """With --recompute full. uniform: all layers, in groups of --recompute_num_layers that keep their input; block:
    the first --recompute_num_layers of a stage and no others. Default: uniform."""
    recompute_num_layers: Size | None = bridge("model.recompute_num_layers", default=None)
    """With --recompute full: layers in a group, or of a stage (of a chunk, with virtual stages). Default: 1."""
    recompute_modules: Annotated[list[Recomputed], BeforeValidator(comma_words)] = bridge(
        "model.recompute_modules", default=[]
    )
    """With --recompute selective: core_attn, layernorm, mlp, moe, moe_act, shared_experts, mla_up_proj, with commas
    between them. Default: core_attn."""
    activation_offload_layers: int = bridge(
        "model.cpu_offloading",
        "model.cpu_offloading_num_layers",
        "model.cpu_offloading_activations",
        default=0,
        ge=0,
    )
    """Layers whose activations wait for the backward pass on the host. Not with pipeline parallel or --recompute."""
    seed: int = bridge("rng.seed", "dataset.seed", default=1234, ge=1)
    """Seed of data order and dropout."""
    freeze: Patterns = Field(default=[])
    """Leave parameters as they are whose Hugging Face name the regular expression matches somewhere (repeatable):
    embed_tokens, layers\\.[0-3]\\."""
    unfreeze: Patterns = Field(default=[])
    """Train parameters in spite of --freeze; without --freeze these alone."""
    step_func: Literal["auto", "gpt_step", "vlm_step", "llava_step"] = "auto"
    """Bridge's forward step: gpt_step for language models, vlm_step for vision-language ones. auto: the model's own."""

    @property
    def freezes(self) -> bool:
        return bool(self.freeze or self.unfreeze)


class Peft(Section):
    peft: Common[Literal["none", "lora", "dora"]] = "none"
    """Train low-rank adapters (LoRA, DoRA) beside the frozen model, instead of the model itself."""
    lora_rank: Common[Size] = 16
    """Rank of the adapters."""
    lora_alpha: float = Field(default=32, gt=0)
    """An adapter's output is multiplied by alpha / rank."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rank-stabilized LoRA), which suits high ranks."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    lora_target_modules: Names = Field(default=["all-linear"])
    """What gets an adapter, with commas between: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or
    all-linear. Megatron's names (linear_qkv, linear_proj, linear_fc1, linear_fc2) put one adapter on a whole fused
    matrix."""
    modules_to_save: Annotated[list[str], BeforeValidator(comma_words)] = Field(default=[])
    """Train embed_tokens, lm_head (the embedding, the output layer), or both, in full beside the adapters, and save
    them with these."""


class Optimizer(Section):
    learning_rate: Common[float] = bridge("optimizer.lr", default=1e-5, gt=0)
    """Peak learning rate."""
    min_learning_rate: float = bridge("optimizer.min_lr", default=0.0, ge=0)
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = bridge("scheduler.lr_decay_style", default="cosine")
    """Shape of the decay."""
    lr_warmup_iters: Common[int] = bridge("scheduler.lr_warmup_iters", default=0, ge=0)
    """Steps of linear warm-up from 0."""
    weight_decay: float = bridge(
        "optimizer.weight_decay", "scheduler.start_weight_decay", "scheduler.end_weight_decay", default=0.01, ge=0
    )
    """Decoupled weight decay (AdamW); biases and norms are left out."""
    adam_beta1: float = bridge("optimizer.adam_beta1", default=0.9, ge=0, lt=1)
    """Adam's first-moment decay."""
    adam_beta2: float = bridge("optimizer.adam_beta2", default=0.95, ge=0, lt=1)
    """Adam's second-moment decay."""
    adam_eps: float = bridge("optimizer.adam_eps", default=1e-8, gt=0)
    """Adam's epsilon."""
    clip_grad: float = bridge("optimizer.clip_grad", default=1.0, ge=0)
    """Clip the global gradient norm to this; 0 for no clipping."""
    optimizer_offload: Annotated[float, Field(ge=0, le=1)] | Auto = bridge(
        "optimizer.optimizer_cpu_offload", "optimizer.optimizer_offload_fraction", default="auto"
    )
    """Share of the optimizer's state that is kept, and of its work that is done, on the host: memory for time. Fp32
    weights and gradients of that share go with it."""
    optimizer_offload_overlap: bool = bridge("optimizer.overlap_cpu_optimizer_d2h_h2d", default=True)
    """With --optimizer_offload: copy to and from the host while the host computes."""
    optimizer_offload_pin_memory: bool = bridge("optimizer.pin_cpu_params", "optimizer.pin_cpu_grads", default=True)
    """With --optimizer_offload: weights and gradients in pinned host memory, which copies faster and is never
    swapped."""
    optimizer_moments: Literal["fp32", "bf16"] = bridge(
        "optimizer.use_precision_aware_optimizer",
        "optimizer.exp_avg_dtype",
        "optimizer.exp_avg_sq_dtype",
        "optimizer.store_param_remainders",
        default="fp32",
    )
    """Type of Adam's two moments. bf16: 8 bytes a weight with its fp32 copy instead of 12, by Transformer Engine's
    optimizer. Checkpoints have them in fp32, for either."""
    distributed_optimizer: bool = bridge(
        "ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer", default=True
    )
    """Share the optimizer's state among data parallel workers."""


class Performance(Section):
    fused_cross_entropy: bool = bridge(
        "model.cross_entropy_loss_fusion", "model.cross_entropy_fusion_impl", default=True
    )
    """Loss by Transformer Engine's fused kernel, without a copy of the logits in fp32."""
    fused_activation: bool = bridge("model.bias_activation_fusion", default=True)
    """SwiGLU by one fused kernel, without a copy of its inner values."""
    fused_rope: bool = bridge("model.apply_rope_fusion", default=True)
    """Rotary positions by Transformer Engine's fused kernel."""
    fused_gradient_accumulation: bool = bridge("model.gradient_accumulation_fusion", default=True)
    """Add a weight's gradient to the gradients within its matrix product; not with Megatron-FSDP, which would lose a
    part of tied embeddings' and experts'."""
    cuda_graphs: bool | Auto = bridge(
        "model.cuda_graph_impl",
        "model.cuda_graph_modules",
        "model.use_te_rng_tracker",
        "rng.te_rng_tracker",
        default="auto",
    )
    """Record each layer's kernels after the third step, and launch them as one from then on: up to ten times as fast
    where a step takes as long as Python takes to launch it, as with small micro-batches or tensor parallel. auto: where
    that has been compared with steps without, fits, and by estimate makes a step 1.15 times as fast. The flag alone is
    true, --no_cuda_graphs false."""
    overlap_grad_reduce: bool = bridge("ddp.overlap_grad_reduce", default=False)
    """Reduce gradients over data parallel workers while the backward pass runs."""
    overlap_param_gather: bool = bridge("ddp.overlap_param_gather", default=False)
    """Gather weights from data parallel workers while the next forward pass begins; needs --overlap_grad_reduce."""
    grad_reduce_in_fp32: bool = bridge("ddp.grad_reduce_in_fp32", default=True)
    """Add gradients up, and reduce them over data parallel workers, in fp32; else in bf16, in half the memory."""
    expandable_segments: bool = True
    """Let torch's allocator grow its segments: less memory is lost between them."""
    compile_cache: bool = True
    """Keep compiled kernels in STORAGE_PATH/_compiled, where the next start finds them."""
    profile_steps: Annotated[str, ShownAs("FIRST:LAST")] | None = Field(default=None, pattern=r"^[1-9]\d*:[1-9]\d*$")
    """FIRST:LAST: write a profile of these steps to profile/ in the run directory."""
    profiler: Literal["torch", "nsys"] = "torch"
    """What --profile_steps uses: torch's profiler (a trace and a table of rank 0), or nsys, which is NVIDIA Nsight
    Systems and has to be on the nodes (a report of each worker)."""


FLEX_DISPATCHERS = ("deepep", "hybridep")
"""Token dispatchers with kernels of the package deep_ep, which Megatron-Core calls `flex`, with a back end."""


class Moe(Section):
    moe_load_balancing: Literal["aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"] | None = bridge(
        "model.moe_router_load_balancing_type", default=None
    )
    """How tokens are spread over experts: a loss over a micro-batch, a sample or the global batch; Sinkhorn's routing;
    nothing. Default: what Bridge has for the model."""
    moe_aux_loss_coeff: float | None = bridge("model.moe_aux_loss_coeff", default=None, ge=0)
    """Weight of the load balancing loss, which is of the tokens that are trained. Default: what Bridge has for the
    model."""
    moe_z_loss_coeff: float | None = bridge("model.moe_z_loss_coeff", default=None, ge=0)
    """Weight of a loss that keeps the router's logits small. Default: none."""
    moe_router_dtype: Literal["fp32", "fp64"] | None = bridge("model.moe_router_dtype", default=None)
    """Type of the router's scores. Default: what Bridge has for the model."""
    moe_token_dispatcher: Literal["alltoall", "allgather", "deepep", "hybridep"] | None = bridge(
        "model.moe_token_dispatcher_type", "model.moe_flex_dispatcher_backend", "model.moe_enable_deepep", default=None
    )
    """How tokens come to experts on other workers. deepep, hybridep: by the kernels of the package deep_ep, which must
    be on the workers. Default: what Bridge has for the model."""
    moe_permute_fusion: bool | None = bridge("model.moe_permute_fusion", default=None)
    """Sort tokens by expert in one fused kernel. Default: what Bridge has for the model."""
    moe_shared_expert_overlap: bool | None = bridge("model.moe_shared_expert_overlap", default=None)
    """Compute shared experts while tokens are on their way to others. Default: what Bridge has for the model."""
    moe_capacity_factor: float | None = bridge("model.moe_expert_capacity_factor", default=None, gt=0)
    """An expert takes at most this many times its even share of the tokens; the others pass it by. Default: all."""

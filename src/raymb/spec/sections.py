"""The one schema: a flag exists because a field exists here.

Each class is a section of the YAML file. The text after a field becomes its `--help` line.
`bridge(...)` names the Megatron-Bridge ConfigContainer fields that a field owns, so that an
override of one of them can be refused with the flag's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
Size = Annotated[int, Field(ge=1)]
AutoSize = Size | Auto


def _words(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _comma_words(value: Any) -> Any:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return words
    return [name for word in words for name in word.replace(",", " ").split()]


Words = Annotated[list[str], BeforeValidator(_words)]
"""A repeatable flag; in YAML one word or a list."""
Names = Annotated[list[str], BeforeValidator(_comma_words), Field(min_length=1)]
"""Names with commas between them, or repeated; in YAML a list, too."""
PathOrAddress = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""Kept as it is written: a Path would make s3:/bucket of s3://bucket."""
Change = Literal["model", "tokenizer", "data", "batch", "seed", "versions"]
"""A part of a run's fingerprint."""
Recomputed = Literal["core_attn", "layernorm", "mlp", "moe", "moe_act", "shared_experts", "mla_up_proj"]
"""A module of a layer that Megatron-Core 0.19.2 can recompute alone."""
WorkerRange = Annotated[str, Field(pattern=r"^[1-9]\d*:[1-9]\d*$")]
"""MIN:MAX."""


def bridge(*paths: str, default: Any = ..., **constraints: Any) -> Any:
    """A field that owns the given ConfigContainer paths (`section.field`)."""
    return Field(default, json_schema_extra={"bridge": list(paths)}, **constraints)


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class Model(Section):
    hf_model_path: str = Field(min_length=1)
    """Hugging Face model: a hub id such as Qwen/Qwen2.5-0.5B, or a local directory."""
    hf_revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries. Off unless you say so."""
    recipe: str | None = None
    """Recipe of Megatron-Bridge to start from, such as qwen25_500m_sft_config (raymb recipes list): its model, layout,
    batch, optimizer and adapters, where no YAML and no flag says otherwise."""


class Data(Section):
    dataset: Words = []
    """JSONL, JSON, CSV, TSV or Parquet file, glob, directory or address (s3://...); hub id (owner/name, with
    ?config=&split=&revision=); squad, gsm8k, tulu3, openmathinstruct2; `sample` (dialogues of the chatterbot-corpus
    package). Repeatable; a:0.7 and b:0.3 mix by weight. Default: squad."""
    validation_dataset: str | None = None
    """Rows to validate on; default: the data set's own validation rows, else --validation_split of its rows."""
    test_dataset: str | None = None
    """Rows for a last test after training; default: the data set's own test rows, else --test_split of its rows."""
    validation_split: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the rows held out for validation, where the data set has none of its own; 0 for none."""
    test_split: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the rows held out for the test, where the data set has none of its own."""
    seq_length: Size = bridge("model.seq_length", "dataset.seq_length", default=512)
    """Tokens in a row; longer samples are cut (see --long_rows), shorter ones padded or packed."""
    packing: bool = bridge("dataset.enable_offline_packing", "dataset.offline_packing_specs", default=False)
    """Put several samples into a row, each with attention and positions of its own; a batch counts packed rows."""
    prompt_column: str | None = None
    """Column of the prompt; default: prompt."""
    completion_column: str | None = None
    """Column of the completion; default: completion."""
    messages_column: str | None = None
    """Column of the conversation; default: messages, conversations or conversation."""
    prompt_template: str | None = None
    """Prompt made of columns, for example "Q: {question} A:"."""
    completion_template: str | None = None
    """Completion made of columns, for example " {answer}"."""
    chat_template: Path | None = None
    """File with a Jinja chat template instead of the tokenizer's own."""
    loss_mode: Literal["assistant", "last_turn", "full"] = "assistant"
    """What is trained: completions and assistant turns, the last assistant turn only, or every token."""
    long_rows: Literal["truncate", "drop", "fail"] = "truncate"
    """What becomes of samples longer than --seq_length; truncate cuts their end."""
    bad_rows: Literal["fail", "drop"] = "fail"
    """What becomes of rows that cannot be used; fail names the first ones."""


class Parallel(Section):
    num_workers: Size | WorkerRange = 1
    """Workers, one GPU each (on CPU: one process each). The world size. MIN:MAX is elastic: as many as the cluster has
    and the layout can use, growing and shrinking during the run."""
    tensor_parallel_size: AutoSize = bridge("model.tensor_model_parallel_size", default="auto")
    """TP: how many workers share each layer's matrices."""
    pipeline_parallel_size: AutoSize = bridge("model.pipeline_model_parallel_size", default="auto")
    """PP: how many stages the layers are cut into."""
    virtual_pipeline_parallel_size: AutoSize = bridge("model.virtual_pipeline_model_parallel_size", default="auto")
    """VPP: model chunks on each pipeline stage (interleaved schedule); 1 for the plain schedule."""
    context_parallel_size: AutoSize = bridge("model.context_parallel_size", default="auto")
    """CP: how many workers share one sequence."""
    expert_parallel_size: AutoSize = bridge("model.expert_model_parallel_size", default="auto")
    """EP: how many workers share a layer's experts (mixture-of-experts models)."""
    expert_tensor_parallel_size: Size | None = bridge("model.expert_tensor_parallel_size", default=None)
    """ETP: tensor parallelism inside experts; default: the same as TP for dense layers."""
    sequence_parallel: bool | Auto = bridge("model.sequence_parallel", default="auto")
    """Split norm and dropout activations along the sequence inside a TP group."""
    num_layers_in_first_stage: Size | None = bridge("model.num_layers_in_first_pipeline_stage", default=None)
    """Uneven pipeline: layers on the first stage."""
    num_layers_in_last_stage: Size | None = bridge("model.num_layers_in_last_pipeline_stage", default=None)
    """Uneven pipeline: layers on the last stage."""


def bounds(text: object) -> tuple[int, int]:
    """The two numbers of LOW:HIGH; a number alone is both."""
    low, _, high = str(text).partition(":")
    return int(low), int(high or low)


def worker_range(parallel: Parallel) -> tuple[int, int]:
    """(MIN, MAX) of --num_workers."""
    return bounds(parallel.num_workers)


class Train(Section):
    train_iters: Size | None = bridge("train.train_iters", default=None)
    """Optimizer steps (default: 100)."""
    num_epochs: float | None = bridge("train.num_epochs", default=None, gt=0)
    """Passes over the training rows, instead of --train_iters."""
    global_batch_size: Size = bridge("train.global_batch_size", "validation.eval_global_batch_size", default=8)
    """Samples in an optimizer step, over all workers."""
    micro_batch_size: AutoSize = bridge("train.micro_batch_size", "validation.eval_micro_batch_size", default="auto")
    """Samples in one forward and backward pass of a worker."""
    precision: Literal["auto", "bf16", "fp32", "fp8", "fp8_blockwise", "mxfp8"] = bridge(
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
    recompute_modules: Annotated[list[Recomputed], BeforeValidator(_comma_words)] = bridge(
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


class Peft(Section):
    peft: Literal["none", "lora", "dora"] = "none"
    """Train low-rank adapters beside the frozen model (LoRA, DoRA) instead of the model itself."""
    lora_rank: Size = 16
    """Rank of the adapters."""
    lora_alpha: Size = 32
    """An adapter's output is multiplied by alpha / rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""
    lora_target_modules: Names = ["all-linear"]
    """What gets an adapter: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj, or all-linear. Megatron's names
    (linear_qkv, linear_proj, linear_fc1, linear_fc2) put one adapter on a whole fused matrix."""


class Optimizer(Section):
    learning_rate: float = bridge("optimizer.lr", default=1e-5, gt=0)
    """Peak learning rate."""
    min_learning_rate: float = bridge("optimizer.min_lr", default=0.0, ge=0)
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = bridge("scheduler.lr_decay_style", default="cosine")
    """Shape of the decay."""
    lr_warmup_iters: int = bridge("scheduler.lr_warmup_iters", default=0, ge=0)
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


class Evaluation(Section):
    eval_interval: int = bridge("validation.eval_interval", default=50, ge=0)
    """Steps between validations; 0 for none."""
    eval_iters: int = bridge("validation.eval_iters", default=4, ge=0)
    """Global batches in a validation and in the test; 0 for none."""
    early_stopping_patience: Size | None = None
    """Stop after this many validations in a row without an improvement."""
    early_stopping_threshold: float = Field(default=0.0, ge=0)
    """How much lower the validation loss must be to count as an improvement."""


class Checkpoint(Section):
    save_interval: int = bridge("checkpoint.save_interval", default=50, ge=0)
    """Steps between checkpoints; the last step is always saved. 0: only the last."""
    resume: str = Field(default="auto", min_length=1)
    """auto: go on from the run directory's newest checkpoint if there is one; never: refuse a used run directory;
    PATH: start from that checkpoint directory."""
    async_save: bool = bridge("checkpoint.async_save", default=True)
    """Write checkpoints while the training goes on."""
    parallel_save: bool = bridge("checkpoint.fully_parallel_save", default=True)
    """Data parallel workers share the writing; else the first of them writes what all have."""
    parallel_load: bool = bridge("checkpoint.fully_parallel_load", default=False)
    """Data parallel workers read a share each and exchange it over the network; for slow storage."""
    keep_last: Size | None = bridge("checkpoint.most_recent_k", default=None)
    """Checkpoints to keep, the newest ones; default: all."""
    keep_best: Size | None = None
    """Checkpoints to keep besides, those with the lowest --best_metric."""
    best_metric: Literal["validation_loss", "train_loss"] = "validation_loss"
    """What makes a checkpoint the best one: the lowest value at its step."""
    output_dir: Path | None = bridge("checkpoint.save", "checkpoint.load", default=None)
    """Where checkpoints go, instead of the run directory's checkpoints/."""
    export_hf: bool = True
    """At the end write the tuned model as a Hugging Face directory, hf/ in the run directory; with --peft the adapters
    as a PEFT directory, adapter/."""
    merge: bool = False
    """With --peft write the whole model with its adapters worked in, too, as hf/."""
    export_checkpoint: Literal["latest", "best"] = "latest"
    """Which checkpoint is written at the end: the last step's, or the one with the lowest --best_metric."""
    save_hf_interval: Size | None = None
    """Steps between exports during the training, to hf-step-N/ or adapter-step-N/: a multiple of --save_interval."""
    export_dtype: Literal["source", "bf16", "fp16", "fp32"] = "source"
    """Type of the exported model's tensors; source: as in the model that the training started from."""
    overwrite: bool = False
    """Delete the run directory's old content first."""
    accept_changes: Annotated[list[Change], BeforeValidator(_words)] = []
    """Go on with checkpoints although this is another than in the run that wrote them: model, tokenizer, data, batch,
    seed or versions. Repeatable."""


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
    """Add a weight's gradient to the gradients within its matrix product."""
    overlap_grad_reduce: bool = bridge("ddp.overlap_grad_reduce", default=False)
    """Reduce gradients over data parallel workers while the backward pass goes on."""
    overlap_param_gather: bool = bridge("ddp.overlap_param_gather", default=False)
    """Gather weights from data parallel workers while the next forward pass begins; needs --overlap_grad_reduce."""
    grad_reduce_in_fp32: bool = bridge("ddp.grad_reduce_in_fp32", default=True)
    """Add gradients up, and reduce them over data parallel workers, in fp32; else in bf16, in half the memory."""
    expandable_segments: bool = True
    """Let torch's allocator grow its segments: less memory is lost between them."""
    compile_cache: bool = True
    """Keep compiled kernels in STORAGE_PATH/_compiled, where the next start finds them."""
    profile_steps: str | None = Field(default=None, pattern=r"^[1-9]\d*:[1-9]\d*$")
    """FIRST:LAST: write a profile of these steps to profile/ in the run directory."""
    profiler: Literal["torch", "nsys"] = "torch"
    """What --profile_steps uses: torch's profiler (a trace and a table of rank 0), or nsys, which is NVIDIA Nsight
    Systems and has to be on the nodes (a report of each worker)."""


class Moe(Section):
    moe_load_balancing: Literal["aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"] | None = bridge(
        "model.moe_router_load_balancing_type", default=None
    )
    """How tokens are spread over experts: a loss over a micro-batch, a sample or the global batch; Sinkhorn's routing;
    nothing. Default: what Bridge has for the model."""
    moe_aux_loss_coeff: float | None = bridge("model.moe_aux_loss_coeff", default=None, ge=0)
    """Weight of the load balancing loss, in which padding counts, too (--packing leaves none). Default: what Bridge has
    for the model."""
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


class Resilience(Section):
    max_failures: int = Field(default=3, ge=0)
    """Restarts after failures before the run gives up; preemptions are counted apart."""
    max_preemptions: int | None = Field(default=None, ge=0)
    """Restarts after preempted nodes; default: no limit."""
    grace_time: float = Field(default=30.0, ge=0)
    """Seconds that Ctrl-C, SIGTERM or a preemption leave for a last checkpoint; 0 for none."""
    max_time: str | None = Field(default=None, pattern=r"^(\d+(\.\d+)?[smhd]?|(\d+-)?\d+:\d\d(:\d\d)?)$")
    """Stop with a checkpoint after this time: seconds, 90m, 2h, 1d, or [DAYS-]HH:MM[:SS]. The same command goes on."""
    hang_timeout: float = Field(default=1800.0, ge=0)
    """Seconds without progress after which a rank's stacks are written and the workers restart; 0 for never."""
    bad_loss: Literal["fail", "skip", "rollback"] = bridge("train.iterations_to_skip", default="fail")
    """What a NaN (or --loss_spike) does: end the run; leave the step's update out; or go back to the newest checkpoint
    and leave the step's batch out."""
    loss_spike: float | None = Field(default=None, gt=1)
    """A loss of more than this many times the median of the last 32 steps counts as bad, too. One more collective a
    step."""


class Run(Section):
    storage_path: PathOrAddress = "raymb-runs"
    """Directory that holds runs; on a cluster every node must see it. Or an address (s3://bucket/prefix), with which
    every node works in a directory of its own below RAYMB_CACHE (default: ~/.cache/raymb)."""
    experiment_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run directory. Default: made from model and layout, so the same command finds its run again."""
    backend: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: CUDA when the cluster has GPUs, otherwise CPU."""
    log_interval: Size = bridge("logger.log_interval", default=10)
    """Steps between lines of Megatron's own log (in the run directory's logs/)."""
    sample_prompt: str | None = None
    """After training, print the base and the tuned model's answer to this prompt (`held-out`: from the
    validation rows)."""


class Cluster(Section):
    ray_address: str | None = None
    """Ray cluster to join; default: the RAY_ADDRESS variable, else a local one is started."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Auto = "auto"
    """CPUs that Ray reserves for a worker. auto: 1, or less where CPU workers outnumber the cluster's CPUs."""
    gpu: str = "auto"
    """GPU to plan for, such as h100-80gb, h200, a100-80gb, l4; auto: the one at hand, else h100-80gb."""
    gpus_per_node: Size | None = None
    """Workers that a node holds, for the plan; Ray places the workers. Default: 8, or all workers if there are less."""
    omp_num_threads: Size | None = None
    """OMP_NUM_THREADS of a worker; default: the CPUs of the machine shared among its workers (CPU), 1 (CUDA)."""
    wait_for_resources: float = Field(default=60.0, ge=0)
    """Seconds to wait for the cluster to have the resources that the plan needs."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers, as NAME=VALUE (repeatable)."""


class RunSpec(Section):
    """Everything a user can say about a run. Frozen; no field is filled in from disk, hub, cluster or GPU."""

    model: Model
    data: Data = Data()
    parallel: Parallel = Parallel()
    train: Train = Train()
    peft: Peft = Peft()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    performance: Performance = Performance()
    moe: Moe = Moe()
    resilience: Resilience = Resilience()
    run: Run = Run()
    cluster: Cluster = Cluster()
    overrides: dict[str, Any] = Field(default_factory=dict)
    """ConfigContainer fields by path (`optimizer.decoupled_lr: 1e-4`) that no flag owns."""


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in RunSpec.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""Section name to class, in the order of the YAML file and of --help."""

SECTION_OF_FLAG: dict[str, str] = {flag: name for name, section in SECTIONS.items() for flag in section.model_fields}
"""Flag name (without dashes) to section name. Flag names are unique over all sections."""

FLAG_THAT_OWNS: dict[str, str] = {
    path: flag
    for section in SECTIONS.values()
    for flag, field in section.model_fields.items()
    for path in (field.json_schema_extra or {}).get("bridge", [])  # type: ignore[union-attr]
}
"""ConfigContainer path to the flag that owns it."""

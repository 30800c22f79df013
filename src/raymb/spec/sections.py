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
    precision: Literal["auto", "bf16", "fp32", "fp8", "fp8_blockwise"] = bridge(
        "mixed_precision",
        "model.bf16",
        "model.fp16",
        "model.fp8",
        "model.fp8_recipe",
        "model.fp8_param",
        default="auto",
    )
    """auto: bf16 on CUDA, fp32 on CPU. fp8: bf16 weights, matrix products in FP8 but those of the first and the last
    layer, a scale a tensor (Hopper, Ada or later); fp8_blockwise: a scale a block (Hopper)."""
    recompute: Literal["auto", "none", "selective", "full"] = bridge(
        "model.recompute_granularity", "model.recompute_method", "model.recompute_num_layers", default="auto"
    )
    """Recompute activations in the backward pass, to save memory: of attention alone, or of whole layers."""
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
    """Share of the optimizer's state that is kept, and of its work that is done, on the host: memory for time."""


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
    expandable_segments: bool = True
    """Let torch's allocator grow its segments: less memory is lost between them."""
    compile_cache: bool = True
    """Keep compiled kernels in STORAGE_PATH/_compiled, where the next start finds them."""
    profile_steps: str | None = Field(default=None, pattern=r"^[1-9]\d*:[1-9]\d*$")
    """FIRST:LAST: write a trace of these steps (torch's profiler, rank 0) to profile/ in the run directory."""


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

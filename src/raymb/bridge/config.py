"""RunSpec and Plan to Bridge's ConfigContainer: one small function a section."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    DistributedInitConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig, get_mixed_precision_config

from raymb.bridge.adapters import make_adapters
from raymb.bridge.dataset import PreparedRowsConfig
from raymb.bridge.freezing import freeze
from raymb.bridge.fusions import fusion_settings
from raymb.bridge.moe import moe_settings
from raymb.bridge.overrides import apply_overrides, set_field
from raymb.bridge.patches import collectives, families, hybrids, models, positions, routing
from raymb.bridge.patches.attention import check_attention, leave_attention_to_transformer_engine
from raymb.bridge.vocabulary import leave_out_padding
from raymb.model.vision import vision_architecture
from raymb.plan.layout import evaluation_batches
from raymb.rank.accelerator import ACCELERATORS, Accelerator, precision_of
from raymb.run.job import Job
from raymb.spec.training import Optimizer, Train

_FP8_RECIPES = {
    "fp8": "bf16_with_fp8_current_scaling_mixed",
    "fp8_blockwise": "bf16_with_fp8_subchannel_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
}


def _mixed_precision(job: Job, precision: str) -> MixedPrecisionConfig | None:
    """Bridge's recipe, which overrides model, optimizer and ddp without a word: what is said here must be right."""
    if precision == "fp32":
        return None
    recipe = get_mixed_precision_config(_FP8_RECIPES.get(job.spec.train.precision, "bf16_mixed"))
    recipe.grad_reduce_in_fp32 = job.spec.performance.grad_reduce_in_fp32
    recipe.reuse_grad_buf_for_mxfp8_param_ag = False  # goes with the next line
    recipe.fp8_param_gather = False  # weights stay bf16, so that checkpoints and exports are those of a bf16 run
    return recipe


def build_config(
    job: Job, load_dir: str | None, *, load_random_state: bool = True, left_out: Sequence[int] = ()
) -> tuple[ConfigContainer, AutoBridge]:
    """The ConfigContainer of a job, with the user's overrides applied last, and the bridge to its Hugging Face model.

    Args:
        load_dir: checkpoint directory to resume from; None to start from the Hugging Face weights.
        load_random_state: whether the checkpoint's state of the random number generators is wanted too.
        left_out: steps whose batches are left out; the same on all ranks.

    Raises:
        SpecError: an override names a field that the ConfigContainer does not have.
    """
    accelerator = ACCELERATORS[job.backend]
    precision = precision_of(job)
    hf_bridge = AutoBridge.from_hf_pretrained(job.model_path, trust_remote_code=job.spec.model.trust_remote_code)
    adapters, validation = make_adapters(job), _validation(job)
    config = ConfigContainer(
        # Bridge itself loads the model that adapters are put on, also where their own weights come from a checkpoint.
        model=_model(job, hf_bridge, accelerator, precision, load_weights=load_dir is None and adapters is None),
        train=TrainingConfig(
            train_iters=job.train_iters,
            global_batch_size=job.spec.train.global_batch_size,
            micro_batch_size=job.layout.micro_batch_size,
            iterations_to_skip=list(left_out),
        ),
        validation=validation,
        optimizer=_optimizer(job, precision),
        scheduler=_scheduler(job),
        ddp=_ddp(job),
        dataset=_dataset(job, validation),
        logger=LoggerConfig(log_interval=job.spec.run.log_interval, log_loss_scale_to_tensorboard=False),
        tokenizer=_tokenizer(job),
        checkpoint=_checkpoint(job, load_dir, load_random_state),
        rng=RNGConfig(seed=job.spec.train.seed, te_rng_tracker=job.cuda_graphs),
        dist=DistributedInitConfig(distributed_timeout_minutes=math.ceil(job.spec.resilience.nccl_timeout / 60)),
        peft=adapters,
        mixed_precision=_mixed_precision(job, precision),
    )
    config.rerun_state_machine.check_for_nan_in_loss = False  # raymb.bridge.bad_loss looks, at no cost
    for path, value in accelerator.config_settings().items():
        set_field(config, path, value)
    apply_overrides(config, job.spec.overrides)
    if job.backend == "cuda":
        check_attention(config.model)
    return config, hf_bridge


def _model(job: Job, hf_bridge: AutoBridge, accelerator: Accelerator, precision: str, load_weights: bool) -> Any:
    """The provider of the Hugging Face model; with load_weights a hook fills the weights in when it is built."""
    hf_config = hf_bridge.hf_pretrained.config
    families.complete_config(hf_config, job.architecture)
    provider = hf_bridge.to_megatron_provider(load_weights=load_weights)
    families.mend(hf_config, provider, job.architecture)
    routing.mend(hf_config, provider, job.architecture)
    positions.give_rotary_frequencies(hf_config, provider, job.architecture)
    positions.give_windows(hf_config, provider, job.architecture, job.spec.data.seq_length)
    leave_attention_to_transformer_engine(provider)
    hybrids.leave_out_what_is_not_loaded(provider)
    hybrids.give_gated_norms_their_epsilon(provider)
    if vision_architecture(job.architecture):
        models.pass_on_mrope_sections(hf_config, provider)
        collectives.lay_out_embeddings()
    layout = job.layout
    settings = {
        "seq_length": job.spec.data.seq_length,
        "tensor_model_parallel_size": layout.tensor_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_parallel_size,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline_parallel_size,
        "context_parallel_size": layout.context_parallel_size,
        "expert_model_parallel_size": layout.expert_parallel_size,
        "expert_tensor_parallel_size": layout.expert_tensor_parallel_size,
        "sequence_parallel": layout.sequence_parallel,
        "num_layers_in_first_pipeline_stage": layout.num_layers_in_first_stage,
        "num_layers_in_last_pipeline_stage": layout.num_layers_in_last_stage,
        # The loss is the mean over the global batch's trained tokens, so it does not depend on how the batch is cut
        # into micro batches and data-parallel ranks.
        "calculate_per_token_loss": True,
        # Layers of multi-token prediction stay as they are: transformers has none to generate or to verify with.
        "mtp_num_layers": None,
        # Bridge 0.6.2 pads a vocabulary only if the model's config leaves its size open, which it never does.
        "vocab_size": job.plan.padded_vocab_size,
        **fusion_settings(provider, job.spec.performance, precision, job.spec.parallel.fsdp),
        **_precision(precision),
        **_interleaving(layout.virtual_pipeline_parallel_size),
        **_recompute(layout.recompute, job.spec.train),
        **_activation_offload(job.spec.train.activation_offload_layers),
        **_cuda_graphs(job.cuda_graphs),
        # 13 % less step time at a vocabulary of 152,000, and no second copy of the logits.
        "cross_entropy_loss_fusion": job.spec.performance.fused_cross_entropy,
        "cross_entropy_fusion_impl": "te",
        **accelerator.model_settings(),
    }
    if getattr(provider, "num_moe_experts", None):
        settings |= moe_settings(job.spec.moe, job.spec.train)
    if job.plan.adapters and getattr(provider, "moe_router_enable_expert_bias", False):
        settings["moe_router_bias_update_rate"] = 0.0  # part of the model, which is frozen and not exported
    for name, value in settings.items():
        setattr(provider, name, value)
    if job.plan.padded_vocab_size > job.vocab_size:
        provider.register_pre_wrap_hook(partial(leave_out_padding, job.vocab_size))
    if job.spec.train.freezes:
        provider.register_pre_wrap_hook(partial(freeze, hf_bridge, job.spec.train))
    return provider


def _precision(precision: str) -> dict[str, Any]:
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return {"bf16": precision == "bf16", "fp16": False, "params_dtype": dtype, "pipeline_dtype": dtype}


def _interleaving(virtual: int | None) -> dict[str, Any]:
    """With two stages a stage's neighbours before and after it are the same rank. Megatron-Core 0.19.2's batched
    exchange, its default, then pairs each one's gradient with the other's activation (both posted first), and trains
    on exchanged tensors without an error. The overlapped exchange keeps the two directions apart, and is faster."""
    return {"overlap_p2p_comm": True, "batch_p2p_comm": False} if virtual else {}


def _recompute(kind: str, train: Train) -> dict[str, Any]:
    if kind == "none":
        return {"recompute_granularity": None}
    if kind == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(train.recompute_modules) or None}
    method, layers = train.recompute_method or "uniform", train.recompute_num_layers or 1
    return {"recompute_granularity": "full", "recompute_method": method, "recompute_num_layers": layers}


def _activation_offload(layers: int) -> dict[str, Any]:
    """Weights stay: Transformer Engine 2.20 no longer takes them to the host, whatever cpu_offloading_weights says."""
    settings = {"cpu_offloading": True, "cpu_offloading_num_layers": layers, "cpu_offloading_activations": True}
    return settings if layers else {}


def _cuda_graphs(wanted: bool) -> dict[str, Any]:
    """Of whole layers."""
    settings = {"cuda_graph_impl": "transformer_engine", "cuda_graph_modules": [], "use_te_rng_tracker": True}
    return settings if wanted else {}


def _validation(job: Job) -> ValidationConfig:
    """Of every held-out row. Where there is only a test, its sizes; else raymb.bridge.testing sets them before it."""
    interval = job.spec.evaluation.eval_interval if job.validation_rows else 0
    batch, count = evaluation_batches(job.layout, job.validation_rows if interval else job.test_rows)
    return ValidationConfig(eval_interval=interval or None, eval_iters=count, eval_global_batch_size=batch or None)


def _optimizer(job: Job, precision: str) -> OptimizerConfig:
    optimizer = job.spec.optimizer
    return OptimizerConfig(
        optimizer="adam",
        lr=optimizer.learning_rate,
        min_lr=optimizer.min_learning_rate,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        use_distributed_optimizer=optimizer.distributed_optimizer,
        **_moments(optimizer.optimizer_moments),
        **_offload(job.layout.optimizer_offload, optimizer),
        bf16=precision == "bf16",
    )


def _moments(precision: str) -> dict[str, Any]:
    import torch

    if precision == "fp32":
        return {}
    # Remainders would save two more bytes, but a checkpoint with them is for this optimizer alone.
    settings = {"use_precision_aware_optimizer": True, "store_param_remainders": False}
    return settings | dict.fromkeys(("exp_avg_dtype", "exp_avg_sq_dtype"), torch.bfloat16)


def _offload(share: float, optimizer: Optimizer) -> dict[str, Any]:
    if not share:
        return {}
    return {
        "optimizer_cpu_offload": True,
        "optimizer_offload_fraction": share,
        "use_precision_aware_optimizer": True,
        "overlap_cpu_optimizer_d2h_h2d": optimizer.optimizer_offload_overlap,
        "pin_cpu_params": optimizer.optimizer_offload_pin_memory,
        "pin_cpu_grads": optimizer.optimizer_offload_pin_memory,
    }


def _scheduler(job: Job) -> SchedulerConfig:
    optimizer = job.spec.optimizer
    return SchedulerConfig(
        lr_decay_style=optimizer.lr_decay_style,
        lr_decay_iters=job.train_iters,
        lr_warmup_iters=optimizer.lr_warmup_iters,
        start_weight_decay=optimizer.weight_decay,
        end_weight_decay=optimizer.weight_decay,
        override_opt_param_scheduler=True,
    )


def _ddp(job: Job) -> DistributedDataParallelConfig:
    return DistributedDataParallelConfig(
        use_distributed_optimizer=job.spec.optimizer.distributed_optimizer,
        grad_reduce_in_fp32=job.spec.performance.grad_reduce_in_fp32,
        average_in_collective=False,  # required by calculate_per_token_loss
        check_for_nan_in_grad=False,  # raymb.bridge.bad_loss looks, at no cost
        overlap_grad_reduce=job.spec.performance.overlap_grad_reduce,
        overlap_param_gather=job.spec.performance.overlap_param_gather,
        **_fsdp(job),
    )


def _fsdp(job: Job) -> dict[str, Any]:
    import torch

    if not job.spec.parallel.fsdp:
        return {}
    return {
        "use_megatron_fsdp": True,
        "data_parallel_sharding_strategy": job.spec.parallel.megatron_fsdp,
        "megatron_fsdp_main_grads_dtype": torch.float32 if job.spec.performance.grad_reduce_in_fp32 else None,
    }


def _dataset(job: Job, validation: ValidationConfig) -> PreparedRowsConfig:
    return PreparedRowsConfig(
        directory=job.data_dir,
        seq_length=job.spec.data.seq_length,
        seed=job.spec.data_seed,
        pad_id=job.pad_id,
        validation_batch=evaluation_batches(job.layout, job.validation_rows)[0] if validation.eval_interval else 0,
        test_batch=evaluation_batches(job.layout, job.test_rows)[0],
        packing=job.spec.data.packing,
        micro_batch_size=job.layout.micro_batch_size,
        sample_multiple=job.layout.sample_multiple,
        architecture=vision_architecture(job.architecture),
        model_path=job.model_path,
    )


def _tokenizer(job: Job) -> TokenizerConfig:
    return TokenizerConfig(
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=job.model_path,
        hf_tokenizer_kwargs={"trust_remote_code": job.spec.model.trust_remote_code},
    )


def _checkpoint(job: Job, load_dir: str | None, load_random_state: bool) -> CheckpointConfig:
    fsdp = job.spec.parallel.fsdp
    return CheckpointConfig(
        save=job.checkpoint_dir,
        load=load_dir,
        pretrained_checkpoint=job.model_path if job.plan.adapters else None,
        load_rng=load_random_state,
        # 0 would switch the last step's save off, too.
        save_interval=job.spec.checkpoint.save_interval or None,
        ckpt_format="fsdp_dtensor" if fsdp else "torch_dist",
        strict_fsdp_dtensor_load=load_random_state,  # Bridge 0.6.2 looks for the state that is not wanted, too
        fully_parallel_save=job.spec.checkpoint.parallel_save,
        fully_parallel_load=job.spec.checkpoint.parallel_load,
        # Also with --no_async_save, which only waits: one way of writing (raymb.bridge.writes). Not with Megatron-FSDP,
        # whose checkpoints Bridge 0.6.2 writes while the training waits.
        async_save=not fsdp,
        async_strategy="mcore",
        dist_ckpt_optim_fully_reshardable=job.task == "reshape",
        ckpt_assume_constant_structure=True,  # plans a save once
    )

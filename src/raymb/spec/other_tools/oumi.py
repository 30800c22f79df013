"""Oumi: `oumi train -c FILE`."""

from __future__ import annotations

from typing import Any

from raymb.spec.other_tools import together
from raymb.spec.other_tools.conversions import (
    DTYPES,
    RECOMPUTED,
    REMOTE_CODE,
    SCHEDULES,
    if_true,
    run_directory,
    steps,
    targets,
)
from raymb.spec.other_tools.record import TOGETHER, Given, Tool, key
from raymb.spec.other_tools.translated import Translation


def _datasets(rows: Any) -> Any:
    """[{dataset_name, subset, split, sample_count, mixture_proportion}]."""
    words = []
    for row in rows:
        name = row.get("dataset_path") or row["dataset_name"]
        query = "&".join(
            f"{ours}={row[name]}" for name, ours in (("subset", "config"), ("split", "split")) if row.get(name)
        )
        count = f"#{row['sample_count']}" if row.get("sample_count") else ""
        weight = f":{row['mixture_proportion']}" if row.get("mixture_proportion") else ""
        words.append(f"{name}{'?' if query else ''}{query}{count}{weight}")
    return words


def _together(given: Given, translation: Translation) -> None:
    together.batch(given, translation, "training.per_device_train_batch_size", "training.gradient_accumulation_steps")
    if "megatron.micro_batch_size" in given:
        translation.set("micro_batch_size", given["megatron.micro_batch_size"], "megatron.micro_batch_size")
    if "megatron.global_batch_size" in given:
        translation.set("global_batch_size", given["megatron.global_batch_size"], "megatron.global_batch_size")
    together.warm_up(given, translation, "training.warmup_ratio")
    optimizer = "megatron.optimizer_config"
    together.offload(
        given, translation, f"{optimizer}.optimizer_cpu_offload", f"{optimizer}.optimizer_offload_fraction"
    )
    together.moments(given, translation, f"{optimizer}.use_precision_aware_optimizer", f"{optimizer}.exp_avg_dtype")
    chunks = given.get("megatron.virtual_pipeline_model_parallel_size")
    if chunks:
        size = translation.flags.get("pipeline_parallel_size", 1)
        translation.set(
            "virtual_pipeline_parallel_size", chunks // size, "megatron.virtual_pipeline_model_parallel_size"
        )


_NO_RL = "raymb fine-tunes with given answers; reinforcement learning is no goal"

OUMI = Tool(
    "oumi",
    "Oumi",
    keys=(
        key("model.model_name", "hf_model_path"),
        key("model.torch_dtype_str", "precision", value=DTYPES),
        key("model.load_pretrained_weights", "init", value={True: "pretrained", False: "random"}),
        key("model.trust_remote_code", "", REMOTE_CODE),
        key("model.model_max_length", "seq_length"),
        key("model.chat_template", "", "the tokenizer's own; `data.chat_template` takes a file"),
        key("model.attn_implementation", "", "Transformer Engine chooses the attention"),
        key("model.enable_liger_kernel training.compile", "", "Transformer Engine's fused kernels are on by default"),
        key("data.train.datasets", "dataset", "several mix by weight: `[a:0.7, b:0.3]`", _datasets),
        key("data.validation.datasets", "validation_dataset", "", lambda rows: _datasets(rows)[0]),
        key("data.train.pack", "packing"),
        key("data.train.target_col", "", "columns are found; `data.prompt_column` and the like name others"),
        key(
            "data.train.collator_name data.train.use_async_dataset data.train.use_torchdata",
            "",
            "rows are prepared once",
        ),
        key(
            "training.trainer_type",
            "",
            "raymb fine-tunes with given answers, as `TRL_SFT` does; reinforcement learning is no goal",
        ),
        key("training.max_steps", "train_iters", "", steps),
        key("training.num_train_epochs", "num_epochs"),
        key("training.learning_rate", "learning_rate"),
        key("training.lr_scheduler_type", "lr_decay_style", "", SCHEDULES),
        key("training.warmup_steps", "lr_warmup_iters"),
        key("training.warmup_ratio", "lr_warmup_iters", "in steps: the ratio times the steps of the run", TOGETHER),
        key(
            "training.weight_decay training.adam_beta1 training.adam_beta2 training.adam_epsilon",
            "weight_decay adam_beta1 adam_beta2 adam_eps",
        ),
        key("training.max_grad_norm", "clip_grad"),
        key("training.seed", "seed"),
        key("training.optimizer", "", "AdamW; `optimizer.optimizer_moments: bf16` has smaller moments"),
        key("training.output_dir", "storage_path experiment_name", "", run_directory),
        key("training.run_name", "experiment_name"),
        key(
            "training.save_steps training.eval_steps training.logging_steps", "save_interval eval_interval log_interval"
        ),
        key("training.enable_wandb", "wandb_project", "", if_true("oumi")),
        key("training.per_device_train_batch_size megatron.micro_batch_size", "micro_batch_size", "", TOGETHER),
        key(
            "training.gradient_accumulation_steps",
            "global_batch_size",
            "these steps x micro batch x data parallel size",
            TOGETHER,
        ),
        key("training.enable_gradient_checkpointing", "recompute", "", RECOMPUTED),
        key("training.use_peft", "peft", "", {True: "lora", False: "none"}),
        key("peft.lora_r peft.lora_alpha peft.lora_dropout", "lora_rank lora_alpha lora_dropout"),
        key("peft.lora_target_modules", "lora_target_modules", "", targets),
        key(
            "peft.q_lora",
            "",
            "adapters lie on bf16 weights",
        ),
        key("megatron.global_batch_size", "global_batch_size", "", TOGETHER),
        key("megatron.tensor_model_parallel_size", "tensor_parallel_size"),
        key("megatron.pipeline_model_parallel_size", "pipeline_parallel_size"),
        key(
            "megatron.virtual_pipeline_model_parallel_size",
            "virtual_pipeline_parallel_size",
            "chunks of a stage: Oumi's number divided by the pipeline size",
            TOGETHER,
        ),
        key("megatron.context_parallel_size", "context_parallel_size"),
        key("megatron.expert_model_parallel_size", "expert_parallel_size"),
        key("megatron.expert_tensor_parallel_size", "expert_tensor_parallel_size"),
        key("megatron.sequence_parallel", "sequence_parallel", "`auto`: on with tensor parallel"),
        key("megatron.enable_sequence_packing", "packing"),
        key("megatron.use_distributed_optimizer", "distributed_optimizer", "on by default"),
        key(
            "megatron.ddp_config.grad_reduce_in_fp32 megatron.ddp_config.overlap_grad_reduce "
            "megatron.ddp_config.overlap_param_gather",
            "grad_reduce_in_fp32 overlap_grad_reduce overlap_param_gather",
        ),
        key(
            "megatron.ddp_config.average_in_collective",
            "",
            "the loss is a mean over the batch's trained tokens, so sums are divided once",
        ),
        key(
            "megatron.optimizer_config.optimizer_cpu_offload megatron.optimizer_config.optimizer_offload_fraction",
            "optimizer_offload",
            "the share, 0 to 1",
            TOGETHER,
        ),
        key("megatron.optimizer_config.overlap_cpu_optimizer_d2h_h2d", "optimizer_offload_overlap"),
        key(
            "megatron.optimizer_config.use_precision_aware_optimizer megatron.optimizer_config.exp_avg_dtype",
            "optimizer_moments",
            "`bf16` where the type is; with offload it is implied",
            TOGETHER,
        ),
        key(
            "megatron.transformer_config.recompute_granularity megatron.transformer_config.recompute_method "
            "megatron.transformer_config.recompute_num_layers",
            "recompute recompute_method recompute_num_layers",
        ),
        key(
            "megatron.transformer_config.recompute_modules",
            "recompute_modules",
            "with `recompute: selective`; Megatron ignores them with `full`",
        ),
        key(
            "megatron.checkpoint_config.use_async_checkpoint",
            "async_save",
            "on by default, by a thread",
        ),
        key("megatron.checkpoint_config.use_fully_parallel_strategy", "parallel_save", "and `parallel_load`"),
        key("megatron.checkpoint_config.async_persistent", "", "a thread writes, not a process that stays"),
        key("megatron.transformer_impl", "", "Transformer Engine on GPUs"),
        key("megatron.auto_convert_to_hf", "export_hf", "on by default"),
        key("megatron.mca_config_overrides", "", "`overrides`: fields of Bridge's `ConfigContainer`"),
        key(
            "megatron.enable_weight_sync megatron.weight_sync_method megatron.inference_backend training.grpo",
            "",
            _NO_RL,
        ),
        key("fsdp.enable_fsdp deepspeed.enable_deepspeed", "", "`parallel.megatron_fsdp`; see Ray Train below"),
    ),
    together=_together,
    others={
        "megatron.sampling_config": _NO_RL,
        "megatron.grpo_config": _NO_RL,
        "training.grpo": _NO_RL,
        "fsdp": "`parallel.megatron_fsdp` shares weights; see Ray Train in docs/coming-from.md",
        "deepspeed": "`parallel.megatron_fsdp` shares weights; see Ray Train in docs/coming-from.md",
    },
)

"""NeMo-RL: `examples/run_sft.py --config FILE`."""

from __future__ import annotations

from typing import Any

from raymb.spec.other_tools import together
from raymb.spec.other_tools.conversions import DTYPES, RECOMPUTED, steps, targets
from raymb.spec.other_tools.record import NOTHING, TOGETHER, Given, Tool, key
from raymb.spec.other_tools.translated import Translation
from raymb.spec.training import Moe

_MEGATRON, _DTENSOR = "policy.megatron_cfg", "policy.dtensor_cfg"


def _prepare(given: Given) -> Given:
    """Without the section of the back end that is off; the optimizer of DTensor is beside its section."""
    megatron = given.get(f"{_MEGATRON}.enabled")
    off = (f"{_DTENSOR}.", "policy.optimizer.") if megatron else (f"{_MEGATRON}.",)
    kept = {name: value for name, value in given.items() if not name.startswith(off)}
    for section in ("peft", "fp8_cfg"):
        if not kept.get(f"{_MEGATRON}.{section}.enabled"):
            kept = {name: value for name, value in kept.items() if not name.startswith(f"{_MEGATRON}.{section}.")}
    if not kept.get(f"{_DTENSOR}.lora_cfg.enabled"):
        kept = {name: value for name, value in kept.items() if not name.startswith(f"{_DTENSOR}.lora_cfg.")}
    for name in ("sequence_packing", "dynamic_batching"):
        if not kept.get(f"policy.{name}.enabled"):
            kept = {key: value for key, value in kept.items() if not key.startswith(f"policy.{name}.")}
    for name in ("wandb", "mlflow", "swanlab", "tensorboard"):
        if not kept.get(f"logger.{name}_enabled"):
            kept = {key: value for key, value in kept.items() if not key.startswith(f"logger.{name}.")}
    nodes, gpus = kept.get("cluster.num_nodes"), kept.get("cluster.gpus_per_node")
    return kept | ({"workers": int(nodes) * int(gpus)} if nodes and gpus else {})


def _together(given: Given, translation: Translation) -> None:
    optimizer, fp8 = f"{_MEGATRON}.optimizer", f"{_MEGATRON}.fp8_cfg"
    together.offload(
        given, translation, f"{optimizer}.optimizer_cpu_offload", f"{optimizer}.optimizer_offload_fraction"
    )
    together.fp8(given, translation, f"{fp8}.enabled", f"{fp8}.fp8_recipe")
    for section in (f"{_MEGATRON}.peft", f"{_DTENSOR}.lora_cfg"):
        if given.get(f"{section}.match_all_linear") or given.get(f"{section}.target_modules") == []:
            translation.set("lora_target_modules", ["all-linear"], section)
    if given.get(f"{_MEGATRON}.expert_model_parallel_size", 1) == 1:  # its files say this of dense models, too
        for flag in Moe.model_fields:
            translation.drop(flag, f"of a mixture-of-experts model; for one write `moe.{flag}`")
    if not given.get("checkpointing.enabled", True):
        translation.set("save_interval", 0, "checkpointing.enabled")


def _betas(value: Any) -> Any:
    return {"adam_beta1": value[0], "adam_beta2": value[1]}


def _data(value: Any) -> Any:
    """One data set, or several."""
    words = [row.get("data_path") or row["dataset_name"] for row in (value if isinstance(value, list) else [value])]
    return [{"openmathinstruct2": "openmathinstruct2", "tulu3_sft_mixture": "tulu3"}.get(w.lower(), w) for w in words]


def _metric(value: Any) -> Any:
    return {"val_loss": "validation_loss", "train_loss": "train_loss", "loss": "validation_loss"}.get(
        str(value).rpartition(":")[2], NOTHING
    )


def _megatron(theirs: str, flags: str = "", note: str = "", value: Any = None) -> Any:
    return key(" ".join(f"{_MEGATRON}.{name}" for name in theirs.split()), flags, note, value)


def _dtensor(theirs: str, flags: str = "", note: str = "", value: Any = None) -> Any:
    return key(" ".join(f"{_DTENSOR}.{name}" for name in theirs.split()), flags, note, value)


NEMO_RL = Tool(
    "nemo-rl",
    "NeMo-RL",
    keys=(
        key("policy.model_name", "hf_model_path"),
        key("policy.tokenizer.name", "", "the model's own"),
        key("policy.tokenizer.chat_template", "", "the tokenizer's own; `data.chat_template` takes a file"),
        key("policy.tokenizer.chat_template_kwargs", "chat_template_kwargs"),
        key("policy.train_global_batch_size policy.train_micro_batch_size", "global_batch_size micro_batch_size"),
        key("policy.max_total_sequence_length", "seq_length"),
        key("policy.precision", "precision", "", DTYPES),
        key("policy.max_grad_norm", "clip_grad"),
        key("policy.sequence_packing.enabled", "packing"),
        key(
            "policy.sequence_packing.train_mb_tokens policy.sequence_packing.algorithm "
            "policy.sequence_packing.sequence_length_round policy.make_sequence_length_divisible_by",
            "",
            "rows are packed into `data.seq_length` tokens once, before training",
        ),
        key("policy.dynamic_batching.enabled", "", "rows are packed, or padded to their batch"),
        key("policy.offload_optimizer_for_logprob", "", "of reinforcement learning"),
        key("policy.optimizer.name", "", "AdamW"),
        key(
            "policy.optimizer.kwargs.lr policy.optimizer.kwargs.weight_decay policy.optimizer.kwargs.eps",
            "learning_rate weight_decay adam_eps",
        ),
        key("policy.optimizer.kwargs.betas", "adam_beta1 adam_beta2", "", _betas),
        key("policy.optimizer.kwargs.foreach policy.optimizer.kwargs.fused", "", "Transformer Engine's fused AdamW"),
        key("policy.scheduler", "", "`optimizer.lr_decay_style`, `optimizer.lr_warmup_iters`"),
        _dtensor("enabled _v2 custom_parallel_plan automodel_kwargs env_vars", "", "raymb trains with Megatron-Core"),
        _dtensor("tensor_parallel_size context_parallel_size", "tensor_parallel_size context_parallel_size"),
        _dtensor("sequence_parallel", "sequence_parallel"),
        _dtensor("activation_checkpointing", "recompute", "", RECOMPUTED),
        _dtensor("cpu_offload", "", "`optimizer.optimizer_offload`"),
        _dtensor("lora_cfg.enabled", "peft", "", {True: "lora", False: "none"}),
        _dtensor("lora_cfg.dim lora_cfg.alpha lora_cfg.dropout", "lora_rank lora_alpha lora_dropout"),
        _dtensor("lora_cfg.target_modules lora_cfg.match_all_linear", "lora_target_modules", "", TOGETHER),
        _megatron("enabled env_vars empty_unused_memory_level", "", "always Megatron-Core"),
        _megatron("activation_checkpointing", "recompute", "", RECOMPUTED),
        _megatron(
            "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size expert_model_parallel_size "
            "expert_tensor_parallel_size",
            "tensor_parallel_size pipeline_parallel_size context_parallel_size expert_parallel_size "
            "expert_tensor_parallel_size",
        ),
        _megatron("sequence_parallel", "sequence_parallel"),
        _megatron(
            "num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage",
            "num_layers_in_first_stage num_layers_in_last_stage",
        ),
        _megatron("pipeline_dtype", "", "follows from the precision"),
        _megatron("freeze_moe_router", "", "`train.freeze` takes a regular expression"),
        _megatron(
            "moe_router_dtype moe_permute_fusion moe_shared_expert_overlap",
            "moe_router_dtype moe_permute_fusion moe_shared_expert_overlap",
        ),
        _megatron("moe_router_load_balancing_type", "moe_load_balancing"),
        _megatron("moe_token_dispatcher_type", "moe_token_dispatcher", "`flex` is `deepep` or `hybridep` here"),
        _megatron("moe_enable_deepep", "", "`moe.moe_token_dispatcher: deepep`"),
        _megatron("moe_router_bias_update_rate moe_per_layer_logging", "", "an override: `model.` and the name"),
        _megatron("apply_rope_fusion bias_activation_fusion", "fused_rope fused_activation", "on by default"),
        _megatron("defer_fp32_logits", "", "the loss's kernel makes no copy of the logits"),
        _megatron("peft.enabled", "peft", "", {True: "lora", False: "none"}),
        _megatron("peft.dim peft.alpha peft.dropout", "lora_rank lora_alpha lora_dropout"),
        _megatron(
            "peft.target_modules",
            "lora_target_modules",
            "empty is `all-linear`",
            lambda value: targets(value) or NOTHING,
        ),
        _megatron("optimizer.optimizer", "", "AdamW"),
        _megatron(
            "optimizer.lr optimizer.min_lr optimizer.weight_decay optimizer.adam_beta1 optimizer.adam_beta2 "
            "optimizer.adam_eps optimizer.clip_grad",
            "learning_rate min_learning_rate weight_decay adam_beta1 adam_beta2 adam_eps clip_grad",
        ),
        _megatron(
            "optimizer.bf16 optimizer.fp16 optimizer.params_dtype optimizer.sgd_momentum",
            "",
            "follow from the precision; AdamW",
        ),
        _megatron("optimizer.use_distributed_optimizer", "distributed_optimizer"),
        _megatron(
            "optimizer.use_precision_aware_optimizer",
            "",
            "`optimizer.optimizer_moments: bf16`; its default here is fp32",
        ),
        _megatron(
            "optimizer.optimizer_cpu_offload optimizer.optimizer_offload_fraction", "optimizer_offload", "", TOGETHER
        ),
        _megatron("scheduler.lr_decay_style scheduler.lr_warmup_iters", "lr_decay_style lr_warmup_iters"),
        _megatron(
            "scheduler.start_weight_decay scheduler.end_weight_decay scheduler.weight_decay_incr_style",
            "",
            "the optimizer's weight decay, for all steps",
        ),
        _megatron(
            "scheduler.lr_decay_iters scheduler.lr_warmup_init",
            "",
            "the decay ends with the run; the warm-up begins at 0",
        ),
        _megatron(
            "distributed_data_parallel_config.grad_reduce_in_fp32 "
            "distributed_data_parallel_config.overlap_grad_reduce "
            "distributed_data_parallel_config.overlap_param_gather",
            "grad_reduce_in_fp32 overlap_grad_reduce overlap_param_gather",
        ),
        _megatron(
            "distributed_data_parallel_config.average_in_collective",
            "",
            "the loss is a mean over the batch's trained tokens, so sums are divided once",
        ),
        _megatron(
            "distributed_data_parallel_config.data_parallel_sharding_strategy "
            "distributed_data_parallel_config.use_custom_fsdp",
            "",
            "`parallel.megatron_fsdp`",
        ),
        _megatron(
            "fp8_cfg.enabled fp8_cfg.fp8 fp8_cfg.fp8_recipe", "precision", "`fp8`, `fp8_blockwise`, `mxfp8`", TOGETHER
        ),
        key("sft.max_num_steps", "train_iters", "the lesser of the two counts: give one of them", steps),
        key("sft.max_num_epochs", "num_epochs"),
        key("sft.val_period sft.val_at_start", "eval_interval eval_at_start"),
        key(
            "sft.val_batches sft.val_global_batch_size sft.val_micro_batch_size sft.val_at_end",
            "",
            "`evaluation.max_validation_samples`: a validation is of all validation rows, or of so many",
        ),
        key("sft.seed", "seed"),
        key("checkpointing.enabled", "save_interval", "0: only the last", TOGETHER),
        key("checkpointing.checkpoint_dir", "output_dir"),
        key("checkpointing.metric_name", "best_metric", "", _metric),
        key(
            "checkpointing.higher_is_better checkpointing.checkpoint_must_save_by",
            "",
            "a lower loss is better; `resilience.max_time`",
        ),
        key("checkpointing.keep_top_k", "keep_best"),
        key("checkpointing.save_period", "save_interval"),
        key("checkpointing.save_consolidated", "", "`checkpoint.export_hf` is on by default"),
        key("data.train", "dataset", "its name or its file", _data),
        key("data.validation", "validation_dataset", "its name or its file", lambda value: _data(value)[0]),
        key("data.dataset_name", "dataset"),
        key("data.max_input_seq_length", "", "`data.seq_length` is of the whole row"),
        key("data.add_bos data.add_eos data.add_generation_prompt", "", "as the chat template says"),
        key("data.shuffle data.num_workers", "", "rows are mixed by the seed, and prepared once"),
        key("data.default", "", "`data.prompt_column` and the like"),
        key(
            "logger.log_dir logger.monitor_gpus logger.tensorboard_enabled logger.wandb_enabled logger.mlflow_enabled "
            "logger.swanlab_enabled logger.num_val_samples_to_print",
            "",
            "metrics.jsonl and TensorBoard, in the run directory",
        ),
        key("logger.wandb.project logger.mlflow.experiment_name", "wandb_project mlflow_experiment"),
        key(
            "logger.wandb.name logger.mlflow.run_name",
            "experiment_name experiment_name",
            "",
            lambda name: str(name).replace("/", "-"),
        ),
        key("cluster.gpus_per_node", "gpus_per_node"),
        key("cluster.num_nodes", "num_workers", "times the GPUs of a node", TOGETHER),
    ),
    prepare=_prepare,
    together=_together,
    others={
        "logger.tensorboard": "the run directory has tensorboard/",
        "logger.gpu_monitoring": "`memory_bytes` in metrics.jsonl",
        f"{_DTENSOR}.lora_cfg": "as raymb's adapters are",
        f"{_MEGATRON}.peft": "as raymb's adapters are",
        "grpo": "reinforcement learning is no goal",
        "loss_fn": "reinforcement learning is no goal",
        "env": "reinforcement learning is no goal",
    },
)

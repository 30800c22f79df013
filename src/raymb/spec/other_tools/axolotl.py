"""axolotl: `axolotl train FILE`."""

from __future__ import annotations

from typing import Any

from raymb.spec.other_tools import together
from raymb.spec.other_tools.conversions import (
    RECOMPUTED,
    REMOTE_CODE,
    SCHEDULES,
    bf16,
    names,
    run_directory,
    steps,
    targets,
    text_of,
)
from raymb.spec.other_tools.record import NOTHING, TOGETHER, Given, Tool, key
from raymb.spec.other_tools.translated import Translation


def _datasets(rows: Any) -> Any:
    """[{path, name, split, type}]; `name` is the configuration of a hub data set."""
    words = []
    for row in rows:
        query = "&".join(f"{ours}={row[one]}" for one, ours in (("name", "config"), ("split", "split")) if row.get(one))
        words.append(f"{row['path']}{'?' if query else ''}{query}")
    return words


def _together(given: Given, translation: Translation) -> None:
    together.batch(given, translation, "micro_batch_size", "gradient_accumulation_steps")
    together.warm_up(given, translation, "warmup_ratio")
    if given.get("lora_target_linear"):
        translation.set("lora_target_modules", ["all-linear"], "lora_target_linear")
    if given.get("peft_use_dora") and translation.flags.get("peft") == "lora":
        translation.set("peft", "dora", "peft_use_dora")
    per_epoch = ("evals_per_epoch", "eval_interval"), ("saves_per_epoch", "save_interval")
    for name, flag in per_epoch:
        if given.get(name):
            translation.leave_out(name, given[name], f"--{flag} counts steps")


def _share(value: Any) -> Any:
    return float(value) if float(value) < 1 else NOTHING


_WEIGHTS = "adapters lie on bf16 weights"
_TOKENIZER = "the model's own"

AXOLOTL = Tool(
    "axolotl",
    "axolotl",
    keys=(
        key("base_model", "hf_model_path"),
        key("revision_of_model", "hf_revision"),
        key("model_type tokenizer_type tokenizer_config is_llama_derived_model", "", _TOKENIZER),
        key("trust_remote_code", "", REMOTE_CODE),
        key("load_in_8bit load_in_4bit", "", _WEIGHTS),
        key(
            "datasets",
            "dataset",
            "`path`, `name` and `split` of each; shapes of rows are found, `type` is not needed",
            _datasets,
        ),
        key("test_datasets", "validation_dataset", "", lambda rows: _datasets(rows)[0]),
        key("dataset_prepared_path dataset_processes", "", "prepared rows are kept and found again"),
        key("shuffle_merged_datasets", "", "rows are always mixed"),
        key("chat_template", "", "the tokenizer's own; `data.chat_template` takes a file"),
        key("chat_template_jinja", "", "`data.chat_template` takes a file"),
        key("train_on_inputs", "loss_mode", "", {True: "full", False: "assistant"}),
        key("val_set_size", "validation_split", "a share; a number of rows is `max_validation_samples`", _share),
        key("sequence_len", "seq_length"),
        key("sample_packing", "packing"),
        key("eval_sample_packing pad_to_sequence_len group_by_length", "", "rows are packed, or padded to their batch"),
        key("excess_length_strategy", "long_rows", "", {"drop": "drop", "truncate": "truncate", "raise": "fail"}),
        key("output_dir", "storage_path experiment_name", "", run_directory),
        key("adapter", "peft", "", {"lora": "lora", "qlora": "lora"}),
        key("lora_r lora_alpha lora_dropout", "lora_rank lora_alpha lora_dropout"),
        key("lora_target_modules", "lora_target_modules", "", targets),
        key("lora_target_linear", "lora_target_modules", "`all-linear`", TOGETHER),
        key("lora_modules_to_save", "modules_to_save", "", names),
        key("peft_use_dora", "peft", "`dora`", TOGETHER),
        key("peft_use_rslora", "use_rslora"),
        key(
            "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_fan_in_fan_out", "", "kernels are Transformer Engine's"
        ),
        key("lora_model_dir", "", "`checkpoint.resume` takes a checkpoint"),
        key("merge_lora", "merge"),
        key("micro_batch_size", "micro_batch_size", "", TOGETHER),
        key(
            "gradient_accumulation_steps",
            "global_batch_size",
            "these steps x micro batch x data parallel size",
            TOGETHER,
        ),
        key("eval_batch_size", "", "the micro batch"),
        key("num_epochs", "num_epochs"),
        key("max_steps", "train_iters", "", steps),
        key("optimizer", "", "AdamW; `optimizer.optimizer_moments: bf16` has smaller moments"),
        key("lr_scheduler", "lr_decay_style", "", SCHEDULES),
        key("cosine_min_lr_ratio", "", "`optimizer.min_learning_rate`, as a rate"),
        key("learning_rate", "learning_rate"),
        key("warmup_steps", "lr_warmup_iters"),
        key("warmup_ratio", "lr_warmup_iters", "in steps: the ratio times the steps of the run", TOGETHER),
        key(
            "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm",
            "weight_decay adam_beta1 adam_beta2 adam_eps clip_grad",
        ),
        key("bf16", "precision", "`true` is `bf16`", bf16),
        key("fp16 tf32 float16 bfloat16", "", "`train.precision`; no fp16: bf16 needs no loss scaling"),
        key("gradient_checkpointing", "recompute", "", {**RECOMPUTED, "offload": "full", "unsloth": "full"}),
        key("gradient_checkpointing_kwargs", "", "Megatron's recomputation"),
        key("resume_from_checkpoint", "resume"),
        key("auto_resume_from_checkpoints", "", "`checkpoint.resume: auto` is the default"),
        key("logging_steps", "log_interval", "every step is in metrics.jsonl"),
        key("save_steps eval_steps", "save_interval eval_interval"),
        key("evals_per_epoch saves_per_epoch", "eval_interval save_interval", "in steps", TOGETHER),
        key("save_total_limit", "keep_last"),
        key("early_stopping_patience", "early_stopping_patience"),
        key("seed", "seed"),
        key("ddp_timeout", "nccl_timeout"),
        key(
            "flash_attention sdp_attention xformers_attention attn_implementation flash_attn_cross_entropy",
            "",
            "Transformer Engine chooses the attention",
        ),
        key(
            "plugins liger_rope liger_rms_norm liger_glu_activation liger_fused_linear_cross_entropy",
            "",
            "Transformer Engine's fused kernels are on by default",
        ),
        key(
            "deepspeed fsdp fsdp_config fsdp_version",
            "",
            "`parallel.megatron_fsdp` shares weights, gradients and the optimizer's state",
        ),
        key("tensor_parallel_size", "tensor_parallel_size"),
        key("context_parallel_size sequence_parallel_degree", "context_parallel_size context_parallel_size"),
        key("dp_shard_size dp_replicate_size", "", "`parallel.data_parallel_size`"),
        key("expert_parallel_size", "expert_parallel_size"),
        key("special_tokens", "", "the tokenizer's own"),
        key("tokens", "", "`model.add_tokens`: a file, a token a line"),
        key("unfrozen_parameters", "unfreeze"),
        key("wandb_project wandb_entity", "wandb_project wandb_entity"),
        key("wandb_name wandb_run_id", "experiment_name experiment_name", "", text_of),
        key("wandb_watch wandb_log_model", "", "metrics only"),
        key("mlflow_experiment_name mlflow_tracking_uri", "mlflow_experiment mlflow_tracking_uri"),
        key("hub_model_id", "push_to_hub"),
        key("hub_strategy", "", "the export at the end is pushed"),
        key("strict save_first_step save_safetensors", "", "a mistyped key is refused; files are safetensors"),
    ),
    together=_together,
    others={"special_tokens": "the tokenizer's own"},
)

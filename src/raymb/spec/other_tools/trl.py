"""TRL: `trl sft --config FILE`, or a script of `trl/scripts/sft.py`; its trainers take transformers' arguments."""

from __future__ import annotations

from raymb.spec.other_tools import together
from raymb.spec.other_tools.conversions import (
    DTYPES,
    OVERWRITE,
    RECOMPUTED,
    REMOTE_CODE,
    SCHEDULES,
    bf16,
    evaluated,
    run_directory,
    targets,
    trackers,
)
from raymb.spec.other_tools.record import TOGETHER, Given, Tool, key
from raymb.spec.other_tools.translated import Translation


def _together(given: Given, translation: Translation) -> None:
    together.training_arguments(given, translation)
    name, asked = given.get("dataset_name"), [("dataset_config", "config"), ("dataset_train_split", "split")]
    query = "&".join(f"{ours}={given[theirs]}" for theirs, ours in asked if given.get(theirs))
    if name:
        translation.set("dataset", f"{name}{'?' if query else ''}{query}", "dataset_name")


TRL = Tool(
    "trl",
    "TRL",
    keys=(
        key("model_name_or_path", "hf_model_path"),
        key("model_revision", "hf_revision"),
        key("trust_remote_code", "", REMOTE_CODE),
        key("torch_dtype dtype", "precision", "", DTYPES),
        key("attn_implementation use_liger_kernel", "", "Transformer Engine chooses the attention, and fuses"),
        key("dataset_name", "dataset", "a hub id with `?config=&split=`", TOGETHER),
        key("dataset_config dataset_train_split", "dataset", "`?config=` and `?split=` of the hub id", TOGETHER),
        key("dataset_test_split", "", "the data set's own validation rows; `data.validation_dataset` names others"),
        key("dataset_streaming", "streaming"),
        key("dataset_text_field", "text_column"),
        key("dataset_num_proc dataloader_num_workers", "", "rows are prepared once, on all cores"),
        key("eval_dataset", "validation_dataset"),
        key("max_length max_seq_length", "seq_length"),
        key("packing", "packing"),
        key(
            "packing_strategy padding_free eval_packing pad_to_multiple_of",
            "",
            "rows are packed, or padded to their batch",
        ),
        key("completion_only_loss assistant_only_loss", "loss_mode", "", {True: "assistant", False: "full"}),
        key("chat_template_path", "chat_template"),
        key("eos_token pad_token", "", "the tokenizer's own"),
        *together.BATCH_AND_STEPS,
        key(
            "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm",
            "learning_rate weight_decay adam_beta1 adam_beta2 adam_eps clip_grad",
        ),
        key("lr_scheduler_type", "lr_decay_style", "", SCHEDULES),
        key("lr_scheduler_kwargs", "", "`optimizer.min_learning_rate`"),
        key("warmup_steps", "lr_warmup_iters"),
        key("warmup_ratio", "lr_warmup_iters", "in steps: the ratio times the steps of the run", TOGETHER),
        key("optim", "", "AdamW; `optimizer.optimizer_moments: bf16` has smaller moments"),
        key("bf16", "precision", "`true` is `bf16`", bf16),
        key("fp16 tf32", "", "no fp16: bf16 needs no loss scaling"),
        key("gradient_checkpointing", "recompute", "", RECOMPUTED),
        key("gradient_checkpointing_kwargs", "", "Megatron's recomputation"),
        key("fsdp deepspeed fsdp_config", "", "`parallel.megatron_fsdp` shares weights, gradients, optimizer state"),
        key("use_peft", "peft", "", {True: "lora", False: "none"}),
        key("lora_r lora_alpha lora_dropout", "lora_rank lora_alpha lora_dropout"),
        key("lora_target_modules", "lora_target_modules", "", targets),
        key("lora_modules_to_save", "modules_to_save"),
        key("use_rslora", "use_rslora"),
        key("use_dora", "peft", "`dora`", TOGETHER),
        key("lora_task_type", "", "language models"),
        key("load_in_4bit load_in_8bit", "", "adapters lie on bf16 weights"),
        key("output_dir", "storage_path experiment_name", "", run_directory),
        key("overwrite_output_dir", "", OVERWRITE),
        key("run_name", "experiment_name"),
        key(
            "resume_from_checkpoint",
            "resume",
            "a path; `true` is `auto`",
            lambda value: "auto" if value is True else value,
        ),
        key("logging_steps save_steps eval_steps", "log_interval save_interval eval_interval"),
        key("save_total_limit", "keep_last"),
        key("eval_strategy", "eval_interval", "`no` is 0", evaluated),
        key("eval_on_start", "eval_at_start"),
        key("save_strategy logging_strategy", "", "`checkpoint.save_interval`: 0 for none"),
        key("logging_first_step do_eval load_best_model_at_end", "", "every step is in metrics.jsonl"),
        key("metric_for_best_model", "best_metric", "", {"eval_loss": "validation_loss", "loss": "validation_loss"}),
        key("report_to", "wandb_project mlflow_experiment", "each takes the name of a project or experiment", trackers),
        key("seed data_seed", "seed data_seed"),
        key("ddp_timeout", "nccl_timeout"),
        key("push_to_hub hub_model_id", "push_to_hub", "OWNER/NAME", TOGETHER),
        key("hub_strategy", "", "the export at the end is pushed"),
        key("num_processes", "num_workers", "of accelerate"),
        key("num_machines", "", "`cluster.gpus_per_node`"),
    ),
    together=_together,
)

"""LLaMA-Factory: `llamafactory-cli train FILE`."""

from __future__ import annotations

from typing import Any

from raymb.spec.other_tools import together
from raymb.spec.other_tools.conversions import (
    OVERWRITE,
    REMOTE_CODE,
    SCHEDULES,
    bf16,
    evaluated,
    names,
    run_directory,
    targets,
    trackers,
)
from raymb.spec.other_tools.record import NOTHING, TOGETHER, Given, Tool, key
from raymb.spec.other_tools.translated import Translation


def _together(given: Given, translation: Translation) -> None:
    together.training_arguments(given, translation)
    if translation.flags.get("dataset") and not given.get("dataset_dir"):
        translation.origins["dataset"] = "dataset: names of dataset_info.json; write a file or a hub id for each"


def _packing(value: Any) -> Any:
    return NOTHING if value is None else bool(value)


_ON = "on by default"

LLAMA_FACTORY = Tool(
    "llama-factory",
    "LLaMA-Factory",
    keys=(
        key("model_name_or_path", "hf_model_path"),
        key("model_revision", "hf_revision"),
        key("trust_remote_code", "", REMOTE_CODE),
        key(
            "megatron_pretrained_checkpoint resume_from_checkpoint",
            "resume",
            "one of raymb's or of Bridge's; Hugging Face's weights need none",
        ),
        key(
            "do_train stage",
            "",
            "`raymb finetune`; `stage: pt` is rows with a `text`, or `data.text_column`",
        ),
        key("finetuning_type", "peft", "", {"full": "none", "lora": "lora"}),
        key("lora_rank lora_alpha lora_dropout", "lora_rank lora_alpha lora_dropout", "dropout counts here"),
        key("lora_target", "lora_target_modules", "`all` is `all-linear`", targets),
        key("use_dora", "peft", "", TOGETHER),
        key("use_rslora", "use_rslora"),
        key("additional_target", "modules_to_save", "`embed_tokens`, `lm_head`", names),
        key("dataset", "dataset", "a file or hub id instead of a name in `dataset_info.json`", names),
        key("eval_dataset", "validation_dataset"),
        key(
            "dataset_dir formatting columns tags",
            "",
            "Alpaca's and ShareGPT's columns need none; `data.prompt_column` and the like, `data.message_keys`, "
            "`data.role_names`",
        ),
        key("max_samples", "max_samples", "of each data set, the first ones"),
        key("interleave_probs mix_strategy", "", "weights of `data.dataset`: `[a:0.7, b:0.3]`"),
        key(
            "add_tokens add_special_tokens resize_vocab",
            "",
            "`model.add_tokens`: a file, a token a line; `<|...|>` are special",
        ),
        key("train_from_scratch", "init", "", {True: "random", False: "pretrained"}),
        key("streaming", "streaming", "rows are prepared once all the same"),
        key(
            "template",
            "",
            "the tokenizer's own, which Alpaca's rows go through here, too; `data.chat_template` takes a file",
        ),
        key("default_system", "system_prompt"),
        key("cutoff_len", "seq_length"),
        key("use_packed_sequences packing neat_packing", "packing packing packing", "", _packing),
        key("train_on_prompt", "loss_mode", "", {True: "full", False: "assistant"}),
        key("mask_history", "loss_mode", "", {True: "last_turn", False: "assistant"}),
        key(
            "preprocessing_num_workers dataloader_num_workers overwrite_cache",
            "",
            "rows are prepared once, on all cores, and found again",
        ),
        key("val_size", "validation_split", "a share; a number of rows is `max_validation_samples`"),
        key("output_dir", "storage_path experiment_name", "", run_directory),
        key("overwrite_output_dir", "", OVERWRITE),
        key("push_to_hub hub_model_id", "push_to_hub", "OWNER/NAME", TOGETHER),
        *together.BATCH_AND_STEPS,
        key(
            "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon",
            "learning_rate weight_decay adam_beta1 adam_beta2 adam_eps",
        ),
        key("max_grad_norm", "clip_grad"),
        key("warmup_steps", "lr_warmup_iters"),
        key("warmup_ratio", "lr_warmup_iters", "in steps: the ratio times the steps of the run", TOGETHER),
        key("lr_scheduler_type", "lr_decay_style", "", SCHEDULES),
        key("optim", "", "AdamW; `optimizer.optimizer_moments: bf16` has smaller moments"),
        key(
            "logging_steps save_steps eval_steps",
            "log_interval save_interval eval_interval",
            "every step is in metrics.jsonl",
        ),
        key("eval_strategy evaluation_strategy", "eval_interval eval_interval", "`no` is 0", evaluated),
        key("eval_on_start", "eval_at_start"),
        key("save_strategy", "", "`checkpoint.save_interval`: 0 for none"),
        key("save_total_limit", "keep_last"),
        key("plot_loss", "", "`raymb report`"),
        key("report_to", "wandb_project mlflow_experiment", "each takes the name of a project or experiment", trackers),
        key("run_name", "experiment_name"),
        key("seed", "seed"),
        key("ddp_timeout", "nccl_timeout"),
        key("bf16", "precision", "`true` is `bf16`", bf16),
        key("mixed_precision", "precision", "", {"bf16_mixed": "bf16", "bf16": "bf16"}),
        key("fp16 pure_bf16", "", "no fp16: bf16 needs no loss scaling; weights have an fp32 copy"),
        key("flash_attn enable_liger_kernel", "", "Transformer Engine chooses the attention, and fuses"),
        key("gradient_checkpointing", "recompute", "", {True: "full", False: "none"}),
        key("disable_gradient_checkpointing", "recompute", "", {True: "none", False: "full"}),
        key("deepspeed fsdp", "", "`parallel.megatron_fsdp` shares weights, gradients and the optimizer's state"),
        key("quantization_bit", "", "adapters lie on bf16 weights"),
        key(
            "tensor_model_parallel_size pipeline_model_parallel_size virtual_pipeline_model_parallel_size "
            "context_parallel_size expert_model_parallel_size",
            "tensor_parallel_size pipeline_parallel_size virtual_pipeline_parallel_size context_parallel_size "
            "expert_parallel_size",
        ),
        key("sequence_parallel", "sequence_parallel"),
        key(
            "recompute_granularity recompute_method recompute_num_layers",
            "recompute recompute_method recompute_num_layers",
        ),
        key(
            "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split",
            "",
            "`parallel.num_layers_in_first_stage`, `parallel.num_layers_in_last_stage`: in layers",
        ),
        key(
            "bias_activation_fusion apply_rope_fusion cross_entropy_loss_fusion",
            "fused_activation fused_rope fused_cross_entropy",
            _ON,
        ),
        key("masked_softmax_fusion", "", "Transformer Engine's attention has no softmax of its own"),
        key("use_distributed_optimizer", "distributed_optimizer"),
        key("overlap_param_gather overlap_grad_reduce", "overlap_param_gather overlap_grad_reduce"),
        key("moe_grouped_gemm", "", "always"),
        key("moe_token_dispatcher_type", "moe_token_dispatcher"),
        key("export_hf_on_finish", "export_hf", f"{_ON}, and verified"),
        key("extra_config", "", "`overrides`: the same dotted paths; one that a flag owns becomes the flag"),
    ),
    together=_together,
)

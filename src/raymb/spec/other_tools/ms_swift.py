"""ms-swift: `megatron sft`, as a script or a YAML file; and `swift sft`."""

from __future__ import annotations

from raymb.spec.other_tools import together
from raymb.spec.other_tools.conversions import (
    DTYPES,
    SCHEDULES,
    names,
    run_directory,
    steps,
    targets,
    text_of,
    trackers,
)
from raymb.spec.other_tools.record import TOGETHER, Given, Tool, key
from raymb.spec.other_tools.translated import Translation


def _together(given: Given, translation: Translation) -> None:
    together.batch(given, translation, "per_device_train_batch_size", "gradient_accumulation_steps")
    for name in ("lr_warmup_fraction", "warmup_ratio"):
        together.warm_up(given, translation, name)
    together.offload(given, translation, "optimizer_cpu_offload", "optimizer_offload_fraction")
    together.moments(given, translation, "use_precision_aware_optimizer", "exp_avg_dtype")
    together.fp8(given, translation, "fp8_format", "fp8_recipe")


def prepare(given: Given) -> Given:
    """How many workers the launcher starts."""
    nodes, processes = given.get("NNODES", 1), given.get("NPROC_PER_NODE")
    return given | ({"workers": int(processes) * int(nodes)} if processes else {})


_SAME = "eval_interval save_interval log_interval seed data_seed"
_OPTIMIZER = "lr_decay_style weight_decay clip_grad adam_beta1 adam_beta2 adam_eps"

MS_SWIFT = Tool(
    "ms-swift",
    "ms-swift",
    keys=(
        key("model", "hf_model_path", "", text_of),
        key("load", "hf_model_path", "no conversion before", text_of),
        key("model_revision", "hf_revision"),
        key("model_type template use_hf", "", "read from the model; `data.chat_template` takes a file"),
        key("torch_dtype", "precision", "", DTYPES),
        key("load_safetensors save_safetensors", "", "always"),
        key(
            "dataset",
            "dataset",
            "`NAME#500`, too: the first 500, where ms-swift draws them; several mix by weight: `[a:0.7, b:0.3]`",
            names,
        ),
        key("val_dataset", "validation_dataset"),
        key("split_dataset_ratio", "validation_split"),
        key("load_from_cache_file dataset_num_proc", "", "prepared rows are kept and found again"),
        key("system", "system_prompt"),
        key("model_author model_name", "", "of ms-swift's self-cognition rows"),
        key("loss_scale", "", "`data.loss_mode`"),
        key("max_length", "seq_length"),
        key("truncation_strategy", "long_rows", "", {"delete": "drop", "left": "truncate", "right": "truncate"}),
        key("packing", "packing"),
        key("tensor_model_parallel_size", "tensor_parallel_size"),
        key("pipeline_model_parallel_size", "pipeline_parallel_size"),
        key("virtual_pipeline_model_parallel_size", "virtual_pipeline_parallel_size"),
        key(
            "decoder_first_pipeline_num_layers decoder_last_pipeline_num_layers",
            "num_layers_in_first_stage num_layers_in_last_stage",
        ),
        key("context_parallel_size", "context_parallel_size"),
        key("expert_model_parallel_size", "expert_parallel_size"),
        key("expert_tensor_parallel_size", "expert_tensor_parallel_size"),
        key("sequence_parallel", "sequence_parallel", "refused at tensor parallel 1, where it does nothing"),
        key("micro_batch_size global_batch_size", "micro_batch_size global_batch_size"),
        key("per_device_train_batch_size", "micro_batch_size", "", TOGETHER),
        key(
            "gradient_accumulation_steps",
            "global_batch_size",
            "of `swift sft`: these steps x micro batch x data parallel size",
            TOGETHER,
        ),
        key("max_epochs num_train_epochs", "num_epochs num_epochs"),
        key("train_iters max_steps", "train_iters train_iters", "", steps),
        key("recompute_granularity", "recompute"),
        key(
            "recompute_method recompute_num_layers recompute_modules",
            "recompute_method recompute_num_layers recompute_modules",
        ),
        key("lr min_lr", "learning_rate min_learning_rate"),
        key("learning_rate", "learning_rate"),
        key(
            "lr_warmup_fraction warmup_ratio",
            "lr_warmup_iters",
            "in steps: the share times the steps of the run",
            TOGETHER,
        ),
        key("lr_warmup_iters", "lr_warmup_iters"),
        key(_OPTIMIZER, _OPTIMIZER),
        key("lr_scheduler_type", "lr_decay_style", "", SCHEDULES),
        key("optimizer_cpu_offload optimizer_offload_fraction", "optimizer_offload", "", TOGETHER),
        key(
            "use_precision_aware_optimizer exp_avg_dtype exp_avg_sq_dtype",
            "optimizer_moments",
            "with offload the first is implied",
            TOGETHER,
        ),
        key("use_distributed_optimizer", "distributed_optimizer"),
        key("overlap_grad_reduce overlap_param_gather", "overlap_grad_reduce overlap_param_gather"),
        key("accumulate_allreduce_grads_in_fp32", "grad_reduce_in_fp32"),
        key("cross_entropy_loss_fusion", "fused_cross_entropy", "on by default"),
        key("gradient_accumulation_fusion", "fused_gradient_accumulation", "without APEX, too"),
        key(
            "attention_backend attn_impl",
            "",
            "Transformer Engine chooses; `model.attention_backend=flash` needs the package flash-attn on the workers",
        ),
        key("moe_permute_fusion", "moe_permute_fusion"),
        key("moe_grouped_gemm", "", "always"),
        key(
            "moe_shared_expert_overlap",
            "moe_shared_expert_overlap",
            "refused for a model without shared experts, such as this one",
        ),
        key("moe_aux_loss_coeff moe_z_loss_coeff", "moe_aux_loss_coeff moe_z_loss_coeff"),
        key("moe_router_load_balancing_type", "moe_load_balancing"),
        key("moe_router_dtype", "moe_router_dtype"),
        key("moe_token_dispatcher_type", "moe_token_dispatcher", "`flex` is `deepep` or `hybridep` here"),
        key("moe_expert_capacity_factor", "moe_capacity_factor"),
        key("fp8_format fp8_recipe", "precision", "`fp8`, `fp8_blockwise`, `mxfp8`", TOGETHER),
        key("train_type tuner_type", "peft peft", "", {"full": "none", "lora": "lora"}),
        key("lora_rank lora_alpha lora_dropout", "lora_rank lora_alpha lora_dropout"),
        key("target_modules", "lora_target_modules", "", targets),
        key("modules_to_save", "modules_to_save", "", names),
        key("use_rslora", "use_rslora"),
        key("merge_lora", "merge"),
        key(_SAME, _SAME),
        key("eval_steps save_steps logging_steps", "eval_interval save_interval log_interval"),
        key(
            "eval_iters",
            "",
            "`evaluation.max_validation_samples`: every validation is of all validation rows, or of so many",
        ),
        key("save", "storage_path experiment_name", "", run_directory),
        key("output_dir", "storage_path experiment_name", "", run_directory),
        key("save_total_limit", "keep_last"),
        key("async_save", "async_save", "on by default"),
        key("no_save_optim no_save_rng", "", "a checkpoint that counts can be resumed from"),
        key("finetune", "", "always"),
        key("no_initialization", "", "weights are loaded"),
        key("num_workers dataloader_num_workers", "", "of the data loader; raymb's `--num_workers` are GPUs"),
        key("report_to", "wandb_project mlflow_experiment", "each takes the name of a project or experiment", trackers),
        key("PYTORCH_CUDA_ALLOC_CONF", "", "`performance.expandable_segments` is on by default"),
        key("CUDA_VISIBLE_DEVICES MASTER_ADDR MASTER_PORT NODE_RANK", "", "Ray places the workers"),
        key("NPROC_PER_NODE NNODES", "num_workers", "their product; or `parallel.data_parallel_size`", TOGETHER),
    ),
    prepare=prepare,
    together=_together,
)

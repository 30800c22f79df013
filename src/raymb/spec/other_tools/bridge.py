"""Megatron-Bridge: the run_config.yaml beside its checkpoints, and the words `section.field=value` of its recipes.

Which flag owns which field is said where the flags are declared (`bridge(...)`).
"""

from __future__ import annotations

from typing import Any

from raymb.spec.other_tools import together
from raymb.spec.other_tools.record import NOTHING, TOGETHER, Given, Key, Tool, key
from raymb.spec.other_tools.translated import Translation
from raymb.spec.sections import FLAG_THAT_OWNS

NOT_ALONE = frozenset(
    {
        "dataset.offline_packing_specs",
        "ddp.use_megatron_fsdp",
        "ddp.use_custom_fsdp",
        "ddp.data_parallel_sharding_strategy",
        "dist.use_megatron_fsdp",
        "checkpoint.ckpt_format",
        "validation.eval_global_batch_size",
        "validation.eval_micro_batch_size",
        "validation.eval_iters",
        "mixed_precision",
        "model.bf16",
        "model.fp16",
        "model.fp8",
        "model.fp8_recipe",
        "model.fp8_param",
        "model.cpu_offloading",
        "model.cpu_offloading_num_layers",
        "model.cpu_offloading_activations",
        "dataset.seed",
        "scheduler.start_weight_decay",
        "scheduler.end_weight_decay",
        "optimizer.optimizer_cpu_offload",
        "optimizer.optimizer_offload_fraction",
        "optimizer.pin_cpu_params",
        "optimizer.pin_cpu_grads",
        "optimizer.use_precision_aware_optimizer",
        "optimizer.exp_avg_dtype",
        "optimizer.exp_avg_sq_dtype",
        "optimizer.store_param_remainders",
        "checkpoint.load",
        "checkpoint.save",
        "model.cross_entropy_fusion_impl",
        "model.cuda_graph_impl",
        "model.cuda_graph_modules",
        "model.use_te_rng_tracker",
        "rng.te_rng_tracker",
        "model.moe_flex_dispatcher_backend",
        "model.moe_enable_deepep",
        "train.iterations_to_skip",
        "logger.wandb_exp_name",
        "logger.wandb_save_dir",
        "logger.mlflow_run_name",
    }
)
"""Fields that a flag owns and whose value is not that flag's: it says more, or less, or counts other things."""
ALONE = {path: flag for path, flag in FLAG_THAT_OWNS.items() if path not in NOT_ALONE}
"""ConfigContainer path to the flag that says the same."""
_NONE: dict[str, Any] = {
    "recompute": "none",
    "virtual_pipeline_parallel_size": 1,
    "eval_interval": 0,
    "save_interval": 0,
}
"""What a flag is called where the field is None."""


def value_of(path: str, value: Any) -> Any:
    """A field's value as the flag has it; NOTHING where it says no more than the flag's default."""
    flag = ALONE[path]
    if value is None:
        return _NONE.get(flag, NOTHING)
    if path == "dist.distributed_timeout_minutes":
        return 60 * float(value)
    return 0 if path == "checkpoint.most_recent_k" and value == -1 else value


_RUN = "raymb's own: the run directory, and metrics in it"
_DENSE = ("model.moe_", "model.expert_")
_CODE = ("_target_", "_call_", "_args_", "_partial_")
"""How a file names classes and functions."""


def _prepare(given: Given) -> Given:
    """Without what experts alone have, in a dense model; None says something there."""
    adapters = str(given.get("peft._target_", ""))
    dense = not given.get("model.num_moe_experts")
    kept = {
        name: value
        for name, value in given.items()
        if not (dense and name.startswith(_DENSE)) and name.rpartition(".")[2] not in _CODE
    }
    return kept | ({"peft": "dora" if adapters.endswith("DoRA") else "lora"} if adapters else {})


def _together(given: Given, translation: Translation) -> None:
    together.offload(given, translation, "optimizer.optimizer_cpu_offload", "optimizer.optimizer_offload_fraction")
    together.fp8(given, translation, "mixed_precision.fp8", "mixed_precision.fp8_recipe")
    if given.get("mixed_precision.bf16") and "precision" not in translation.flags:
        translation.set("precision", "bf16", "mixed_precision.bf16")
    if not given.get("mixed_precision.grad_reduce_in_fp32", True):
        translation.set("grad_reduce_in_fp32", False, "mixed_precision.grad_reduce_in_fp32")
    if "ddp.use_megatron_fsdp" in given and not given["ddp.use_megatron_fsdp"]:
        translation.set("megatron_fsdp", "none", "ddp.use_megatron_fsdp")
    elif "ddp.use_megatron_fsdp" in given:
        translation.set(
            "megatron_fsdp", given["ddp.data_parallel_sharding_strategy"], "ddp.data_parallel_sharding_strategy"
        )
    decay = given.get("scheduler.end_weight_decay")
    if decay is not None:  # the scheduler sets the optimizer's at every step, to its own
        translation.set("weight_decay", decay, "scheduler.end_weight_decay")
    if given.get("peft"):
        translation.set("peft", given["peft"], "peft")


def _rows() -> tuple[Key, ...]:
    return tuple(
        Key((path,), (flag,), "", lambda value, path=path: value_of(path, value)) for path, flag in ALONE.items()
    )


BRIDGE = Tool(
    "bridge",
    "Megatron-Bridge",
    keys=(
        key("tokenizer.tokenizer_model", "hf_model_path", "where it is a Hugging Face model"),
        *_rows(),
        key("dataset.sequence_length", "seq_length"),
        key("dataset.dataset_name", "dataset"),
        key(
            "peft.dim peft.alpha peft.dropout peft.target_modules",
            "lora_rank lora_alpha lora_dropout lora_target_modules",
        ),
        key("peft", "peft", "", TOGETHER),
        key("mixed_precision.bf16 mixed_precision.fp8 mixed_precision.fp8_recipe", "precision", "", TOGETHER),
        key("mixed_precision.grad_reduce_in_fp32", "grad_reduce_in_fp32", "counts, whatever `ddp` says", TOGETHER),
        key(
            "optimizer.optimizer_cpu_offload optimizer.optimizer_offload_fraction",
            "optimizer_offload",
            "the share",
            TOGETHER,
        ),
        key("scheduler.end_weight_decay", "weight_decay", "the scheduler sets the optimizer's, to its own", TOGETHER),
        key("ddp.use_megatron_fsdp ddp.data_parallel_sharding_strategy", "megatron_fsdp", "", TOGETHER),
        key("checkpoint.save checkpoint.load", "", "`run.storage_path`, `run.experiment_name`; `checkpoint.resume`"),
        key("checkpoint.pretrained_checkpoint", "", "`model.hf_model_path`: weights come from Hugging Face"),
        key("validation.eval_iters", "", "`evaluation.max_validation_samples`, in samples"),
    ),
    prepare=_prepare,
    together=_together,
    others={
        "model": "of the model's config.json, or the default; another one is `overrides: {model.FIELD: VALUE}`",
        "checkpoint": _RUN,
        "logger": _RUN,
        "ddp": "follows from the layout, or the default; another one is an override",
        "optimizer": "follows from the precision, or the default; another one is an override",
        "mixed_precision": "follows from `train.precision`",
        "dataset": "rows are raymb's: `data:`",
        "tokenizer": "the model's own",
        "scheduler": "the decay ends with the run",
        "dist": "raymb joins the workers",
        "rng": "the default",
        "train": "the default; another one is an override",
        "validation": "the default; another one is an override",
        "peft": "as raymb's adapters are",
    },
)

"""From what a recipe sets to sections of the RunSpec and overrides, and what of it is left out and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from raymb.data.presets import PRESETS
from raymb.model.vision import step_of_recipe
from raymb.recipes.catalog import Recipe
from raymb.recipes.fields import problem_of
from raymb.spec.sections import FLAG_THAT_OWNS, SECTION_OF_FLAG, SECTIONS

TEXT = ("GPTSFTDatasetConfig", "GPTDatasetConfig")
"""Datasets of text."""


@dataclass
class Translation:
    """
    Args:
        sections: as in a YAML file: section to flag to value, and `overrides`.
        left_out: a line for what is not taken over, with the reason.
    """

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def set(self, flag: str, value: Any) -> None:
        """Take a value over, unless another flag of this version owns it or it is not one that the flag has."""
        section = SECTION_OF_FLAG.get(flag)
        if section is None:
            return
        try:
            if section != "model":
                SECTIONS[section].model_validate({flag: value})
        except ValidationError:
            self.left_out.append(f"--{flag} {value}: raymb has no such value")
            return
        self.sections.setdefault(section, {})[flag] = value


def translate(recipe: Recipe, found: Mapping[str, Any]) -> Translation:
    """
    Args:
        found: what raymb.bridge.recipe.read says.
    """
    translation = Translation()
    _model(translation, found, recipe)
    _data(translation, found)
    _sizes(translation, found, recipe)
    _flags(translation, found)
    _precision(translation, found)
    _adapters(translation, found)
    _environment(translation, found)
    _images(translation, found, recipe)
    _overrides(translation, found)
    translation.left_out += _others_left_out(found)
    _in_order(translation)
    return translation


def _in_order(translation: Translation) -> None:
    """As in the schema."""
    sections = translation.sections
    ordered = {
        name: {flag: sections[name][flag] for flag in section.model_fields if flag in sections[name]}
        for name, section in SECTIONS.items()
        if name in sections
    }
    translation.sections = ordered | {"overrides": sections["overrides"]} if "overrides" in sections else ordered


def _model(translation: Translation, found: Mapping[str, Any], recipe: Recipe) -> None:
    model = found["model"]
    if recipe.mode == "pretrain":
        translation.set("init", "random")
        translation.left_out.append("how its weights are drawn: as config.json says (initializer_range)")
    if model is None:
        if found["tokenizer"]:
            translation.set("hf_model_path", found["tokenizer"])
        translation.left_out.append(
            "the model's sizes, which it writes by hand: those of --hf_model_path's config.json count"
        )
        return
    translation.set("hf_model_path", model["hf_model_path"])
    if model["hf_revision"]:
        translation.set("hf_revision", model["hf_revision"])
    if model["trust_remote_code"]:
        translation.left_out.append(
            "trust_remote_code: code of the model's repository runs with --trust_remote_code only"
        )


def _data(translation: Translation, found: Mapping[str, Any]) -> None:
    dataset = found["dataset"]
    translation.set("seq_length", found["values"].get("model.seq_length") or dataset["seq_length"])
    if dataset["name"] in PRESETS and dataset["kind"] in TEXT:
        translation.set("dataset", [dataset["name"]])
        if dataset["validation_split"]:
            translation.set("validation_split", dataset["validation_split"])
    else:
        name = f" {dataset['name']}" if dataset["name"] else ""
        translation.left_out.append(f"dataset{name} ({dataset['kind']}): --dataset says what is trained on")
    if dataset["kind"] in TEXT:
        translation.set("packing", dataset["packing"])


_ONE: dict[str, Any] = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": 1,
    "context_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "sequence_parallel": False,
}
"""The sizes of a recipe that does not set them: none is left to `auto`."""


def _sizes(translation: Translation, found: Mapping[str, Any], recipe: Recipe) -> None:
    values = found["values"]
    sizes = {name: values.get(f"model.{name}") or one for name, one in _ONE.items()}
    for name, size in sizes.items():
        if flag := FLAG_THAT_OWNS.get(f"model.{name}"):
            translation.set(flag, size)
    if recipe.gpus:  # without a number of GPUs, the sizes make the number of workers, also where flags change them
        translation.set("num_workers", recipe.gpus)


_FROM_NONE: dict[str, Any] = {"eval_interval": 0, "save_interval": 0, "recompute": "none"}
"""The flag's value for a field that is None, where that is not the flag's default."""
_OWN_WAY = frozenset(
    {
        *(f"model.{name}" for name in _ONE),
        "model.seq_length",
        "mixed_precision",
        "optimizer.weight_decay",
        "optimizer.optimizer_cpu_offload",
        "optimizer.use_precision_aware_optimizer",
        "train.num_epochs",
        "train.iterations_to_skip",
        "validation.eval_iters",
        "dataset.enable_offline_packing",
        "ddp.overlap_grad_reduce",
        "ddp.overlap_param_gather",
        "ddp.grad_reduce_in_fp32",
        "ddp.use_megatron_fsdp",
        "checkpoint.save",
        "checkpoint.most_recent_k",
        "model.cuda_graph_impl",
    }
)
"""Fields that a flag owns and that are not simply that flag's value."""
_FIELD_OF_FLAG = {flag: path for path, flag in reversed(FLAG_THAT_OWNS.items())}
"""Of a flag that owns several fields the first one, which has its value."""


def _flags(translation: Translation, found: Mapping[str, Any]) -> None:
    """Fields that a flag owns."""
    values, changed = found["values"], set(found["changed"])
    for flag, path in _FIELD_OF_FLAG.items():
        wanted = path in changed or path.partition(".")[0] not in ("checkpoint", "logger")
        if path in _OWN_WAY or path not in values or not wanted:
            continue
        value = _FROM_NONE.get(flag) if values[path] is None else values[path]
        if value is not None:
            translation.set(flag, value)
    # Bridge's scheduler sets the optimizer's weight decay at every step, to its own.
    translation.set("weight_decay", values.get("scheduler.end_weight_decay") or values.get("optimizer.weight_decay"))
    if values.get("optimizer.optimizer_cpu_offload"):
        translation.set("optimizer_offload", values["optimizer.optimizer_offload_fraction"])
    moments = str(values.get("optimizer.exp_avg_dtype")).removeprefix("torch.")
    aware = values.get("optimizer.use_precision_aware_optimizer") and moments in ("bf16", "bfloat16")
    other = "--precision fp8" if (found["precision"] or {}).get("fp8") else ""
    other = "--megatron_fsdp" if values.get("ddp.use_megatron_fsdp") else other
    translation.set("optimizer_moments", "bf16" if aware and not other else "fp32")
    if aware and other:
        translation.left_out.append(f"moments in bf16: raymb has them with {other} in fp32 only")
    if values.get("ddp.use_megatron_fsdp"):
        translation.set("megatron_fsdp", values["ddp.data_parallel_sharding_strategy"])
        translation.set("distributed_optimizer", True)  # Bridge turns it on, whatever the recipe says
    for flag in ("overlap_grad_reduce", "overlap_param_gather"):
        overlap = values.get(f"comm_overlap.{flag}")
        if overlap is None and "comm_overlap.tp_comm_overlap" in values:
            overlap = True  # Bridge turns it on for data parallel workers where there is a comm_overlap section
        translation.set(flag, bool(values.get(f"ddp.{flag}") if overlap is None else overlap))
    graphs = values.get("model.cuda_graph_impl") or "none"
    if graphs != "none":
        translation.left_out.append(f"CUDA graphs ({graphs}): --cuda_graphs records whole layers, of some dense models")
    if values.get("ddp.use_distributed_optimizer") is False and not values.get("ddp.use_megatron_fsdp"):
        translation.set("overlap_param_gather", False)  # there is nothing to gather, and Bridge leaves it out


_FP8 = {"tensorwise": "fp8", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8"}
"""Bridge's name of a way to scale to --precision."""


def _precision(translation: Translation, found: Mapping[str, Any]) -> None:
    precision = found["precision"]
    if precision is None:
        translation.set("precision", "fp32")
    elif precision["fp8"] and precision["fp8_recipe"] in _FP8:
        translation.set("precision", _FP8[precision["fp8_recipe"]])
    else:
        translation.set("precision", "auto")  # bf16 where there are GPUs
        low = precision["fp4"] or (precision["fp8"] and precision["fp8_recipe"]) or (precision["fp16"] and "fp16")
        if low:
            translation.left_out.append(f"precision {low}: raymb trains in bf16 instead; see --precision")
    if precision and not precision["grad_reduce_in_fp32"]:  # Bridge's recipe of a precision sets it, whatever ddp says
        if flag := FLAG_THAT_OWNS.get("ddp.grad_reduce_in_fp32"):
            translation.set(flag, False)
        else:
            translation.left_out.append("grad_reduce_in_fp32=False: raymb reduces gradients in fp32")


def _adapters(translation: Translation, found: Mapping[str, Any]) -> None:
    peft = found["peft"]
    if peft is None:
        translation.set("peft", "none")
        return
    translation.set("peft", "dora" if "DoRA" in peft["kind"] else "lora")
    fields = ("dim", "rank"), ("alpha", "alpha"), ("dropout", "dropout"), ("target_modules", "target_modules")
    for name, flag in fields:
        if peft[name] is not None:
            translation.set(f"lora_{flag}", peft[name])


def _environment(translation: Translation, found: Mapping[str, Any]) -> None:
    """PYTORCH_CUDA_ALLOC_CONF is --expandable_segments."""
    env = {name: value for name, value in found["env"].items() if name != "PYTORCH_CUDA_ALLOC_CONF"}
    if env:
        translation.set("env", env)


def _images(translation: Translation, found: Mapping[str, Any], recipe: Recipe) -> None:
    step = step_of_recipe(recipe.module)
    if found["dataset"]["kind"] in TEXT or step is None:
        return
    translation.set("step_func", step)
    # Rows without images give the vision tower no gradient.
    for flag in ("overlap_grad_reduce", "overlap_param_gather"):
        translation.set(flag, False)


def _overrides(translation: Translation, found: Mapping[str, Any]) -> None:
    values = found["values"]
    paths = (path for path in found["changed"] if not _owned(path) and not _reason(path))
    wanted = {path: values[path] for path in paths if not _says_nothing(path, values[path], values)}
    known = {path: value for path, value in wanted.items() if not problem_of(path)}
    if known:
        translation.sections["overrides"] = known
    if strange := [f"{path}={value}" for path, value in wanted.items() if path not in known]:
        translation.left_out.append(f"{', '.join(strange)}: no field of Bridge's GPT or hybrid models")


def _owned(path: str) -> bool:
    parts = path.split(".")
    return any(".".join(parts[: length + 1]) in FLAG_THAT_OWNS for length in range(len(parts)))


_Rule = Callable[[Any, Mapping[str, Any]], bool]
_NOTHING: dict[str, _Rule] = {
    "model.attention_backend": lambda value, values: value in (None, "auto", "flash"),  # Transformer Engine chooses
    "model.cuda_graph": lambda value, values: True,  # see _flags
    "model.init_method_std": lambda value, values: True,  # weights are loaded
    "model.hf_model_": lambda value, values: True,
    "model.freeze_": lambda value, values: not value,
    "model.transformer_impl": lambda value, values: value == "transformer_engine",
    "scheduler.lr_decay_iters": lambda value, values: value in (None, values.get("train.train_iters")),
    "scheduler.lr_wsd_": lambda value, values: True,  # of a decay that raymb does not have
    "train.manual_gc_": lambda value, values: not values.get("train.manual_gc"),
    "comm_overlap.": lambda value, values: value in (None, False),
}
"""Fields, by how they begin, and when their value is a run's anyway; without a rule, when it is None."""


def _says_nothing(path: str, value: Any, values: Mapping[str, Any]) -> bool:
    rule = next((rule for begin, rule in _NOTHING.items() if path.startswith(begin)), None)
    return value is None if rule is None else rule(value, values)


_LEFT_OUT = {
    "checkpoint.": "raymb writes checkpoints its own way, into the run directory",
    "logger.": "metrics are raymb's",
    "ddp.average_in_collective": "the loss is the mean over the global batch's trained tokens, in every layout",
    "ddp.grad_reduce_in_fp32": "",  # see _precision
    "dist.distributed_timeout_minutes": "raymb joins the workers; see --nccl_timeout",
    "model.mtp_num_layers": "layers of multi-token prediction are not trained, but exported as they are",
    "dataset.": "",
    "ddp.check_for_": "--bad_loss looks at losses and gradients",
    # What a run of raymb has as well, or decides by the model, the layout or the precision.
    "ddp.use_distributed_optimizer": "",
    "optimizer.use_distributed_optimizer": "",
    "optimizer.overlap_param_gather": "",
    "optimizer.bf16": "",
    "scheduler.override_opt_param_scheduler": "",
    "model.calculate_per_token_loss": "",
    "model.pipeline_dtype": "",
    "model.params_dtype": "",
    "model.vocab_size": "",
    "model.make_vocab_size_divisible_by": "",
}
"""Fields, by how they begin, that are never overrides, and why; "" for those not worth a word."""


def _reason(path: str) -> str | None:
    """Why a field is left out; None where it is not."""
    begin = next((begin for begin in _LEFT_OUT if path.startswith(begin)), None)
    return None if begin is None else _LEFT_OUT[begin] or "nothing to say"


def _others_left_out(found: Mapping[str, Any]) -> Iterator[str]:
    for begin, reason in _LEFT_OUT.items():
        names = [path for path in found["changed"] if path.startswith(begin) and path not in FLAG_THAT_OWNS]
        if names and reason:
            shown = ", ".join(path.rpartition(".")[2] for path in names)
            yield f"{begin.rstrip('.')} ({shown}): {reason}" if begin.endswith(".") else f"{', '.join(names)}: {reason}"
    if "checkpoint.save" in found["changed"]:
        yield "checkpoint paths: --storage_path and --output_dir"
    if found["tokenizer"]:
        yield "tokenizer: the model's own"
    if found["unsaid"]:
        yield f"{', '.join(found['unsaid'])}: code, which YAML cannot say"
    if found["asked"]:
        asked = ", ".join(found["asked"])
        yield f"what follows from the model's {asked}: the recipe was read without its config.json"

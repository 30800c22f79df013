"""What several keys say together, in tools that name them like transformers' TrainingArguments."""

from __future__ import annotations

from typing import Any

from raymb.spec.other_tools.conversions import steps
from raymb.spec.other_tools.record import TOGETHER, Given, key
from raymb.spec.other_tools.translated import Translation

BATCH_AND_STEPS = (
    key("per_device_train_batch_size", "micro_batch_size", "", TOGETHER),
    key(
        "gradient_accumulation_steps",
        "global_batch_size",
        "these steps x micro batch x data parallel size",
        TOGETHER,
    ),
    key("per_device_eval_batch_size", "", "the micro batch"),
    key("num_train_epochs", "num_epochs"),
    key("max_steps", "train_iters", "", steps),
)
"""Rows of every tool that takes transformers' TrainingArguments as they are."""


def training_arguments(given: Given, translation: Translation) -> None:
    """transformers' own, and what TRL and LLaMA-Factory add to PEFT's."""
    batch(given, translation, "per_device_train_batch_size", "gradient_accumulation_steps")
    warm_up(given, translation, "warmup_ratio")
    if given.get("use_dora") and translation.flags.get("peft") == "lora":
        translation.set("peft", "dora", "use_dora")
    if given.get("push_to_hub") and given.get("hub_model_id"):
        translation.set("push_to_hub", given["hub_model_id"], "push_to_hub, hub_model_id")
    elif given.get("push_to_hub"):
        translation.leave_out("push_to_hub", True, "`checkpoint.push_to_hub` takes the repository: OWNER/NAME")


def batch(given: Given, translation: Translation, micro: str, accumulation: str) -> None:
    """Samples a device and accumulation steps: the global batch is their product with the data parallel size."""
    size, steps = given.get(micro), given.get(accumulation)
    if size is None and steps is None:
        return
    if size is not None:
        translation.set("micro_batch_size", size, micro)
    copies = translation.copies()
    product = int(size or 1) * int(steps or 1) * (copies or 1)
    factors = f"{size or 1} x {steps or 1} accumulation steps"
    whose = f"{factors} x {copies} data parallel" if copies else f"{factors}, of one copy: multiply by the copies"
    translation.set("global_batch_size", product, whose)


def warm_up(given: Given, translation: Translation, ratio: str) -> None:
    """A share of all steps, where the number of steps is known."""
    share = float(given.get(ratio) or 0)
    if not share or "lr_warmup_iters" in translation.flags:
        return
    total = translation.flags.get("train_iters")
    if total:
        translation.set("lr_warmup_iters", round(share * total), f"{ratio} {share:g} of {total} steps")
    else:
        translation.leave_out(ratio, given[ratio], "lr_warmup_iters counts steps: this share of the run's steps")


def offload(given: Given, translation: Translation, switch: str, share: str) -> None:
    if switch in given or share in given:
        part = float(given.get(share, 1.0) if given.get(switch) else 0.0)
        translation.set("optimizer_offload", part, f"{switch}, {share}")


def moments(given: Given, translation: Translation, switch: str, dtype: str) -> None:
    """The precision-aware optimizer, which is bf16 only with a type that says so."""
    kind: Any = given.get(dtype)
    if switch in given or kind is not None:
        low = given.get(switch) and str(kind).removeprefix("torch.") in ("bf16", "bfloat16")
        translation.set("optimizer_moments", "bf16" if low else "fp32", f"{switch}, {dtype}")


def fp8(given: Given, translation: Translation, form: str, recipe: str) -> None:
    """--precision of Transformer Engine's way to scale."""
    if given.get(form):
        words = {"tensorwise": "fp8", "delayed": "fp8", "blockwise": "fp8_blockwise", "mxfp8": "mxfp8"}
        word = words.get(str(given.get(recipe, "delayed")))
        if word:
            translation.set("precision", word, f"{form}, {recipe}")
        else:
            translation.leave_out(recipe, given[recipe], "--precision has fp8, fp8_blockwise and mxfp8")

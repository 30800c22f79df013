"""Whether an export is what it should be, found out by transformers and PEFT in a process that knows no Megatron.

python -m raymb.export.verify < REQUEST     prints the findings as its last line, in JSON
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymb.export.hf_model import load_hf_model
from raymb.model.source_files import config_differences
from raymb.model.tensor_files import (
    prediction_tensors,
    tensor_differences,
    tensor_shapes,
    tensor_types,
    type_to_write,
)
from raymb.model.vision import PROCESSOR_FILES
from raymb.run.unverified import VerificationRequest

if TYPE_CHECKING:
    import torch

    from raymb.export.reference import Reference

TOLERANCES = {"fp32": 1e-4, "merged": 1e-2, "bf16": 5e-2}
"""The largest reference.distance. fp32: computed in fp32, from the same weights. merged: likewise, but rounded to 16
bits after sums in another order. bf16: computed in bf16; more for a model that rounding changes more, see _NOISE."""
_NOISE = 3.0
"""Megatron may be off by this many times the distance between bf16 and fp32 in transformers alone."""
_OF_A_COPY = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Entries of config.json that may differ."""


def check(request: VerificationRequest) -> dict[str, Any]:
    """The findings.

    Returns:
        problems: a sentence each; none if all is well.
        error: the largest of the positions' errors that count; None where it was not measured; unmeasured: why.
        tolerance: the largest error allowed.
        rows, positions: what was compared.
        losses: nats a token there, of the trained Megatron model and of the export.
    """
    found: dict[str, Any] = dict.fromkeys(("error", "tolerance", "rows", "positions", "losses", "unmeasured"))
    found["problems"] = [
        problem for place in (request.model, request.adapter) if place for problem in _file_problems(place, request)
    ]
    if found["problems"]:
        return found
    need, free = _bytes_needed(request), _bytes_free()
    if need > free:
        found["unmeasured"] = f"loading it takes {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
        return found
    from raymb.export.reference import Reference

    reference = Reference.read(Path(request.reference))
    compared = list(_compared(request, reference))
    found["problems"] = [problem for one in compared for problem in one.problems]
    found["error"] = max(one.error for one in compared)
    found["tolerance"] = max(one.tolerance for one in compared)
    found["rows"], found["positions"] = len(reference.ids), reference.logits.shape[:2].numel()
    found["losses"] = [round(reference.loss(logits), 4) for logits in (reference.trained, compared[-1].answers)]
    return found


@dataclass(frozen=True)
class Compared:
    """A model's logits beside the expected ones."""

    answers: torch.Tensor
    error: float
    tolerance: float
    problems: list[str]


def _compared(request: VerificationRequest, reference: Reference) -> Iterator[Compared]:
    """An adapter beside the Megatron model, a merged model beside PEFT's, any other beside the Megatron model."""
    of, tolerance = "the trained Megatron model's", TOLERANCES[request.precision]
    if request.adapter:
        model, problems = _with_adapter(request)
        yield _beside(reference, model, problems, f"adapter: its logits differ from {of}", tolerance)
        if request.model:
            merged, rounded = _merged(model, Path(request.model))
            reference = replace(reference, logits=reference.logits_of(merged))
            of, tolerance = "PEFT's merged model's", max(tolerance, TOLERANCES["merged"] if rounded else 0.0)
            del merged
        del model
        gc.collect()
    if request.model:
        yield _beside(reference, *_load(request.model, request), f"model: its logits differ from {of}", tolerance)


def _beside(reference: Reference, model: Any, problems: list[str], differ: str, tolerance: float) -> Compared:
    from raymb.export.reference import computing_in_fp32, distance

    logits = reference.logits_of(model)
    error = distance(logits, reference.logits)
    if error > tolerance == TOLERANCES["bf16"]:
        with computing_in_fp32(model):
            tolerance = max(tolerance, _NOISE * distance(logits, reference.logits_of(model)))
    if not error <= tolerance:
        problems = [*problems, f"{differ} by {error:.2e}, and {tolerance:.0e} is allowed"]
    return Compared(logits, error, tolerance, problems)


def _merged(model: Any, directory: Path) -> tuple[Any, bool]:
    """(PEFT's own merged model with its weights in the types of the export's, whether they have fewer bits than 32)."""
    import torch

    merged = model.merge_and_unload()
    types = {name: getattr(torch, type_to_write("source", stored)) for name, stored in tensor_types(directory).items()}
    usual = Counter(types.values()).most_common(1)[0][0]
    for name, one in merged.named_parameters():
        one.data = one.data.to(types.get(name, usual)).to(one.dtype)
    return merged, usual != torch.float32


def _file_problems(directory: str, request: VerificationRequest) -> Iterator[str]:
    """What tokenizer, settings and tensors lack."""
    from transformers import AutoConfig, AutoTokenizer

    code: Any = {"trust_remote_code": request.trust_remote_code}
    ours, theirs = (AutoTokenizer.from_pretrained(place, **code) for place in (directory, request.base))
    template = theirs.chat_template if request.chat_template is None else request.chat_template
    expected = {
        "vocabulary": (ours.get_vocab(), theirs.get_vocab()),
        "special tokens": (ours.special_tokens_map, theirs.special_tokens_map),
        "chat template": (ours.chat_template, template),
    }
    for what, (found, wanted) in expected.items():
        if found != wanted:
            yield f"the tokenizer's {what} in {directory} is not that of {request.base}"
    if directory != request.model:
        return
    found, wanted = (AutoConfig.from_pretrained(place, **code).to_dict() for place in (directory, request.base))
    yield from (f"config.json: {line}" for line in config_differences(found, wanted, _OF_A_COPY))
    for name in ("generation_config.json", *PROCESSOR_FILES):
        if Path(request.base, name).exists() and not Path(directory, name).exists():
            yield f"{name} is missing"
    yield from tensor_differences(Path(directory), Path(request.base))


def _bytes_needed(request: VerificationRequest) -> int:
    numbers = sum(map(math.prod, tensor_shapes(Path(request.model or request.base)).values()))
    return int(numbers * (4 if request.precision == "fp32" else 2) * 1.1)


def _bytes_free() -> int:
    import psutil

    return psutil.virtual_memory().available


def _load(path: str, request: VerificationRequest) -> tuple[Any, list[str]]:
    """(model, what was not loaded as it is stored)."""
    import torch

    model, info = load_hf_model(
        path,
        trust_remote_code=request.trust_remote_code,
        dtype=torch.float32 if request.precision == "fp32" else torch.bfloat16,
        output_loading_info=True,
    )
    wrong = ("missing_keys", "unexpected_keys", "mismatched_keys")
    kinds = {kind: sorted(map(str, info.get(kind) or ())) for kind in wrong}
    beside = prediction_tensors(kinds["unexpected_keys"], model.config.get_text_config().num_hidden_layers)
    kinds["unexpected_keys"] = [name for name in kinds["unexpected_keys"] if name not in beside]
    return model, [f"{len(names)} {kind.replace('_', ' ')}, first {names[0]}" for kind, names in kinds.items() if names]


def _with_adapter(request: VerificationRequest) -> tuple[Any, list[str]]:
    from peft import PeftConfig, get_peft_model

    base, _ = _load(request.base, request)
    model: Any = get_peft_model(base, PeftConfig.from_pretrained(request.adapter))
    loaded = model.load_adapter(request.adapter, "default")
    missing = [name for name in loaded.missing_keys if "lora_" in name or "modules_to_save" in name]
    kinds = {"missing": missing, "unknown": loaded.unexpected_keys}
    return model, [f"adapter: {len(names)} {kind} tensors, first {names[0]}" for kind, names in kinds.items() if names]


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    request = VerificationRequest(**json.load(sys.stdin))
    print(json.dumps(check(request)), flush=True)


if __name__ == "__main__":
    main()

"""Whether an export is what it should be, found out by transformers and PEFT in a process that knows no Megatron.

    python -m raymb.verify REQUEST.json     prints the findings as its last line, in JSON

A directory that passes takes its place; one that does not is left as DIRECTORY-failed, with VERIFICATION_FAILED.txt.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import raymb
from raymb.bridge.tensor_files import tensor_differences, tensor_shapes, tensor_types
from raymb.errors import RunFailed, last_line

TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "merged": 2e-1}
"""Of a position's logits: the root mean square of the difference from Megatron's over that of Megatron's spread. bf16
where the model computes in it, or the export has tensors of 16 bits; merged where such tensors have taken adapters in,
of which they lose what is smaller than their last bit (6e-2 was seen after 12 steps, with a base of random weights)."""
_SHARE = 0.9
"""Of the positions must hold it: with 16 bits, a router may send a token to another expert."""
FAILED = "VERIFICATION_FAILED.txt"
_OF_A_COPY = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Entries of config.json that may differ."""


@dataclass(frozen=True)
class Request:
    """
    Args:
        base: the model that the training started from; base_files: its directory.
        model, adapter: directories to check; "" for none.
        reference: file of bridge.reference.write_reference.
        precision: that the reference was computed in: fp32 or bf16.
        chat_template: the text that the export must have; None for the base's.
    """

    base: str
    base_files: str
    model: str
    adapter: str
    reference: str
    precision: str
    trust_remote_code: bool
    chat_template: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Written:
    """Directories that are not verified yet.

    Args:
        directories: where each is to be, to where it is.
        request: what the verification is to look at.
        threads: that it may use.
    """

    directories: dict[Path, Path]
    request: Request
    threads: int


def exported_line(record: dict[str, Any]) -> str:
    """An export's record, in words."""
    names = " and ".join(f"{Path(place).name}/" for place in record["directories"])
    if record["error"] is None:
        return f"warning: {names}: tensors and tokenizer verified, logits not: {record['unmeasured']}"
    return (
        f"{names} verified: logits within {record['error']:.1e} of the trained model's on {record['rows']} rows "
        f"({record['tolerance']:.0e} allowed)"
    )


def finish(written: Written, beat: Callable[[], None]) -> dict[str, Any]:
    """Verify in a fresh process, and put the directories into their places, where they replace older ones.

    Args:
        beat: called while it goes on.

    Returns:
        raymb.verify.check's findings, with `seconds` and the `directories`.

    Raises:
        RunFailed: they are not what they should be, and are left, marked, as DIRECTORY-failed.
    """
    began = time.monotonic()
    findings = _verified(written, beat)
    Path(written.request.reference).unlink(missing_ok=True)
    if findings["problems"]:
        text = "".join(f"- {problem}\n" for problem in findings["problems"])
        marked = []
        for target, partial in written.directories.items():
            failed = target.with_name(f"{target.name}-failed")
            (partial / FAILED).write_text(text, encoding="utf-8")
            _move(partial, failed)
            marked.append(str(failed))
        raise RunFailed(
            f"the export is not what it should be: {'; '.join(findings['problems'])}",
            f"it is left in {', '.join(marked)}",
        )
    for target, partial in written.directories.items():
        _move(partial, target)
    seconds = round(time.monotonic() - began, 1)
    return {**findings, "seconds": seconds, "directories": [str(target) for target in written.directories]}


def _verified(written: Written, beat: Callable[[], None]) -> dict[str, Any]:
    request = Path(written.request.reference).with_suffix(".json")
    request.write_text(written.request.to_json(), encoding="utf-8")
    settings = {**os.environ, "PYTHONPATH": path_of_raymb(), "OMP_NUM_THREADS": str(written.threads)}
    command = [sys.executable, "-m", "raymb.verify", request]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=settings) as process:
        try:
            output, errors = communicate(process, beat)
        finally:
            process.kill()
            request.unlink()
    if process.returncode:
        return {"problems": [f"it cannot be loaded: {last_line(errors)}"]}
    return json.loads(output.strip().splitlines()[-1])


def path_of_raymb() -> str:
    """PYTHONPATH of a process that runs the same raymb as this one."""
    return os.pathsep.join(filter(None, (str(Path(raymb.__file__).parents[1]), os.environ.get("PYTHONPATH"))))


def communicate(process: subprocess.Popen[str], beat: Callable[[], None], given: str | None = None) -> tuple[str, str]:
    """Popen.communicate, with a beat a second."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(given, timeout=1.0)
        given = None  # it is on its way
        beat()


def _move(partial: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def check(request: Request) -> dict[str, Any]:
    """The findings.

    Returns:
        problems: a sentence each; none if all is well.
        error: the largest of the positions' errors that count; None where it was not measured; unmeasured: why.
        tolerance: the largest error allowed.
        rows, positions: what was compared.
    """
    found: dict[str, Any] = dict.fromkeys(("error", "tolerance", "rows", "positions", "unmeasured"))
    found["problems"] = [
        problem for place in (request.model, request.adapter) if place for problem in _file_problems(place, request)
    ]
    if found["problems"]:
        return found
    need, free = _bytes_needed(request), _bytes_free()
    if need > free:
        found["unmeasured"] = f"loading it takes {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
        return found
    for place, load in (("adapter", _with_adapter), ("model", _whole)):
        directory = getattr(request, place)
        if not directory:
            continue
        model, problems = load(request)
        found["problems"] += problems
        error, found["rows"], found["positions"] = _error(model, Path(request.reference))
        tolerance = _tolerance(Path(directory), request.precision, merged=place == "model" and bool(request.adapter))
        found["error"] = max(error, found["error"] or 0.0)
        found["tolerance"] = max(tolerance, found["tolerance"] or 0.0)
        if not error <= tolerance:
            found["problems"].append(
                f"{place}: its logits differ from the trained Megatron model's by {error:.2e}, "
                f"and {tolerance:.0e} is allowed"
            )
        del model
        gc.collect()
    return found


def _tolerance(directory: Path, precision: str, merged: bool) -> float:
    rounded = {"BF16", "F16"} & set(tensor_types(directory).values())
    return TOLERANCES["merged" if rounded and merged else "bf16" if rounded else precision]


def _file_problems(directory: str, request: Request) -> Iterator[str]:
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
    for name in sorted(found.keys() | wanted.keys()):
        if name not in _OF_A_COPY and found.get(name) != wanted.get(name):
            yield f"config.json: {name} is {found.get(name)} instead of {wanted.get(name)}"
    names = [Path(place, "generation_config.json") for place in (directory, request.base_files)]
    if names[1].exists() and not names[0].exists():
        yield "generation_config.json is missing"
    yield from tensor_differences(Path(directory), Path(request.base_files))


def _bytes_needed(request: Request) -> int:
    numbers = sum(map(math.prod, tensor_shapes(Path(request.model or request.base_files)).values()))
    return int(numbers * (4 if request.precision == "fp32" else 2) * 1.1)


def _bytes_free() -> int:
    import psutil

    return psutil.virtual_memory().available


def _load(path: str, request: Request) -> tuple[Any, list[str]]:
    """(model, what was not loaded as it is stored)."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32 if request.precision == "fp32" else torch.bfloat16,
        trust_remote_code=request.trust_remote_code,
        output_loading_info=True,
    )
    model, info = loaded
    wrong = ("missing_keys", "unexpected_keys", "mismatched_keys")
    kinds = {kind: sorted(map(str, info.get(kind) or ())) for kind in wrong}
    return model, [f"{len(names)} {kind.replace('_', ' ')}, first {names[0]}" for kind, names in kinds.items() if names]


def _whole(request: Request) -> tuple[Any, list[str]]:
    return _load(request.model, request)


def _with_adapter(request: Request) -> tuple[Any, list[str]]:
    from peft import PeftConfig, get_peft_model

    base, _ = _load(request.base, request)
    model: Any = get_peft_model(base, PeftConfig.from_pretrained(request.adapter))
    loaded = model.load_adapter(request.adapter, "default")
    kinds = {"missing": [name for name in loaded.missing_keys if "lora_" in name], "unknown": loaded.unexpected_keys}
    return model, [f"adapter: {len(names)} {kind} tensors, first {names[0]}" for kind, names in kinds.items() if names]


def _error(model: Any, reference: Path) -> tuple[float, int, int]:
    """(error that the wanted share of positions does not exceed, rows, positions)."""
    import torch
    from safetensors.torch import load_file

    expected, errors = load_file(reference), []
    with torch.inference_mode():
        for ids, length, wanted in zip(expected["ids"], expected["lengths"], expected["logits"], strict=True):
            logits = model.eval()(input_ids=ids[None, : int(length)]).logits[0, -len(wanted) :].float()
            spread = (wanted - wanted.mean(-1, keepdim=True)).norm(dim=-1)
            errors.append((logits - wanted).norm(dim=-1) / spread)
    ranked = torch.cat(errors).nan_to_num(nan=math.inf).sort().values
    return ranked[min(len(ranked) - 1, int(_SHARE * len(ranked)))].item(), len(errors), len(ranked)


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    request = Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(check(request)), flush=True)


if __name__ == "__main__":
    main()

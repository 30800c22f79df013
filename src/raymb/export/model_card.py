"""The model card of an export: README.md with data, settings and metrics, and the curve beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymb import __version__
from raymb.model.files import HUB_ID
from raymb.model.vision import PROCESSOR_FILES
from raymb.run.directory import read_object
from raymb.run.fingerprint import installed_version
from raymb.telemetry.records import Export
from raymb.telemetry.sinks import read_metrics

CARD, CURVE = "README.md", "loss.png"
_SAMPLE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What `--hf_model_path sample` is."""
Row = tuple[str, object]


def write_card(directory: Path, run: Path, export: Export, *, adapter: bool) -> None:
    """Write README.md and loss.png from what the run directory holds; without its metrics there is no curve.

    Args:
        directory: the exported model or adapter.
        export: the export's record: `step`, and what verified it.
        adapter: whether it is a PEFT adapter.
    """
    spec, plan, data = (read_object(run / f"{name}.json") or {} for name in ("spec", "plan", "data"))
    records = _records(run / "metrics.jsonl", export["step"])
    curve = bool(records) and _plot(records, directory / CURVE)
    base, commit = _shown(spec.get("model", {}).get("hf_model_path", "")), spec.get("model", {}).get("hf_revision")
    at_commit = f" at commit {commit}" if commit else ""
    use = _use(base, commit, adapter, (directory / PROCESSOR_FILES[0]).exists())
    lines = [
        *("---", _metadata(base, spec, adapter), "---", ""),
        *(f"# {run.name}", ""),
        f"{_origin(base, spec, adapter)}{at_commit}, trained with raymb on Megatron-Bridge.",
        "",
        *_table("Results", _results(records, export)),
        *([f"![loss over steps]({CURVE})", ""] if curve else []),
        *_table("Data", _data(spec, data)),
        *_table("Settings", _settings(spec, plan)),
        *("## Use", "", "```python", *use, "```", ""),
    ]
    (directory / CARD).write_text("\n".join(lines), encoding="utf-8")


def _records(file: Path, last: int) -> list[dict[str, Any]]:
    """Losses up to a step."""
    return [one for one in read_metrics(file) if one["kind"] in ("train", "validation", "test") and one["step"] <= last]


def _shown(base: str) -> str:
    return _SAMPLE if base == "sample" else base if HUB_ID.fullmatch(base) else Path(base).name


def _origin(base: str, spec: dict[str, Any], adapter: bool) -> str:
    if _from_scratch(spec):
        return f"A model with the architecture of {base}, from random weights"
    return f"{'An adapter for' if adapter else 'Fine-tuned from'} {base}"


def _from_scratch(spec: dict[str, Any]) -> bool:
    return spec.get("model", {}).get("init") == "random"


def _metadata(base: str, spec: dict[str, Any], adapter: bool) -> str:
    """The hub's YAML block; it takes hub ids only."""
    from huggingface_hub import ModelCardData

    sets = [str(one).partition(":")[0] for one in spec.get("data", {}).get("dataset", [])]
    data = ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) and not _from_scratch(spec) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["raymb", "megatron-bridge", "sft", *(["lora"] if adapter else [])],
        datasets=[one for one in sets if HUB_ID.fullmatch(one)] or None,
    )
    return data.to_yaml()


def _results(records: list[dict[str, Any]], export: Export) -> Iterator[Row]:
    yield "step", export["step"]
    for kind, words in (("train", "training loss"), ("validation", "validation loss"), ("test", "test loss")):
        losses = [(one["step"], one["loss"]) for one in records if one["kind"] == kind and one["loss"] is not None]
        if losses:
            first, last = losses[0], losses[-1]
            before = f" (step {first[0]}: {first[1]:.4f})" if first[0] != last[0] else ""
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


def _table(title: str, rows: Iterator[Row]) -> Iterator[str]:
    yield from (f"## {title}", "", "| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in rows)
    yield ""


def _use(base: str, commit: str | None, adapter: bool, has_vision: bool) -> Iterator[str]:
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

"""The YAML that `raymb init` writes: what was answered, and beside it what is changed most often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BATCH, _LENGTH = 16, 2048


def first_flags(answers: Mapping[str, Any], positions: int | None) -> dict[str, Any]:
    """Flags with values, in the order of the schema.

    Args:
        answers: hf_model_path, dataset, num_workers, gpu, backend, peft.
        positions: the longest row that the model takes, where that is known.
    """
    workers, adapters = int(answers["num_workers"]), answers["peft"] != "none"
    on_cpu = answers["backend"] == "cpu"
    flags = {
        "hf_model_path": answers["hf_model_path"],
        "dataset": answers["dataset"],
        "seq_length": min(512 if on_cpu else _LENGTH, positions or _LENGTH),
        "num_workers": workers,
        "num_epochs": 1,
        "global_batch_size": -(-_BATCH // workers) * workers,  # whatever part of the workers shares it
        "peft": answers["peft"],
        "learning_rate": 2e-4 if adapters else 1e-5,
        "eval_interval": 50,
        "save_interval": 50,
        "storage_path": "raymb-runs",
        "backend": answers["backend"],
        "gpu": answers["gpu"],
    }
    return {flag: value for flag, value in flags.items() if value is not None and value != "auto"}


_COMMENTS = {
    "hf_model_path": "hub id or local directory",
    "dataset": "a file, a glob, a directory, a hub id or a URI; several mix by weight: [a:0.7, b:0.3]",
    "seq_length": "tokens in a row; longer samples are cut",
    "num_workers": "one GPU each; 4:16 is elastic. The layout is chosen: raymb plan shows it",
    "num_epochs": "or train_iters: STEPS",
    "global_batch_size": "samples in an optimizer step, over all workers",
    "peft": "none trains the whole model, lora and dora adapters beside it",
    "learning_rate": "1e-5 is usual for the whole model, 2e-4 for adapters",
    "eval_interval": "steps between validations, on rows that are held out (data.validation_split)",
    "save_interval": "steps between checkpoints; the same command resumes from the newest",
    "storage_path": "where runs go: a directory that all nodes see, or a URI such as s3://bucket/prefix",
    "backend": "cuda, or cpu",
    "gpu": "what raymb plan counts with",
}
_MORE = {
    "data": "packing: true # several samples in a row; a batch counts packed rows then",
    "run": "experiment_name: NAME # default: made from model and layout",
    "peft": "lora_rank: 16",
    "optimizer": "lr_warmup_iters: 10 # steps of warm-up from 0, fewer than the run has",
}
"""A line that most often comes next in a section."""


def first_yaml(flags: Mapping[str, Any], file: str) -> str:
    """The flags as commented YAML for --config."""
    import yaml

    from raymb.spec.sections import SECTION_OF_FLAG, SECTIONS

    lines = [
        f"# raymb plan --config {file}       the layout, its memory and its speed",
        f"# raymb finetune --config {file}   the training; --dry_run stops before it",
        "# Every key is a flag of the same name, and a flag wins: --train_iters 20. All: raymb finetune --help_all",
    ]
    for section in SECTIONS:
        own = [flag for flag in flags if SECTION_OF_FLAG[flag] == section]
        lines += [f"{section}:"] if own else []
        for flag in own:
            value = yaml.safe_dump(flags[flag], default_flow_style=True, width=float("inf")).strip()
            lines.append(f"  {flag}: {value.removesuffix('...').strip()} # {_COMMENTS[flag]}")
        if own and section in _MORE and (section != "peft" or flags["peft"] != "none"):
            lines.append(f"  # {_MORE[section]}")
    return "\n".join(lines) + "\n"

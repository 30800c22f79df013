"""From a value of another tool to raymb's, where several tools mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from raymb.spec.other_tools.record import NOTHING

REMOTE_CODE = "code of the model's repository runs with `model.trust_remote_code` only, which is yours to say"
OVERWRITE = "a run resumes; `checkpoint.overwrite` deletes what is there"
DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32", "auto": "auto"}
SCHEDULES = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
"""Of transformers."""
RECOMPUTED = {True: "full", False: "none"}


def bf16(value: Any) -> Any:
    return {True: "bf16", "true": "bf16", "auto": "auto", "full": "bf16"}.get(value, NOTHING)


def steps(value: Any) -> Any:
    """max_steps, where -1 leaves it to the epochs."""
    return value if float(value) > 0 else NOTHING


def evaluated(value: Any) -> Any:
    """eval_strategy: "no", which YAML takes for false."""
    return 0 if value in ("no", False) else NOTHING


def if_true(word: str) -> Any:
    """A switch that raymb has as one word of several."""
    return lambda value: word if value else NOTHING


def run_directory(value: Any) -> Mapping[str, Any]:
    """An output directory is a storage path and the run's name in it."""
    path = PurePosixPath(str(value))
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path.name).lstrip(".-_")
    return {"storage_path": str(path.parent) if str(path.parent) != "." else "raymb-runs", "experiment_name": name}


def trackers(value: Any) -> Any:
    """report_to: the names of trackers."""
    names = value if isinstance(value, list) else str(value).replace(",", " ").split()
    found = {"wandb": {"wandb_project": "huggingface"}, "mlflow": {"mlflow_experiment": "huggingface"}}
    flags = {flag: text for name in names if name in found for flag, text in found[name].items()}
    return flags or NOTHING


def targets(value: Any) -> Any:
    """Names of modules that get adapters."""
    words = value if isinstance(value, list) else str(value).replace(",", " ").split()
    return ["all-linear"] if {*words} & {"all", "all-linear", "all_linear"} else words


def names(value: Any) -> Any:
    """One name, several with commas, or a list."""
    return value if isinstance(value, list) else [word.strip() for word in str(value).split(",")]


def text_of(value: Any) -> str:
    return str(value)

"""Looking before a worker starts: the model's files, the data, the layout, the run directory.

No framework but what reading data takes."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymb import run_dir
from raymb.errors import ModelError, SpecError
from raymb.model_shape import ModelShape, read_model_shape
from raymb.plan import Plan, make_plan
from raymb.spec.sections import RunSpec

if TYPE_CHECKING:
    from rich.console import Console

    from raymb.data.prepare import Prepared


@dataclass(frozen=True)
class Preflight:
    """Everything that was found out before the run; nothing was written but the prepared rows."""

    spec: RunSpec
    shape: ModelShape
    plan: Plan
    prepared: Prepared


def preflight(spec: RunSpec, console: Console | None = None) -> Preflight:
    """Check the user's input against the model and the data, and prepare the rows.

    The plan's backend is `auto` where only the cluster can tell; make_plan again once it is known.

    Raises:
        UserError: SpecError, ModelError, PlanError, DataError or RunDirError, for the first of them that is wrong.
    """
    if spec.run.sample_prompt and not spec.checkpoint.export_hf:
        raise SpecError(
            "--sample_prompt asks the exported model, and --no_export_hf leaves it out", "drop one of the two flags"
        )
    shape = checked_shape(spec)
    # Twice: the layout needs no data and is cheap, so its mistakes come before minutes of reading.
    backend = local_backend(spec)
    plan = make_plan(spec, shape, backend=backend)
    prepared = prepared_rows(spec, shape, plan, console)
    plan = make_plan(spec, shape, rows=prepared.rows("train"), backend=backend)
    checked = Preflight(spec, shape, plan, prepared)
    run_dir.check_claim(run_dir.RunDir.of(spec, run_name(checked)), spec, fingerprint(checked))
    return checked


def prepared_rows(spec: RunSpec, shape: ModelShape, plan: Plan, console: Console | None) -> Prepared:
    """The rows of a spec, prepared now or by an earlier run.

    Args:
        console: where a progress bar goes.
    """
    from raymb.data.prepare import prepare

    chat = shape.has_chat_template or spec.data.chat_template is not None
    return prepare(spec, model_path(spec), chat=chat, multiple=plan.sample_multiple, console=console)


def checked_shape(spec: RunSpec) -> ModelShape:
    """The model's shape, once the overrides are known to name fields of the ConfigContainer.

    A model whose repository brings code is refused without --trust_remote_code.

    Raises:
        SpecError: an override that no ConfigContainer field answers to.
        ModelError: not found, incomplete, or in need of code that may not run.
    """
    if spec.overrides:
        from raymb.bridge.fields import check_overrides

        check_overrides(spec.overrides)
    shape = read_model_shape(model_path(spec), spec.model.hf_revision)
    if shape.needs_remote_code and not spec.model.trust_remote_code:
        raise ModelError(
            f"--hf_model_path {spec.model.hf_model_path}: {shape.architecture} needs Python code from the model's "
            f"repository (auto_map in config.json)",
            "read that code, then add --trust_remote_code to run it",
        )
    return shape


def local_backend(spec: RunSpec) -> str:
    """cuda or cpu where the run would stay on this machine; `auto` where a cluster decides."""
    if spec.run.backend != "auto":
        return spec.run.backend
    if spec.cluster.ray_address or os.environ.get("RAY_ADDRESS"):
        return "auto"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    has_gpu = not hidden and any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    return "cuda" if has_gpu else "cpu"


def model_path(spec: RunSpec) -> str:
    """What Hugging Face loads: a hub id or an absolute directory. `sample` is made on first use."""
    asked = spec.model.hf_model_path
    if asked == "sample" and not Path(asked).exists():
        from raymb.quickstart import smollm2_directory

        return str(smollm2_directory())
    directory = Path(asked).expanduser()
    return str(directory.absolute()) if directory.is_dir() else asked


def run_name(checked: Preflight) -> str:
    """The run directory's name when the user gave none: the same command finds its run again."""
    plan = checked.plan
    sizes = {
        "tp": plan.tensor_parallel_size,
        "pp": plan.pipeline_parallel_size,
        "dp": plan.data_parallel_size,
        **({"cp": plan.context_parallel_size} if plan.context_parallel_size > 1 else {}),
        **({"ep": plan.expert_parallel_size} if plan.expert_parallel_size > 1 else {}),
    }
    return "-".join([Path(model_path(checked.spec)).name, *(f"{name}{size}" for name, size in sizes.items())])


def fingerprint(checked: Preflight) -> dict[str, Any]:
    """What a checkpoint of this run belongs to. Keys are flags, where one is behind the value."""
    spec = checked.spec
    path = Path(model_path(spec))
    files = {
        f"hf_model_path:{name}": hashlib.sha256((path / name).read_bytes()).hexdigest()[:16]
        for name in ("config.json", "tokenizer.json")
        if (path / name).is_file()
    } | {f"hf_model_path:{file.name}": _ends_digest(file) for file in sorted(path.glob("*.safetensors"))}
    return {
        **(files or {"hf_model_path": f"{path}@{spec.model.hf_revision or 'main'}"}),
        "dataset:content": checked.prepared.content_hash,
        "seq_length": spec.data.seq_length,
        "global_batch_size": spec.train.global_batch_size,
        "seed": spec.train.seed,
    }


def _ends_digest(file: Path) -> str:
    """A digest of a weight file that takes no time: its size, its first and its last 64 KiB."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        first = stream.read(65536)
        stream.seek(max(0, size - 65536))
        return hashlib.sha256(first + stream.read() + str(size).encode()).hexdigest()[:16]

"""Looking before a worker starts: the model's files, the data, the layout, the run directory.

No framework but what reading data takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raymb.driver.host_memory import memory_of_this_machine
from raymb.driver.ray_address import joins_a_cluster
from raymb.errors import PlanError, RunDirError, SpecError
from raymb.export.push import check_push
from raymb.model.architectures import check_architecture
from raymb.model.directory import Needs
from raymb.model.files import base_directory
from raymb.model.initial import at_commit, branch_of, make_weights, model_path, model_source, with_commit
from raymb.model.quantized import check_quantization
from raymb.model.remote_code import check_remote_code
from raymb.model.shape import ModelShape, read_model_shape
from raymb.model.tensor_files import tensor_shapes
from raymb.model.vision import check_forward_step, vision_architecture
from raymb.plan import Plan, make_plan
from raymb.plan.frozen import frozen_problems, trained_line
from raymb.plan.gpus import Gpu, gpu_named, gpu_of_device
from raymb.plan.sizes import pieces_of_a_sample
from raymb.run import directory as run_dir
from raymb.run import mirror
from raymb.run.fingerprint import Fingerprint, take_fingerprint
from raymb.spec.sections import NO_DATASET, RunSpec
from raymb.storage.remote import check_writable
from raymb.telemetry import startup
from raymb.telemetry.trackers import check_trackers

if TYPE_CHECKING:
    from rich.console import Console

    from raymb.data.prepare import Prepared


@dataclass(frozen=True)
class Preflight:
    """Everything that was found out before the run; nothing was written but the prepared rows, and a model that is made
    (raymb.model.initial)."""

    spec: RunSpec
    shape: ModelShape
    plan: Plan
    prepared: Prepared
    branch: str | None = None
    """By which the commit of a hub model was found."""


def preflight(
    spec: RunSpec,
    console: Console | None = None,
    branch: str | None = None,
    beside_rows: Callable[[], object] = lambda: None,
) -> Preflight:
    """Check the user's input against the model and the data, and prepare the rows.

    The plan knows no GPU of a cluster that is joined; make_plan again once it is known.

    Args:
        branch: by which the commit in the spec was found.
        beside_rows: done in a thread while the rows are prepared, which is others' work (raymb.data.parallel).

    Raises:
        UserError: SpecError, ModelError, PlanError, DataError or RunDirError, for the first of them that is wrong.
    """
    if spec.run.sample_prompt and not spec.checkpoint.export_hf:
        raise SpecError(
            "--sample_prompt asks the exported model, and --no_export_hf leaves it out", "drop one of the two flags"
        )
    check_trackers(spec)
    check_push(spec.checkpoint.push_to_hub, spec.checkpoint.hub_public)
    branch = branch or branch_of(spec)
    spec = at_commit(spec)
    shape = checked_shape(spec)
    # Twice: the layout needs no data and is cheap, so its mistakes come before minutes of reading.
    backend = local_backend(spec)
    gpu = local_gpu(spec)
    plan = make_plan(spec, shape, backend=backend, gpu=gpu)
    check_writable(spec.run.storage_path)
    run = run_dir.RunDir.of(spec, _name(spec, plan))
    mirror.pull(run)
    if begun := _commit_begun_with(run, spec, branch):
        if console is not None:
            moved = f"{branch} of {spec.model.hf_model_path} is at commit {spec.model.hf_revision} by now"
            console.print(f"{moved}; this run keeps {begun}, with which it began", highlight=False, soft_wrap=True)
        return preflight(with_commit(spec, begun), console, branch, beside_rows)
    startup.begin(startup.ROWS)
    # Not a daemon: Python may not end in the middle of an import of C++.
    threading.Thread(target=beside_rows, name="raymb-beside-rows").start()
    say_what_is_trained_on(spec, console)
    make_weights(spec, lambda line: console.print(line, highlight=False, soft_wrap=True) if console else None)
    check_frozen(spec, shape, console)
    prepared = prepared_rows(spec, shape, packed_sample_multiple(run, spec, plan), console)
    plan = make_plan(spec, shape, rows=prepared.rows("train"), backend=backend, gpu=gpu)
    checked = Preflight(spec, shape, plan, prepared, branch)
    run_dir.check_claim(run, spec, fingerprint(checked))
    return checked


def check_frozen(spec: RunSpec, shape: ModelShape, console: Console | None) -> None:
    """That --freeze and --unfreeze name what there is, by the model's files; says how much is trained.

    Raises:
        PlanError: they do not.
    """
    if not spec.train.freezes:
        return
    tensors = tensor_shapes(Path(base_directory(model_path(spec), spec.model.hf_revision)))
    if problems := [*frozen_problems(spec.train, shape, tensors)]:
        raise PlanError(problems)
    if console is not None:
        console.print(trained_line(spec.train, tensors), highlight=False, soft_wrap=True, markup=False)


def _commit_begun_with(run: run_dir.RunDir, spec: RunSpec, branch: str | None) -> str | None:
    """The commit that a run began with, if the branch of its hub model has moved on since."""
    if branch is None or spec.checkpoint.overwrite or "model" in spec.checkpoint.accept_changes:
        return None
    former = (run_dir.read_object(run.fingerprint) or {}).get("model", {})
    same = (former.get("hf_model_path"), former.get("branch")) == (spec.model.hf_model_path, branch)
    begun = former.get("hf_revision") if same else None
    return begun if begun != spec.model.hf_revision else None


def say_what_is_trained_on(spec: RunSpec, console: Console | None) -> None:
    """Where nobody has named a data set."""
    if console is not None and not spec.data.dataset:
        console.print(NO_DATASET, highlight=False, soft_wrap=True)


def validation_line(checked: Preflight) -> str:
    """That a validation takes more rows than the training between two of them; empty where it does not."""
    interval, rows = checked.spec.evaluation.eval_interval, checked.prepared.rows("validation")
    between = interval * checked.plan.layout.global_batch_size
    if not interval or rows <= between:
        return ""
    return (
        f"a validation is of all {rows:,} rows, and between two of them {between:,} are trained on; "
        f"--max_validation_samples or a larger --eval_interval makes the run shorter"
    )


def prepared_rows(spec: RunSpec, shape: ModelShape, sample_multiple: int, console: Console | None) -> Prepared:
    """The rows of a spec, prepared now or by an earlier run.

    Args:
        sample_multiple: of packed_sample_multiple, or multiple_without_a_run.
        console: where a progress bar goes.
    """
    from raymb.data.prepare import prepare
    from raymb.driver.spreading import SpreadEncoders

    chat = shape.has_chat_template or spec.data.chat_template is not None
    return prepare(
        spec,
        model_path(spec),
        chat=chat,
        sample_multiple=sample_multiple,
        architecture=vision_architecture(shape.architecture),
        vocab_size=shape.vocab_size,
        console=console,
        encoders=partial(SpreadEncoders, spec) if joins_a_cluster(spec.cluster.ray_address) else None,
    )


def packed_sample_multiple(run: run_dir.RunDir, spec: RunSpec, plan: Plan) -> int:
    """What each packed sample is padded to a multiple of: the layout's own need, or a multiple of it.

    A run that resumes in another layout keeps its rows, so that it sees the same samples in the same order. Samples
    padded to the layout's own need (`plan.layout.sample_multiple`) fit into rows that were packed for a multiple of it.

    Raises:
        RunDirError: they were packed for another number.
    """
    need, former = plan.layout.sample_multiple, run_dir.read_object(run.data) or {}
    begun_so = former.get("packing") and former.get("seq_length") == spec.data.seq_length
    if not spec.data.packing or spec.checkpoint.overwrite or not begun_so:
        return need  # where that changes the rows, the fingerprint refuses them
    packed_for = former.get("multiple", need)
    if packed_for % need == 0:
        return packed_for
    if "data" in spec.checkpoint.accept_changes:
        return need
    tensor = f" x --tensor_parallel_size {plan.layout.tensor_parallel_size}" if plan.layout.sequence_parallel else ""
    raise RunDirError(
        f"{run.path} has packed rows whose samples are padded to multiples of {packed_for}, and this layout needs "
        f"multiples of 2 x --context_parallel_size {plan.layout.context_parallel_size}{tensor} = {need}, which must "
        f"divide {packed_for}",
        "ways out: another --context_parallel_size or --tensor_parallel_size; --accept_changes data to pack the rows "
        "again, in another order from there on; --experiment_name NEW_NAME for a new run",
    )


def multiple_without_a_run(spec: RunSpec, shape: ModelShape, any_layout: bool) -> int:
    """What packed samples leave room for in the layout of this command.

    Args:
        any_layout: where none fits (a large model, looked at from a small machine), go by the sizes that are given.

    Raises:
        PlanError: none fits.
    """
    if any_layout and not spec.data.packing:
        return 1
    try:
        return make_plan(spec, shape, backend=local_backend(spec), gpu=local_gpu(spec)).layout.sample_multiple
    except PlanError:
        if not any_layout:
            raise
        parallel = spec.parallel
        context, tensor = (
            1 if size == "auto" else size for size in (parallel.context_parallel_size, parallel.tensor_parallel_size)
        )
        return pieces_of_a_sample(context, 1 if parallel.sequence_parallel is False else tensor)


def as_packed(spec: RunSpec, plan: Plan) -> RunSpec:
    """The spec with those sizes fixed that packed rows were prepared for, so that a plan made again, with the cluster's
    GPUs known, has them, too."""
    if not spec.data.packing:
        return spec
    sizes = {"context_parallel_size": plan.layout.context_parallel_size}
    if plan.layout.context_parallel_size > 1:
        sizes["tensor_parallel_size"] = plan.layout.tensor_parallel_size
    return spec.changed(parallel=sizes)


def checked_shape(spec: RunSpec, needs: Needs = "weights") -> ModelShape:
    """The model's shape, once the overrides are known to name fields of the ConfigContainer.

    A model whose repository brings code is refused without --trust_remote_code.

    Args:
        needs: what its directory must have. Where config.json is enough, nothing is made of it but for --add_tokens.

    Raises:
        SpecError: an override that matches no ConfigContainer field, or another model's forward step.
        ModelError: not found, incomplete, quantized, of a kind that Bridge or raymb does not train, or in need of code
            that may not run.
    """
    if spec.overrides:
        from raymb.recipes.fields import check_overrides

        check_overrides(spec.overrides)
    config_alone = needs == "config" and spec.model.add_tokens is None
    path = model_source(spec) if config_alone else model_path(spec)
    shape = read_model_shape(path, spec.model.hf_revision, needs)
    check_remote_code(shape, f"--hf_model_path {spec.model.hf_model_path}", spec.model.trust_remote_code)
    check_architecture(shape, spec.model.hf_model_path)
    if spec.model.init == "pretrained":
        check_quantization(shape, spec.model.hf_model_path, spec.peft.peft)
    check_forward_step(spec.train.step_func, shape)
    return shape


def local_backend(spec: RunSpec) -> str:
    """cuda or cpu, by --backend; where that is `auto`, cuda with --gpu and on a cluster that would be joined, else by
    this machine."""
    if spec.run.backend != "auto":
        return spec.run.backend
    if spec.cluster.gpu != "auto" or joins_a_cluster(spec.cluster.ray_address):
        return "cuda"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")
    has_gpu = not hidden and any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
    return "cuda" if has_gpu else "cpu"


def local_gpu(spec: RunSpec) -> Gpu | None:
    """What --gpu names, else this machine's first GPU; None where there is none, or one that nothing is known of.

    Raises:
        SpecError: --gpu names none.
    """
    if spec.cluster.gpu != "auto":
        return gpu_named(spec.cluster.gpu)
    if local_backend(spec) != "cuda" or joins_a_cluster(spec.cluster.ray_address):
        return None
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))  # nvidia-smi takes a second
    gpu = gpu_of_device(files[0].read_text(encoding="utf-8")) if files else None
    return gpu and replace(gpu, host=memory_of_this_machine())


def run_name(checked: Preflight) -> str:
    """The run directory's name when the user gave none: the same command finds its run again."""
    return _name(checked.spec, checked.plan)


def _name(spec: RunSpec, plan: Plan) -> str:
    copies = [size // plan.layout.model_parallel_size for size in plan.elastic or [plan.layout.num_workers]]
    sizes = {
        "tp": plan.layout.tensor_parallel_size,
        "pp": plan.layout.pipeline_parallel_size,
        # Of all sizes that an elastic run may have, so that it does not matter which one it has now.
        "dp": f"{copies[0]}-{copies[-1]}" if len(copies) > 1 else copies[0],
        **({"cp": plan.layout.context_parallel_size} if plan.layout.context_parallel_size > 1 else {}),
        **({"ep": plan.layout.expert_parallel_size} if plan.layout.expert_parallel_size > 1 else {}),
    }
    return "-".join([Path(model_path(spec)).name, *(f"{name}{size}" for name, size in sizes.items())])


def fingerprint(checked: Preflight) -> Fingerprint:
    """What a checkpoint of this run belongs to."""
    rows = checked.prepared
    return take_fingerprint(
        checked.spec,
        model_path(checked.spec),
        rows=rows.content_hash,
        preparation=rows.manifest["hash"],
        branch=checked.branch,
    )

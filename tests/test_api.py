"""raymb.finetune, raymb.plan and raymb.Run: what the command line does, from Python."""

from __future__ import annotations

import html
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle

import raymb
from raymb import api
from raymb.cli import main
from raymb.errors import PlanError, RunDirError, SpecError
from raymb.spec import SECTION_OF_FLAG, load_spec, spec_to_json
from raymb.storage.remote import Remote
from tests.models import write_rows

SOURCES = Path(__file__).parents[1] / "src"


def test_importing_raymb_imports_none_of_it() -> None:
    code = (
        "import sys; before = set(sys.modules); import raymb; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['raymb']\n"


def test_plan_and_errors_import_no_framework(shape_only_model_dir: Path) -> None:
    code = (
        "import sys, raymb; "
        f"raymb.plan(hf_model_path={str(shape_only_model_dir)!r}, num_workers=2); raymb.Run, raymb.RunFailed; "
        "print(sorted({'torch', 'ray', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("first", ["import raymb.plan", "from raymb.plan import make_plan", "import raymb.spec", ""])
def test_the_package_plan_is_the_function_too(first: str, shape_only_model_dir: Path) -> None:
    code = f"import raymb\n{first}\nprint(raymb.plan(hf_model_path={str(shape_only_model_dir)!r}).layout.num_workers)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


SCRIPT = """
import raymb
from raymb.driver.preflight import preflight
from raymb.spec import load_spec

print("once")
checked = preflight(load_spec({flags!r}))
print(checked.prepared.rows("train"))
"""


def test_a_script_needs_no_guard_of_its_main_module(shape_only_model_dir: Path, tmp_path: Path) -> None:
    """Rows are tokenized in processes that Python spawns, and these would run the script again."""
    rows = write_rows(tmp_path / "rows", train=24)
    flags = {"hf_model_path": str(shape_only_model_dir), "dataset": str(rows), "storage_path": str(tmp_path / "runs")}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(flags={**flags, "backend": "cpu", "seq_length": 64}))
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("once\n24\n", 0), done.stderr


def test_ray_can_take_raymb_along() -> None:
    """As a global of a task's function, which is pickled by value where it comes from a notebook."""
    for module in (raymb, raymb.plan):
        assert ray.cloudpickle.loads(ray.cloudpickle.dumps(module)) is module


def test_what_is_exported_is_there() -> None:
    assert {*raymb.__all__} <= {*dir(raymb)}
    assert all(getattr(raymb, name) is not None for name in raymb.__all__)
    with pytest.raises(AttributeError, match="'finetunes'"):
        raymb.finetunes  # type: ignore[attr-defined]  # noqa: B018


def test_notebooks_complete_the_flags() -> None:
    for function in (raymb.finetune, api.plan):
        assert {*SECTION_OF_FLAG} < {*inspect.signature(function).parameters}


# plan


def test_a_plan_prints_what_the_command_prints(shape_only_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"hf_model_path": shape_only_model_dir, "num_workers": 8, "gpu": "h100-80gb", "gpus_per_node": 8}
    planned = raymb.plan(**flags)
    assert main(["plan", *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert str(planned).splitlines() == printed
    assert "8 = " in str(planned) and repr(planned) == str(planned)
    cells = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", planned._repr_html_())]
    assert [" ".join(cell.split()) for cell in cells if cell] and "workers" in cells
    assert "".join("".join(cells).split()) == "".join("".join(printed).split())
    assert planned.layout.num_workers == 8 and planned.memory["total"] > 0
    json.dumps(planned.to_dict())


def test_sources_of_values_have_the_command_lines_order(shape_only_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {global_batch_size: 24, train_iters: 7}\ndata: {seq_length: 96}\n")
    planned = raymb.plan(
        config=[file, {"train": {"global_batch_size": 16}, "model": {"hf_model_path": shape_only_model_dir}}],
        overrides={"optimizer.decoupled_lr": 1e-4},
        seq_length=128,
        num_workers=2,
        tp=2,
        dataset=(str(tmp_path / "a.jsonl"), "b.jsonl:0.5"),
        env={"NCCL_DEBUG": "INFO"},
    )
    spec = planned.spec
    assert (spec.train.global_batch_size, spec.train.train_iters, spec.data.seq_length) == (16, 7, 128)
    assert spec.parallel.tensor_parallel_size == planned.layout.tensor_parallel_size == 2
    assert spec.overrides == {"optimizer.decoupled_lr": 1e-4}
    assert spec.data.dataset == [str(tmp_path / "a.jsonl"), "b.jsonl:0.5"]
    assert spec.cluster.env == {"NCCL_DEBUG": "INFO"}
    assert raymb.plan(config=spec).spec == spec
    words = raymb.plan(config=str(file), overrides="optimizer.decoupled_lr=1e-4", hf_model_path=shape_only_model_dir)
    assert words.spec.overrides == spec.overrides


# Errors


@pytest.mark.parametrize(
    "flags",
    [
        {"numworkers": 2},
        {"lr": 1e-4},
        {"per_device_train_batch_size": 2},
        {"zzzzzz": 1},
        {"num_workers": 0},
        {"num_workers": "many"},
        {"learning_rate": "fast", "seq_length": -1},
        {"train_iters": 5, "num_epochs": 2},
        {"num_workers": 10, "tensor_parallel_size": 4, "pipeline_parallel_size": 2},
        {"peft": "lora", "lora_rank": 0},
    ],
)
@pytest.mark.parametrize("command", ["plan", "finetune"])
def test_a_mistake_is_the_command_lines_message(
    command: str, flags: dict[str, Any], shape_only_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"hf_model_path": str(shape_only_model_dir), **flags}
    assert main([command, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]) == 2
    said = capsys.readouterr().err
    with pytest.raises(raymb.RaymbError) as refused:
        getattr(raymb, command)(**given)
    assert said.endswith(f"error: {refused.value}\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": "nowhere.yaml"}, "--config nowhere.yaml: no such file"),
        ({"config": {"num_workers": 2}}, "config: unknown section 'num_workers' (it belongs into section parallel)"),
        ({"config": {"train": {"iters": 2}}}, "config: unknown key train.iters"),
        ({"config": {3: {}}}, "config: a mapping of sections is expected"),
        ({"tp": 2, "tensor_parallel_size": 2}, "two spellings of --tensor_parallel_size"),
        ({"overrides": ["optimizer"]}, "override 'optimizer': section.field=value is expected"),
    ],
)
def test_mistakes_of_pythons_own(given: dict[str, Any], message: str, shape_only_model_dir: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        raymb.plan(hf_model_path=shape_only_model_dir, **given)


def test_every_broken_rule_is_told(shape_only_model_dir: Path) -> None:
    with pytest.raises(PlanError) as broken:
        raymb.plan(hf_model_path=shape_only_model_dir, num_workers=10, tp=3, pp=2)
    assert len(broken.value.problems) > 1


# Run


def _train(step: int, loss: float | None) -> dict[str, Any]:
    return {"kind": "train", "step": step, "time": 100.0 + step, "loss": loss, "tokens": 64 * step}


RECORDS = [
    _train(1, 4.0),
    _train(2, None),
    {"kind": "validation", "step": 2, "time": 102.5, "loss": 3.5},
    _train(3, 3.0),
    {"kind": "export", "step": 3, "time": 104.0, "directories": ["hf"], "error": 0.0},
]


def _write_run(run: Path, **flags: Any) -> Path:
    run.mkdir(parents=True)
    (run / "spec.json").write_text(spec_to_json(load_spec({"hf_model_path": "some/model", **flags})))
    (run / "plan.json").write_text("{}")
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    (run / "events.jsonl").write_text('{"event": "started", "time": 99}\n{"event": "ended", "time": 105, "code": 75}\n')
    for step, metric in ((2, 3.5), (3, 3.6)):
        directory = run / "checkpoints" / f"iter_{step:07d}"
        directory.mkdir(parents=True)
        manifest = {"step": step, "files": {}, "metric": metric, "metric_name": "validation_loss"}
        (directory / "manifest.json").write_text(json.dumps(manifest))
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    return run


def test_a_run_reads_its_directory(tmp_path: Path) -> None:
    path = _write_run(tmp_path / "run", train_iters=3)
    run = raymb.Run(str(path))
    assert (run.path, run.state, run.spec.train.train_iters) == (path, "stopped", 3)
    assert repr(run) == f"Run('{path}'): stopped"
    metrics = run.metrics
    assert list(metrics["kind"]) == ["train", "train", "validation", "train"]
    assert metrics["loss"].dtype == "float64" and metrics["step"].dtype == "int64"
    assert math.isnan(metrics["loss"][1]) and list(metrics["loss"].dropna()) == [4.0, 3.5, 3.0]
    assert run.best_checkpoint == path / "checkpoints" / "iter_0000002"
    assert run.exported == path / "adapter"
    (path / "hf").mkdir()
    (path / "hf" / "config.json").write_text("{}")
    assert run.exported == path / "hf"


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "spec.json").write_text(spec_to_json(load_spec({"hf_model_path": "some/model"})))
    run = raymb.Run(path)
    assert (list(run.metrics.columns), len(run.metrics)) == (["kind", "step", "loss"], 0)
    assert (run.best_checkpoint, run.exported, run.state) == (None, None, "unknown")
    with pytest.raises(RunDirError, match=r"has no job\.json"):
        run.generate("What is AI?")
    with pytest.raises(RunDirError, match="is no run directory"):
        raymb.Run(tmp_path)


def test_a_run_at_a_uri_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    local, uri = _write_run(tmp_path / "run"), f"memory://{tmp_path.name}/run"
    remote = Remote.of(uri)
    assert remote is not None
    for file in (one for one in local.rglob("*") if one.is_file()):
        remote.upload(file, file.relative_to(local).as_posix())
    run, same = raymb.Run(uri), raymb.Run(local)
    assert run.metrics.equals(same.metrics)
    assert (run.path, run.state, run.spec) == (uri, same.state, same.spec)
    assert run.best_checkpoint == f"{uri}/checkpoints/iter_0000002"
    assert run.exported == f"{uri}/adapter"
    with pytest.raises(RunDirError, match="a model at a URI"):
        run.generate("What is AI?")


def test_plot_draws_a_line_and_dots(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    run = raymb.Run(_write_run(tmp_path / "run"))
    axes = run.plot()
    line, dots = axes.get_lines()
    assert (list(line.get_xdata()), list(dots.get_xdata()), list(dots.get_ydata())) == ([1, 2, 3], [2], [3.5])
    assert (dots.get_linestyle(), axes.get_xlabel()) == ("None", "step")
    assert run.plot(axes) is axes and len(axes.get_lines()) == 4

"""LoRA and DoRA in parallel layouts, against PEFT in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymb.model.tensor_files import tensor_shapes
from tests.families import make_model
from tests.fault_table import Row
from tests.smoke.conftest import (
    MAIN_FLAGS,
    curve,
    read_metrics,
    samples_of,
    sharing_rows,
    words_of,
)
from tests.smoke.peft_parity import ALL, train_as_peft

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]
LAYOUTS = {f"tp{tensor}-pp{pipeline}": (tensor, pipeline) for tensor in (1, 2) for pipeline in (1, 2)}
ADAPTER = "adapter_model.safetensors"
IN_EVERY_RUN = ("lora", "tp2-pp2", ALL)
MORE_MOE_FAMILIES = ("ERNIE 4.5", "MiniMax-M2", "Hy3", "K-EXAONE", "Gemma 4 MoE")
CASES = [
    *((kind, layout, ALL) for kind in ("lora", "dora") for layout in LAYOUTS),
    ("lora", "tp2-pp2", "q_proj,v_proj,up_proj"),
    ("lora", "tp2-pp2", "linear_qkv,linear_fc1"),
    ("dora", "tp2-pp2", "o_proj,down_proj"),
]


@pytest.mark.parametrize(
    ("kind", "layout", "targets"),
    [pytest.param(*case, id="-".join(case), marks=[] if case == IN_EVERY_RUN else pytest.mark.slow) for case in CASES],
)
def test_adapters_train_as_peft_trains_them(
    kind: str, layout: str, targets: str, tmp_path: Path, tiny_qwen2: Path, rows: Path
) -> None:
    """TP 2 has sequence parallel."""
    tensor, pipeline = LAYOUTS[layout]
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
    steps = train_as_peft(tmp_path, tiny_qwen2, kind, targets, dataset=rows, num_workers=tensor * pipeline, **sizes)
    if "_proj," in targets:
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert sorted(config["target_modules"]) == sorted(targets.split(","))
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.01, "the adapters learn"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "targets", "groups", "tensor"),
    [
        ("lora", ALL, 1, 2),
        ("lora", ALL, 2, 4),
        ("lora", "q_proj,v_proj", 1, 4),  # a worker's columns of q, k and v begin within a head
        ("lora", "k_proj", 1, 2),
        ("lora", "linear_qkv", 1, 2),
        ("dora", ALL, 1, 2),
        ("lora", ALL, 2, 2),
        ("lora", ALL, 4, 2),
    ],
)
def test_adapters_on_shared_key_value_groups(
    kind: str, targets: str, groups: int, tensor: int, tmp_path: Path, rows: Path
) -> None:
    """Fewer groups than tensor parallel workers, as many, and more."""
    model = make_model("Qwen2", tmp_path / "model", num_key_value_heads=groups)
    train_as_peft(tmp_path, model, kind, targets, dataset=rows, num_workers=tensor, tensor_parallel_size=tensor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "tensor", "groups"),
    [
        ("Gemma 2", "lora", 1, 2),
        ("Gemma 2", "dora", 2, 2),
        ("Gemma 3", "dora", 1, 2),
        ("Gemma 3", "lora", 2, 2),
        ("Gemma 3", "lora", 2, 1),
        ("EXAONE 4", "lora", 2, 2),
        ("EXAONE 4", "dora", 2, 2),
    ],
)
def test_adapters_before_norms(family: str, kind: str, tensor: int, groups: int, tmp_path: Path, rows: Path) -> None:
    """What o_proj and down_proj give is normed before it is added to the rest."""
    model = make_model(family, tmp_path / "model", num_key_value_heads=groups)
    flags = {"num_workers": tensor, "tensor_parallel_size": tensor, "train_iters": 5}
    train_as_peft(tmp_path, model, kind, ALL, dataset=rows, **flags)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_scales_by_the_root_of_the_rank(kind: str, tmp_path: Path, tiny_qwen2: Path, rows: Path) -> None:
    train_as_peft(tmp_path, tiny_qwen2, kind, ALL, dataset=rows, num_workers=1, lora_alpha=2.5, use_rslora=True)


@pytest.mark.slow
def test_the_export_has_what_few_key_value_groups_learn(finetune: Callable[..., Path], tmp_path: Path) -> None:
    """Gemma 3 1B's: 4 heads, 1 group."""
    run = finetune(
        hf_model_path=make_model("Gemma 3", tmp_path / "model", num_key_value_heads=1),
        num_workers=2,
        tensor_parallel_size=2,
        peft="lora",
        lora_rank=4,
        lora_alpha=6.5,
        use_rslora=True,
        learning_rate=1e-2,
        train_iters=3,
        merge=True,
    )
    (record,) = read_metrics(run, "export")
    assert record["error"] <= 1e-4 and len(record["directories"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_lengths_that_tensor_parallel_does_not_divide(
    packing: bool, tmp_path: Path, tiny_qwen2: Path, rows: Path
) -> None:
    """Without sequence parallel any will do."""
    flags = {"seq_length": 63, "tensor_parallel_size": 2, "sequence_parallel": "false", "packing": packing}
    flags |= {"global_batch_size": 2, "train_iters": 6}  # the samples fill 13 rows
    train_as_peft(tmp_path, tiny_qwen2, "lora", ALL, dataset=rows, num_workers=2, **flags)


RUN = {
    "peft": "lora",
    "lora_rank": 4,
    "lora_dropout": 0.1,
    "learning_rate": 1e-2,
    "merge": True,
    "num_workers": 2,
    "tensor_parallel_size": 2,
    "save_interval": 5,
    "eval_interval": 5,
    "max_validation_samples": 16,
}


@pytest.fixture(scope="module")
def whole(ray_cluster: None, tiny_qwen2: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a run in peace, named run."""
    from raymb.cli import main

    storage = sharing_rows(tmp_path_factory.mktemp("adapters"))
    given = {**MAIN_FLAGS, **RUN, "hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": storage}
    assert main(["finetune", *words_of(given), "--experiment_name", "run"]) == 0
    return storage


def test_files_that_hugging_face_loads(whole: Path, tiny_qwen2: Path) -> None:
    """Base + adapter is the merged model, and has the validation loss that the Megatron model had."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = whole / "run"

    def model(directory: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    tuned, merged = PeftModel.from_pretrained(model(tiny_qwen2), run / "adapter"), model(run / "hf")
    base, total, count = model(tiny_qwen2), 0.0, 0
    for ids, trained in samples_of(run, "validation")[:16]:
        with torch.no_grad():
            logits, same, before = (each(torch.tensor([ids[:-1]])).logits[0] for each in (tuned, merged, base))
        torch.testing.assert_close(same, logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(before, logits, atol=1e-2)
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        total, count = total + (losses * torch.tensor(trained[1:])).sum().item(), count + sum(trained[1:])
    measured = read_metrics(run, "validation")[-1]
    assert measured["step"] == 10
    assert abs(total / count - measured["loss"]) < 1e-5 * measured["loss"]
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "iter_0000010").iterdir())
    assert size < 1.5e6, "adapters and their optimizer alone"


def test_other_adapters_are_refused(
    whole: Path, finetune: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    same = {**RUN, "storage_path": whole}
    finetune(**same)
    assert "has finished 10 steps" in capfd.readouterr().err
    finetune(code=2, **{**same, "lora_rank": 8})
    error = capfd.readouterr().err
    assert "peft: lora_rank was 4, is 8" in error and "resume as before with --lora_rank 4" in error
    finetune(code=2, **{**same, "peft": None, "lora_rank": None, "lora_dropout": None, "merge": None})
    assert "peft was 'lora', is None" in capfd.readouterr().err
    fault_table.append(Row("resume with another LoRA rank", "exit 2, names the difference and the flag"))


def _export(run: Path, to: Path, *flags: str) -> None:
    words = [sys.executable, "-m", "raymb", "export", str(run), "--to", str(to), *flags]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_checkpoint_is_exported_in_one_process(whole: Path, tmp_path: Path) -> None:
    """Trained and written with TP 2, read with TP 1: the same files."""
    run, to = whole / "run", tmp_path / "out"
    _export(run, to, "--merge")
    assert (to / ADAPTER).read_bytes() == (run / "adapter" / ADAPTER).read_bytes()
    merged = tmp_path / "out-merged"
    assert (merged / "model.safetensors").read_bytes() == (run / "hf" / "model.safetensors").read_bytes()
    assert {file.name for file in merged.iterdir()} == {file.name for file in (run / "hf").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{"peft": "dora"}, {"peft": "lora", "lora_target_modules": "linear_fc1"}, {}])
def test_other_checkpoints_too(flags: dict[str, str], finetune: Callable[..., Path], tmp_path: Path) -> None:
    run = finetune(num_workers=4, tensor_parallel_size=2, pipeline_parallel_size=2, train_iters=3, **flags)
    _export(run, tmp_path / "out")
    written = run / "adapter" / ADAPTER if flags else run / "hf" / "model.safetensors"
    assert (tmp_path / "out" / written.name).read_bytes() == written.read_bytes()


@pytest.mark.slow
def test_a_run_that_is_killed_or_stopped_ends_as_one_in_peace(
    whole: Path, finetune_with_faults: Callable[..., Path], finetune: Callable[..., Path]
) -> None:
    """The same curve and the same files. Dropout is on."""
    killed = finetune_with_faults(
        {"do": "kill", "phase": "step", "rank": 1, "step": 7}, experiment_name="killed", **RUN
    )
    stopped = finetune("train.exit_interval=5", experiment_name="stopped", **RUN)
    finetune(experiment_name="stopped", **RUN)
    for run in (killed, stopped):
        assert curve(run) == curve(whole / "run")
        for name in ("adapter/adapter_model.safetensors", "hf/model.safetensors"):
            assert (run / name).read_bytes() == (whole / "run" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "targets", "layout"),
    [
        ("Qwen3-MoE", "all-linear,gate", {"expert_parallel_size": 2}),
        ("Qwen3-MoE", "all-linear,gate", {"pipeline_parallel_size": 2}),
        ("Qwen3-MoE", "all-linear", {"tensor_parallel_size": 2}),
        ("DeepSeek-V3", "q_b_proj,kv_b_proj,o_proj", {"tensor_parallel_size": 2}),
        ("GLM-5", "q_b_proj,kv_b_proj,o_proj", {"tensor_parallel_size": 2}),
        *((name, "q_proj,k_proj,v_proj,o_proj", {"tensor_parallel_size": 2}) for name in MORE_MOE_FAMILIES),
    ],
)
def test_adapters_of_moe_models(
    family: str, targets: str, layout: dict[str, int], finetune: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT loads what was trained: experts and router, or compressed attention."""
    run = finetune(
        hf_model_path=make_model(family, tmp_path / "model"),
        num_workers=2,
        peft="lora",
        lora_rank=4,
        lora_target_modules=targets,
        learning_rate=1e-2,
        train_iters=3,
        **layout,
    )
    (record,) = read_metrics(run, "export")
    assert record["error"] <= 1e-4
    losses = [one["loss"] for one in read_metrics(run)]
    assert losses[2] < losses[0]
    names = "".join(tensor_shapes(run / "adapter"))
    assert (".experts." in names, ".mlp.gate." in names) == (family == "Qwen3-MoE", "gate" in targets.split(","))

"""A vision-language model trained by Bridge's own loop and vlm_step, on CPU workers, beside transformers' model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymb.data.samples import samples_in
from raymb.data.store import RowFile
from tests.models import make_tiny_qwen25_vl, write_image_rows
from tests.smoke.conftest import MAIN_FLAGS, batch_order, curve, read_metrics, train_variant, worst_deviation

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"num_workers": 2, "micro_batch_size": 2},
    "tp2": {"num_workers": 2, "tensor_parallel_size": 2},
    "pp2": {"num_workers": 2, "pipeline_parallel_size": 2, "micro_batch_size": 2},
    "pp2-vpp2": {"num_workers": 2, "pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2},
    "tp2-pp2-dp2": {"num_workers": 8, "tensor_parallel_size": 2, "pipeline_parallel_size": 2},
}


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen25_vl(tmp_path_factory.mktemp("models") / "tiny-qwen25-vl")


@pytest.fixture(scope="module")
def image_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_rows(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def oracle_steps() -> dict[str, list[dict[str, Any]]]:
    return {}


def _samples(run: Path, model: Path, rows: Path) -> list[tuple[Any, ...]]:
    """(ids, trained, what transformers' model takes of the images) of each row, the images read from their files."""
    import torch
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(model)
    token = json.loads((model / "config.json").read_text())["image_token_id"]
    job = json.loads((run / "job.json").read_text())
    samples = []
    for index, sample in enumerate(samples_in(RowFile(Path(job["data_dir"], "train.arrow")))):
        files = sorted(rows.glob(f"train-{index}-*.png"))
        seen: dict[str, Any] = {"mm_token_type_ids": torch.tensor([[int(one == token) for one in sample.ids[:-1]]])}
        if files:
            seen |= processor(images=[Image.open(file) for file in files], return_tensors="pt")
        samples.append((sample.ids, sample.trained, seen))
    return samples


@pytest.mark.parametrize("layout", [pytest.param(name, marks=[pytest.mark.slow] * (name != "dp2")) for name in LAYOUTS])
def test_layout_agrees_with_hugging_face(
    layout: str,
    tmp_path: Path,
    tiny_vlm: Path,
    image_rows: Path,
    oracle_steps: dict[str, list[dict[str, Any]]],
) -> None:
    from tests.smoke import oracle

    exports = layout != "dp2"  # which is not slow without it
    flags = {"hf_model_path": tiny_vlm, "dataset": image_rows, "export_hf": exports, **LAYOUTS[layout]}
    metrics, run = train_variant(tmp_path, flags.pop("num_workers"), **flags), tmp_path / "run"
    if not oracle_steps:
        samples = _samples(run, tiny_vlm, image_rows)
        batches = [[samples[index] for index in step] for step in batch_order(run)]
        oracle_steps["steps"] = oracle.train(tiny_vlm, batches, MAIN_FLAGS["learning_rate"])
    worst = worst_deviation(metrics, oracle_steps["steps"])
    print(f"\nloss {metrics[0]['loss']:.6f} -> {metrics[-1]['loss']:.6f}, worst deviation {worst:.2e}")
    assert worst <= 1e-5
    assert metrics[-1]["loss"] < 0.75 * metrics[0]["loss"]
    if exports:
        [export] = read_metrics(run, "export")
        assert export["rows"] == 4 and export["error"] < 1e-5  # two images in each
        assert (run / "hf" / "preprocessor_config.json").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_resumes_as_if_it_were_not(
    finetune: Callable[..., Path], tiny_vlm: Path, image_rows: Path
) -> None:
    given = {"hf_model_path": tiny_vlm, "dataset": image_rows, "export_hf": False, "num_workers": 2}
    whole = finetune(**given, train_iters=6, lr_decay_style="constant", experiment_name="whole")
    parts = [finetune(**given, train_iters=iters, lr_decay_style="constant") for iters in (3, 6)]
    assert curve(parts[-1]) == curve(whole)


@pytest.mark.slow
def test_adapters_and_a_recipe(finetune: Callable[..., Path], tiny_vlm: Path, image_rows: Path) -> None:
    run = finetune(
        recipe="qwen25_vl_7b_peft_config",
        hf_model_path=tiny_vlm,
        dataset=image_rows,
        num_workers=2,
        pipeline_parallel_size=2,
        micro_batch_size=2,
        train_iters=3,
        lr_warmup_iters=1,
        merge=True,
    )
    spec = json.loads((run / "spec.json").read_text())
    assert (spec["train"]["step_func"], spec["peft"]["peft"], spec["peft"]["lora_rank"]) == ("vlm_step", "lora", 32)
    [export] = read_metrics(run, "export")
    assert export["error"] < 1e-5 and {Path(one).name for one in export["directories"]} == {"adapter", "hf"}

"""Hugging Face to Megatron and back with no training between: every tensor bit for bit, from every kind of layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.families import add_prediction_layer, make_model

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(300)]
TP2_PP2 = {"num_workers": 4, "tensor_parallel_size": 2, "pipeline_parallel_size": 2}
EP2 = {"num_workers": 2, "expert_parallel_size": 2}
CASES = [
    ("SmolLM2", {}),
    ("SmolLM2", {"num_workers": 6, "tensor_parallel_size": 3, "pipeline_parallel_size": 2}),  # it has 9 heads
    *((family, layout) for family in ("Qwen2", "Llama 3", "Gemma 3") for layout in ({}, TP2_PP2)),
    *((family, layout) for family in ("Qwen3-MoE", "DeepSeek-V3") for layout in ({}, TP2_PP2, EP2)),
    ("DeepSeek-V3", {"num_workers": 2, "pipeline_parallel_size": 2, "prediction_layers": 1}),
    ("GLM-4.5", {"prediction_layers": 1}),
    ("GLM-4.7-Flash", {"prediction_layers": 1}),
]
"""prediction_layers: the files have one, which is not trained."""


def _name(case: Any) -> str:
    if isinstance(case, str):
        return case
    return " x ".join(f"{name.split('_')[0]} {size}" for name, size in case.items() if name != "num_workers") or "alone"


@pytest.mark.parametrize(("family", "layout"), CASES, ids=_name)
def test_every_tensor_comes_back(
    family: str, layout: dict[str, int], ray_cluster: None, rows: Path, tmp_path: Path
) -> None:
    from raymb.model.sample import smollm2_directory
    from raymb.model.tensor_files import tensor_types

    model = smollm2_directory() if family == "SmolLM2" else make_model(family, tmp_path / "model")
    if "prediction_layers" in layout:
        add_prediction_layer(model)
    sizes = {name: size for name, size in layout.items() if name != "prediction_layers"}
    exported = _there_and_back(model, rows, tmp_path, sizes)
    ours, theirs = _tensors(exported), _tensors(model)
    left_out = {name for name in theirs.keys() - ours.keys() if name == "lm_head.weight"}  # tied
    assert ours.keys() == theirs.keys() - left_out
    assert tensor_types(exported) == {n: t for n, t in tensor_types(model).items() if n not in left_out}
    assert [name for name in ours if ours[name] != theirs[name]] == []
    print(f"\n{family}, {_name(layout)}: {len(ours)} tensors, bit-exact")


def _there_and_back(model: Path, rows: Path, home: Path, layout: dict[str, int]) -> Path:
    """Written by workers that have loaded the model and done nothing else; the verification has passed, too."""
    from rich.console import Console

    from raymb.driver.cluster import connect
    from raymb.driver.preflight import preflight
    from raymb.driver.trainer import make_trainer
    from raymb.launch import job_of
    from raymb.plan import usable_plans
    from raymb.run.directory import RunDir
    from raymb.spec import load_spec

    flags = {"hf_model_path": model, "dataset": rows, "storage_path": home, "seq_length": 66, "backend": "cpu"}
    flags |= {"experiment_name": "run", "global_batch_size": 4, **layout}
    spec = load_spec({name: str(value) for name, value in flags.items()})
    checked, place = preflight(spec), RunDir.of(spec, "run")
    place.logs.mkdir(parents=True)
    with connect(spec, Console(quiet=True)) as cluster:
        plans = usable_plans(spec, checked.shape, rows=checked.prepared.rows("train"), backend="cpu")
        resources = cluster.resources_of_a_worker("cpu", "auto", max(plans))
        job = replace(job_of(checked, plans, "cpu", resources, place), task="export")
        make_trainer(job, cluster, resources, place).fit()
    return place.hf


def _tensors(directory: Path) -> dict[str, bytes]:
    import torch
    from safetensors.torch import load_file

    files = [load_file(file) for file in sorted(directory.glob("*.safetensors"))]
    return {
        name: tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for file in files
        for name, tensor in file.items()
    }

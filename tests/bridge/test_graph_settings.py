"""What --cuda_graphs becomes; steps with them are tests/gpu/test_cuda_graphs.py's."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.conftest import QWEN2_4_LAYERS, resolved_job

from raymb.driver.environment import worker_environment
from raymb.model.shape import ModelShape
from raymb.spec import load_spec


@pytest.mark.parametrize("given", [True, False])
def test_only_workers_on_gpus_record_them(given: bool, tmp_path: Path) -> None:
    flags = {"hf_model_path": "some/model", "num_workers": "1", "cuda_graphs": str(given), "precision": "bf16"}
    job = resolved_job(load_spec(flags), ModelShape.from_config(QWEN2_4_LAYERS), tmp_path, "cuda")
    assert job.cuda_graphs == given
    assert not job.on_cpus().cuda_graphs
    assert (worker_environment(job).get("NCCL_GRAPH_REGISTER") == "0") == given


@pytest.mark.parametrize(
    ("file", "name"), [("transformer_layer", "TransformerLayer"), ("module", "GraphableMegatronModule")]
)
def test_megatron_makes_masks_in_two_methods(file: str, name: str) -> None:
    """Those that record_layers_without_masks takes from the base class."""
    root = find_spec("megatron.core")
    assert root is not None and root.submodule_search_locations
    tree = ast.parse(Path(root.submodule_search_locations[0], "transformer", f"{file}.py").read_text(encoding="utf-8"))
    (found,) = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name]
    methods = {one.name: ast.unparse(one) for one in found.body if isinstance(one, ast.FunctionDef)}
    for method in ("get_layer_static_inputs", "_get_te_cuda_graph_replay_args"):
        assert ("attention_mask" in methods[method]) == (name == "TransformerLayer")

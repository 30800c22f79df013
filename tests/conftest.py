"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymb.model.shape import ModelShape
from raymb.plan import make_plan
from raymb.run.job import Job
from raymb.spec import RunSpec
from tests.fault_table import fault_table as fault_table
from tests.models import make_tiny_qwen2, save_tokenizer, save_vision_tokenizer
from tests.s3 import s3 as s3
from tests.s3 import s3_server as s3_server
from tests.transformers_4 import transformers_4 as transformers_4

WITHOUT_CLUSTER = [
    *("test_affinity", "test_balancing", "test_parity", "test_refused_starts", "test_spread_rows", "test_start_phases"),
    *("test_variants", "test_vision", "test_worker_placement"),
]
"""Files of tests/smoke whose quick tests have no part in the Ray cluster that others share."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests (scripts/test), one of them has all that share a Ray cluster, and the
    others take a test at a time. xdist's own --dist loadgroup puts no group into the names of pytest 9.2 (pytest-xdist
    3.8.0)."""
    from xdist.scheduler import LoadScopeScheduling

    class OneRayCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return "cluster" if file.parent.name == "smoke" and file.stem not in WITHOUT_CLUSTER else nodeid

    return OneRayCluster(config, log)


@pytest.fixture(autouse=True)
def no_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What a test that starts no cluster plans is that of a machine without one, whatever runs here."""
    if not {"smoke", "gpu"} & {mark.name for mark in request.node.iter_markers()}:
        monkeypatch.setenv("RAY_ADDRESS", "local")
        monkeypatch.setattr("raymb.driver.ray_address.is_connected", lambda: False)


QWEN2_4_LAYERS: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 305,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
QWEN3_MOE_4_LAYERS: dict[str, Any] = QWEN2_4_LAYERS | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "decoder_sparse_step": 1,
    "tie_word_embeddings": False,
}
QWEN25_VL_4_LAYERS: dict[str, Any] = QWEN2_4_LAYERS | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "patch_size": 14},
}


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("models") / "tiny-qwen2")


NO_TENSORS = (8).to_bytes(8, "little") + b"{}      "
"""A whole safetensors file."""


def write_shape_only_model(directory: Path, config: dict[str, Any] = QWEN2_4_LAYERS) -> Path:
    """A directory that looks like a Hugging Face model from outside: the sizes are real, the weights not."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(NO_TENSORS)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def shape_only_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-layer Qwen2 for tests that stop before weights are read."""
    return write_shape_only_model(tmp_path_factory.mktemp("models") / "qwen2-4-layers")


@pytest.fixture(scope="session")
def shape_only_vlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-layer Qwen2.5-VL with its tokenizer and image processor (at most 12 tokens an image) for tests that stop
    before weights are read."""
    directory = write_shape_only_model(tmp_path_factory.mktemp("models") / "qwen25-vl-4-layers", QWEN25_VL_4_LAYERS)
    save_vision_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def shape_only_moe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-layer Qwen3-MoE with 8 experts for tests that stop before weights are read."""
    return write_shape_only_model(tmp_path_factory.mktemp("models") / "qwen3-moe-4-layers", QWEN3_MOE_4_LAYERS)


def resolved_job(spec: RunSpec, shape: ModelShape, home: Path, backend: str, model: str = "some/model") -> Job:
    """What the driver would hand to the workers of a run in home/run, with rows in home/rows."""
    plan, run = make_plan(spec, shape, rows=100, backend=backend), home / "run"
    return Job(
        spec=spec,
        plan=plan,
        plans={plan.layout.num_workers: plan},
        backend=backend,
        architecture=shape.architecture,
        vocab_size=shape.vocab_size,
        model_path=model,
        data_dir=str(home / "rows"),
        pad_id=0,
        validation_rows=10,
        test_rows=10,
        run_dir=str(run),
        checkpoint_dir=str(run / "checkpoints"),
        load_dir="",
        task="train",
        hf_dir=str(run / "hf"),
        adapter_dir=str(run / "adapter"),
        log_dir=str(run / "logs"),
        threads=1,
    )

"""Settings of large training on CPU workers: none of them changes what is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.families import make_model
from tests.models import write_rows
from tests.smoke.conftest import make_job, read_metrics, train_job, train_variant, worst_deviation

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(400)]
EP = {"expert_parallel_size": 2}


def variants(out: Path, model: Path, workers: int, *variants: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The steps of each variant, the first of which is the plain one."""
    rows, steps = write_rows(out / "rows"), []
    for number, flags in enumerate(variants):
        place = out / str(number)
        place.mkdir()
        steps.append(train_variant(place, workers, hf_model_path=model, dataset=rows, train_iters=3, **flags))
    return steps


def test_what_is_recomputed_of_a_dense_model(tmp_path: Path, tiny_qwen2: Path) -> None:
    block = {"recompute": "full", "recompute_method": "block", "recompute_num_layers": 2}
    modules = {"recompute": "selective", "recompute_modules": "mlp,core_attn"}
    plain, *others = variants(tmp_path, tiny_qwen2, 1, {}, block, modules)
    assert [worst_deviation(steps, plain) for steps in others] == [0, 0]


def test_how_a_moe_model_is_computed(tmp_path: Path) -> None:
    """With shared experts and latent attention."""
    model = make_model("DeepSeek-V3", tmp_path / "model")
    modules = {"recompute": "selective", "recompute_modules": "shared_experts,mla_up_proj,mlp,moe_act,layernorm"}
    dispatchers = [{"moe_token_dispatcher": name} for name in ("alltoall", "allgather")]
    overlap = {"moe_shared_expert_overlap": True}
    plain, *others = variants(tmp_path, model, 2, EP, *({**EP, **one} for one in (modules, *dispatchers, overlap)))
    assert max(worst_deviation(steps, plain) for steps in others) <= 1e-6


@pytest.mark.parametrize(
    "flags",
    [
        {"distributed_optimizer": False},
        {"parallel_save": False, "parallel_load": True},
        {"precision": "bf16", "optimizer_moments": "bf16", "grad_reduce_in_fp32": False},
    ],
    ids=["no-distributed-optimizer", "parallel-load", "bf16-moments-and-gradients"],
)
def test_a_run_resumes_from_its_checkpoint(flags: dict[str, Any], tmp_path: Path, tiny_qwen2: Path) -> None:
    """To the last bit: moments in bf16 go through fp32 and back."""
    rows = write_rows(tmp_path / "rows")
    given = {"hf_model_path": tiny_qwen2, "dataset": rows, "train_iters": 4, **flags}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = train_variant(tmp_path / "whole", 2, **given)
    job = make_job(tmp_path / "stopped", num_workers=2, **given)
    text = job.read_text()
    content = json.loads(text)
    content["spec"]["overrides"] = {"train.exit_interval": 2}
    for words in (json.dumps(content), text):
        job.write_text(words)
        train_job(job, 2)
    names, parts = ("step", "loss", "grad_norm"), read_metrics(job.parent)
    assert [[step[name] for name in names] for step in parts] == [[step[name] for name in names] for step in whole]

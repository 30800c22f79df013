"""Overrides against the installed Megatron-Bridge, without importing it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raymb.errors import SpecError
from raymb.recipes import fields
from raymb.recipes.fields import check_overrides, class_fields
from raymb.spec import FLAG_THAT_OWNS


def test_every_owned_field_exists() -> None:
    """A flag that owns a field of no ConfigContainer refuses nothing and sets nothing."""
    paths = [path for path in FLAG_THAT_OWNS if path != "mixed_precision"]  # a section as a whole
    assert "mixed_precision" in class_fields("megatron.bridge.training.config", "ConfigContainer")
    check_overrides(dict.fromkeys(paths))


@pytest.mark.parametrize(
    "path",
    [
        "optimizer.decoupled_lr",  # inherited from Megatron-Core
        "model.moe_router_topk",  # of Megatron-Core's TransformerConfig
        "ddp.overlap_grad_reduce",
        "checkpoint.most_recent_k",
        "logger.wandb_project",
        "comm_overlap.tp_comm_overlap",
        "profiling.use_nsys_profiler",  # of an optional section
        "dataset.preprocessing.anything",  # below the first level the workers tell
    ],
)
def test_known_field(path: str) -> None:
    check_overrides({path: 1})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "modle.hidden_size",
            "override modle.hidden_size: the ConfigContainer has no section 'modle'; did you mean model?",
        ),
        ("model.hidden_sise", "model has no field 'hidden_sise'; did you mean model.hidden_size?"),
        ("optimizer.decoupled_lrr", "did you mean optimizer.decoupled_lr?"),
        ("train.train_itres.deep", "did you mean train.train_iters?"),
        ("optimizer", "section.field is expected, not a whole section"),
    ],
)
def test_unknown_field_is_refused_with_the_nearest_one(path: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_overrides({path: 1})
    assert message in str(caught.value)


def test_nothing_near_is_not_guessed() -> None:
    with pytest.raises(SpecError) as caught:
        check_overrides({"model.zzzzzzzz": 1})
    assert str(caught.value) == "override model.zzzzzzzz: model has no field 'zzzzzzzz'"


def test_every_mistake_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        check_overrides({"nosuch.a": 1, "optimizer.decoupled_lr": 1, "model.zzzzzzzz": 2})
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "nosuch" in lines[0] and "zzzzzzzz" in lines[1]


def test_without_the_sources_the_workers_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "_CONTAINER", ("no.such.module", "ConfigContainer"))
    check_overrides({"anything.at_all": 1})


def test_nothing_of_megatron_is_imported() -> None:
    code = (
        "import sys; from raymb.recipes.fields import check_overrides; check_overrides({'optimizer.decoupled_lr': 1});"
        "sys.exit(any(name in sys.modules for name in ('megatron.bridge', 'megatron.core', 'torch', 'ray')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0

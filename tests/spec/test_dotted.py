"""Bridge's spelling of what a flag owns: the flag, where it says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymb.errors import SpecError
from raymb.spec import FLAG_THAT_OWNS, SECTION_OF_FLAG, RunSpec, load_spec
from raymb.spec.other_tools import bridge
from raymb.spec.other_tools.record import NOTHING


def spec_of(*words: str, said: list[str] | None = None, config: str = "", tmp: Path | None = None, **flags) -> RunSpec:
    files = []
    if config and tmp:
        (tmp / "run.yaml").write_text(config)
        files = [tmp / "run.yaml"]
    say = (lambda line: None) if said is None else said.append
    return load_spec({"hf_model_path": "m", **flags}, files, words, say=say)


def test_fields_are_taken_as_flags_with_a_line_each() -> None:
    said: list[str] = []
    words = ("train.train_iters=5000", "optimizer.lr=0.0002", "model.tensor_model_parallel_size=2", "ddp.bucket_size=6")
    spec = spec_of(*words, said=said)
    assert (spec.train.train_iters, spec.optimizer.learning_rate) == (5000, 2e-4)
    assert spec.parallel.tensor_parallel_size == 2 and spec.overrides == {"ddp.bucket_size": 6}
    assert said == [
        "train.train_iters=5000 is taken as --train_iters 5000",
        "optimizer.lr=0.0002 is taken as --learning_rate 0.0002",
        "model.tensor_model_parallel_size=2 is taken as --tensor_parallel_size 2",
    ]


@pytest.mark.parametrize(
    ("word", "flag", "value"),
    [
        ("model.recompute_granularity=null", "recompute", "none"),
        ("model.virtual_pipeline_model_parallel_size=null", "virtual_pipeline_parallel_size", 1),
        ("model.sequence_parallel=false", "sequence_parallel", False),
        ("checkpoint.most_recent_k=-1", "keep_last", 0),
        ("dist.distributed_timeout_minutes=10", "nccl_timeout", 600.0),
        ("scheduler.lr_decay_style=linear", "lr_decay_style", "linear"),
        ("logger.wandb_project=null", "wandb_project", None),
    ],
)
def test_values_are_those_of_the_flag(word: str, flag: str, value: object) -> None:
    assert getattr(getattr(spec_of(word), SECTION_OF_FLAG[flag]), flag) == value


@pytest.mark.parametrize("given", ["5", 5])
def test_the_same_twice_is_no_contradiction(given: object) -> None:
    assert spec_of("train.train_iters=5", train_iters=given).train.train_iters == 5


def test_the_flag_and_the_field_with_different_values_are_refused() -> None:
    with pytest.raises(SpecError, match=r"train\.train_iters=5 is --train_iters, which is given as 6, too; give one"):
        spec_of("train.train_iters=5", train_iters="6")
    with pytest.raises(SpecError, match="is --distributed_optimizer, which is given as"):
        spec_of("ddp.use_distributed_optimizer=true", "optimizer.use_distributed_optimizer=false")


def test_in_a_file_it_is_the_files_flag(tmp_path: Path) -> None:
    config = "overrides: {train.train_iters: 5, ddp.bucket_size: 6}\ntrain: {seed: 7}\n"
    said: list[str] = []
    spec = spec_of(config=config, tmp=tmp_path, said=said)
    assert (spec.train.train_iters, spec.train.seed, spec.overrides) == (5, 7, {"ddp.bucket_size": 6})
    assert said == ["train.train_iters=5 is taken as --train_iters 5"]
    assert spec_of(config=config, tmp=tmp_path, train_iters="9").train.train_iters == 9
    assert spec_of("train.train_iters=8", config=config, tmp=tmp_path).train.train_iters == 8
    with pytest.raises(SpecError, match="which is given as 6, too"):
        spec_of(config="overrides: {train.train_iters: 5}\ntrain: {train_iters: 6}\n", tmp=tmp_path)


def test_a_wrong_value_is_the_flags_mistake() -> None:
    with pytest.raises(SpecError, match="--lr_decay_style WSD: must be 'constant', 'linear' or 'cosine'"):
        spec_of("scheduler.lr_decay_style=WSD")


@pytest.mark.parametrize("path", sorted(bridge.NOT_ALONE - {"mixed_precision"}))
def test_a_field_that_says_more_or_less_than_its_flag_is_refused_with_the_flag(path: str) -> None:
    with pytest.raises(SpecError, match=f"override {path}: this field belongs to the flag --{FLAG_THAT_OWNS[path]};"):
        spec_of(f"{path}=1")


def test_every_field_that_a_flag_owns_is_of_one_kind() -> None:
    assert FLAG_THAT_OWNS.keys() >= bridge.NOT_ALONE
    assert bridge.ALONE.keys() | bridge.NOT_ALONE == FLAG_THAT_OWNS.keys()
    assert all(bridge.value_of(path, 3) is not NOTHING for path in bridge.ALONE)

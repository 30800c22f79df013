"""What preflight finds out for a run that resumes: its fingerprint, and rows that suit another layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import NO_TENSORS, write_shape_only_model
from tests.data.conftest import in_this_process as in_this_process
from tests.data.templates import unmarked

from raymb.data.store import RowFile
from raymb.driver.preflight import Preflight, fingerprint, preflight, validation_line
from raymb.errors import RunDirError
from raymb.model import files as model_files
from raymb.run import fingerprint as fingerprints
from raymb.run.directory import RunDir, claim, release
from raymb.run.fingerprint import Fingerprint, differences, take_fingerprint, ways_to_resume
from raymb.spec import load_spec
from raymb.storage.files import write_atomically

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape_only_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    content = [{"prompt": "p" * (1 + number % 23), "completion": f" c{number}"} for number in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def checked(model: Path, rows: Path, tmp_path: Path) -> Callable[..., Preflight]:
    def run(**flags: Any) -> Preflight:
        given = {"hf_model_path": model, "dataset": rows, "storage_path": tmp_path / "storage", "backend": "cuda"}
        given |= {"experiment_name": "run", "seq_length": 64, "micro_batch_size": 1, "num_workers": 8}
        words = {name: value if isinstance(value, list) else str(value) for name, value in (given | flags).items()}
        return preflight(load_spec(words))

    return run


def begun(checked: Preflight) -> RunDir:
    """A run directory as launch leaves it."""
    run = RunDir.of(checked.spec, "")
    claim(run, checked.spec, checked.plan.to_dict(), fingerprint(checked))
    write_atomically(run.data, json.dumps({"path": str(checked.prepared.path), **checked.prepared.manifest}))
    release(run)
    return run


def groups(before: Fingerprint, now: Fingerprint) -> list[str]:
    return list(dict.fromkeys(one.group for one in differences(before, now)))


# The fingerprint


def test_a_validation_of_more_rows_than_are_trained_on_between_two_is_said(checked: Callable[..., Preflight]) -> None:
    flags = {"validation_split": 0.5, "eval_interval": 1, "global_batch_size": 2}
    found = checked(**flags)
    rows = found.prepared.rows("validation")
    assert rows > 2 and f"all {rows:,} rows, and between two of them 2 are trained on" in validation_line(found)
    for calm in ({"eval_interval": 500}, {"eval_interval": 0}, {"max_validation_samples": 2}, {"validation_split": 0}):
        assert validation_line(checked(**{**flags, **calm})) == ""


def test_groups_and_what_is_in_them(checked: Callable[..., Preflight]) -> None:
    found = fingerprint(checked())
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["model", "tokenizer", "data", "batch", "seed", "peft", "frozen", "versions"]
    assert list(found["model"]) == ["config.json", "model.safetensors"]
    assert list(found["tokenizer"]) == ["tokenizer.json", "template", "eos_token", "pad_token"]
    assert found["batch"] == {"seq_length": 64, "global_batch_size": 8, "packing": False}
    assert found["seed"] == {"seed": 1234}
    assert found["peft"] == {}, "a run that trains the whole model is no other than one before there were adapters"
    assert found["frozen"] == {}
    assert list(found["versions"]) == ["raymb", "megatron-bridge", "megatron-core", "torch", "transformers"]
    assert all(found["versions"].values())


CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "layout": ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "context_parallel_size": 2}, []),
    "world size": ({"num_workers": 4, "micro_batch_size": 2}, []),
    "copies": ({"num_workers": "auto", "data_parallel_size": 2, "tensor_parallel_size": 2}, []),
    "backend": ({"backend": "cpu", "num_workers": 2}, []),
    "optimizer": ({"learning_rate": 1.0, "train_iters": 7, "weight_decay": 0.5}, []),
    "global batch": ({"global_batch_size": 16}, ["batch"]),
    "longer rows than any sample": ({"seq_length": 128}, ["batch"]),
    "shorter rows": ({"seq_length": 16}, ["data", "batch"]),
    "packing": ({"packing": True}, ["data", "batch"]),
    "seed": ({"seed": 7}, ["data", "seed"]),
    "seed, no split": ({"seed": 7, "validation_split": 0}, ["seed"]),
    "loss": ({"loss_mode": "full", "validation_split": 0}, ["data"]),
    "a way to read the same rows": ({"bad_rows": "drop"}, []),
}


@pytest.mark.parametrize(("flags", "expected"), CHANGES.values(), ids=list(CHANGES))
def test_what_a_change_touches(flags: dict[str, Any], expected: list[str], checked: Callable[..., Preflight]) -> None:
    split = {name: value for name, value in flags.items() if name == "validation_split"}
    begun(checked(**split))
    accepting = checked(**flags, accept_changes=expected)  # refused without
    before = fingerprint(checked(**split))
    assert groups(before, fingerprint(accepting)) == expected
    if expected:
        with pytest.raises(RunDirError, match="holds the checkpoints of another run") as caught:
            checked(**flags)
        accepted = " ".join(f"--accept_changes {group}" for group in expected)
        assert f"accept the changes with {accepted};" in caught.value.hint


def test_a_moved_dataset_is_the_same_and_another_row_is_not(checked: Callable[..., Preflight], rows: Path) -> None:
    before = fingerprint(checked())
    moved = rows.rename(rows.with_name("moved.jsonl"))
    assert groups(before, fingerprint(checked(dataset=moved))) == []
    moved.write_text(moved.read_text() + '{"prompt": "x", "completion": "y"}\n')
    found = differences(before, fingerprint(checked(dataset=moved)))
    assert [one.key for one in found] == ["rows", "dataset"]
    assert ways_to_resume(found)[0] == f"resume as before with --dataset {rows}"


def test_the_files_of_a_model_and_its_tokenizer(tmp_path: Path) -> None:
    model = write_shape_only_model(tmp_path / "m")

    def take(**flags: Any) -> Fingerprint:
        spec = load_spec({"hf_model_path": str(model), **flags})
        return take_fingerprint(spec, str(model), rows="aa", preparation="bb")

    def settings(**changes: Any) -> None:
        file = model / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    before = take()
    settings(model_max_length=5)
    assert groups(before, take()) == []
    (model / "model.safetensors").write_bytes(NO_TENSORS + b"x")
    assert [(one.group, one.key) for one in differences(before, take())] == [("model", "model.safetensors")]
    before = take()
    settings(eos_token={"content": "<|endoftext|>", "lstrip": False}, add_bos_token=True, chat_template="own")
    found = differences(before, take())
    assert [(one.group, one.key) for one in found] == [("tokenizer", "template"), ("tokenizer", "add_bos_token")]
    before = take()
    (tmp_path / "given.jinja").write_text("own")
    assert groups(before, take(chat_template=str(tmp_path / "given.jinja"))) == []
    (tmp_path / "given.jinja").write_text(unmarked("Qwen"))
    assert groups(before, take(chat_template=str(tmp_path / "given.jinja"))) == ["tokenizer"]
    (model / "chat_template.jinja").write_text("another")
    (model / "tokenizer.json").write_text("{}")
    assert [one.key for one in differences(before, take())] == ["tokenizer.json", "template"]


def test_another_data_seed_is_another_seed(model: Path) -> None:
    def take(**flags: Any) -> Fingerprint:
        spec = load_spec({"hf_model_path": str(model), **flags})
        return take_fingerprint(spec, str(model), rows="aa", preparation="bb")

    before = take()
    assert groups(before, take(data_seed="1234")) == groups(before, take(streaming="true")) == []
    found = differences(before, take(data_seed="5"))
    assert [(one.group, one.key, one.was, one.now) for one in found] == [("seed", "data_seed", None, 5)]
    assert ways_to_resume(differences(take(data_seed="5"), before))[0] == "resume as before with --data_seed 5"


def test_a_hub_model_is_its_commit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(path: str, commit: str) -> Fingerprint:
        monkeypatch.setattr(model_files, "_cached", lambda *asked: tmp_path / commit / "config.json")
        (tmp_path / commit).mkdir(exist_ok=True)
        (tmp_path / commit / "config.json").write_text("{}")
        return take_fingerprint(load_spec({"hf_model_path": path}), path, rows="aa", preparation="bb")

    before = take("owner/name", "c0ffee")
    assert before["model"] == {"hf_model_path": "owner/name", "hf_revision": "c0ffee"}
    found = differences(before, take("owner/name", "facade"))
    assert [(one.group, one.key) for one in found] == [("model", "hf_revision"), ("tokenizer", "hf_revision")]
    assert ways_to_resume(found) == [
        "resume as before with --hf_revision c0ffee",
        "accept the changes with --accept_changes model --accept_changes tokenizer",
    ]
    found = differences(before, take(str(model), "c0ffee"))
    assert ways_to_resume(found)[0].startswith("resume as before with --hf_model_path owner/name, --hf_revision c0ffee")
    found = differences(take(str(model), "c0ffee"), before)
    assert ways_to_resume(found)[0].startswith(
        "resume as before with the former files at --hf_model_path, the former to"
    )


def test_a_version_that_nobody_knows_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise fingerprints.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert fingerprints.installed_version("torch") is None


# Packed rows in another layout

LAYOUTS = {
    1: {"context_parallel_size": 1},
    4: {"context_parallel_size": 2},
    8: {"context_parallel_size": 2, "tensor_parallel_size": 2},
}
"""By what the samples of a packed row must be a multiple of."""


@pytest.mark.parametrize(("first", "then"), [(8, 1), (8, 4), (4, 1), (4, 4)])
def test_packed_rows_are_kept_in_a_layout_that_needs_less(
    first: int, then: int, checked: Callable[..., Preflight]
) -> None:
    before = checked(packing=True, **LAYOUTS[first])
    assert (before.plan.layout.sample_multiple, before.prepared.manifest["multiple"]) == (first, first)
    begun(before)
    after = checked(packing=True, **LAYOUTS[then])
    assert after.prepared.path == before.prepared.path
    assert after.plan.layout.sample_multiple == then
    for row in RowFile(after.prepared.path / "train.arrow"):  # samples padded to less fit
        inputs = row["lengths"].astype(np.int64) - 1
        assert (-(-inputs // then) * then).sum() <= 64


@pytest.mark.parametrize(("first", "then"), [(1, 4), (4, 8)])
def test_a_layout_that_needs_more_is_refused_unless_the_rows_may_change(
    first: int, then: int, checked: Callable[..., Preflight]
) -> None:
    run = begun(checked(packing=True, **LAYOUTS[first]))
    with pytest.raises(
        RunDirError, match=f"multiples of {first}, and .* = {then}, which must divide {first}"
    ) as caught:
        checked(packing=True, **LAYOUTS[then])
    for word in ("--context_parallel_size 2", *(["--tensor_parallel_size 2"] if then == 8 else [])):
        assert word in caught.value.message
    for word in ("--context_parallel_size", "--tensor_parallel_size", "--accept_changes data", "--experiment_name"):
        assert word in caught.value.hint
    accepting = checked(packing=True, accept_changes=["data"], **LAYOUTS[then])
    assert accepting.prepared.manifest["multiple"] == then
    begun(accepting)
    assert checked(packing=True, **LAYOUTS[first]).prepared.path == accepting.prepared.path
    assert json.loads(run.data.read_text())["multiple"] == then
    assert checked(packing=True, overwrite=True, **LAYOUTS[first]).prepared.manifest["multiple"] == first
    assert checked(packing=True, experiment_name="new", **LAYOUTS[first]).prepared.manifest["multiple"] == first


def test_rows_that_change_anyway_have_the_layouts_multiple(checked: Callable[..., Preflight]) -> None:
    begun(checked(packing=True, **LAYOUTS[8]))
    with pytest.raises(RunDirError, match="seq_length was 64, is 32"):
        checked(packing=True, seq_length=32, **LAYOUTS[4])
    accepting = {"accept_changes": ["batch", "data"]}
    assert checked(packing=True, seq_length=32, **accepting, **LAYOUTS[4]).prepared.manifest["multiple"] == 4
    assert checked(**accepting).prepared.manifest["multiple"] == 1


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_data_json_that_says_nothing_is_no_crash(text: str, checked: Callable[..., Preflight]) -> None:
    run = begun(checked(packing=True, **LAYOUTS[4]))
    run.data.write_text(text)
    assert checked(packing=True, **LAYOUTS[4]).prepared.manifest["multiple"] == 4

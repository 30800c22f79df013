"""A model of a hub: one commit of it, found once, and its files as a directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NO_TENSORS, write_shape_only_model
from tests.hub import MODEL, Hub

from raymb.cli import main
from raymb.errors import ModelError
from raymb.model import files
from raymb.model.files import base_directory, commit_of
from raymb.model.initial import at_commit, branch_of, make_weights, model_path
from raymb.spec import RunSpec, load_spec

constants = pytest.importorskip("huggingface_hub.constants")
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With two commits, of other sizes each, in the place of huggingface.co, and an empty cache."""
    first, second = write_shape_only_model(tmp_path / "first"), write_shape_only_model(tmp_path / "second")
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    hub = Hub({FIRST: first, SECOND: second}, {"main": FIRST, "v2": SECOND})
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    files._snapshot.cache_clear()
    yield hub
    files._snapshot.cache_clear()
    hub.close()


def spec_of(storage: Path, **flags: Any) -> RunSpec:
    given = {"hf_model_path": MODEL, "storage_path": str(storage), "num_workers": "1"}
    return load_spec(given | {name: str(value) for name, value in flags.items()})


def gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, and this is another process."""
    hub.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files._snapshot.cache_clear()


@pytest.mark.parametrize(
    ("revision", "commit", "branch"),
    [(None, FIRST, "main"), ("main", FIRST, "main"), ("v2", SECOND, "v2"), (SECOND, SECOND, None)],
)
def test_a_branch_is_a_commit(hub: Hub, tmp_path: Path, revision: str | None, commit: str, branch: str | None) -> None:
    spec = spec_of(tmp_path, **({"hf_revision": revision} if revision else {}))
    assert branch_of(spec) == branch
    spec = at_commit(spec)
    assert (spec.model.hf_revision, at_commit(spec), branch_of(spec)) == (commit, spec, None)
    assert len(hub.asked) == (3 if branch else 0)  # config.json: where is it, and the file itself
    assert model_path(spec) == MODEL


def test_a_branch_that_moves_is_noticed_and_the_cache_answers_without_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit_of(MODEL, None) == FIRST
    hub.asked.clear()
    assert commit_of(MODEL, None) == FIRST
    assert hub.asked == [f"/{MODEL}/resolve/main/config.json"]
    hub.branches["main"] = SECOND
    assert commit_of(MODEL, None) == SECOND
    gone(hub, monkeypatch)
    assert commit_of(MODEL, None) == SECOND


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("some/modle", None, "no such directory, and no such model on the hub"),
        (MODEL, "v3", r"--hf_revision v3: the hub model has no such revision"),
    ],
)
def test_a_name_that_the_hub_does_not_have(hub: Hub, model: str, revision: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        commit_of(model, revision)


def test_a_directory_of_a_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("original/consolidated.safetensors", "consolidated.safetensors", "pytorch_model.bin", "model.onnx"):
        file = hub.commits[SECOND] / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"large")
    directory = Path(base_directory(MODEL, SECOND, weights=False))
    assert sorted(file.name for file in directory.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert base_directory(MODEL, SECOND) == str(directory)
    assert (directory / "model.safetensors").read_bytes() == NO_TENSORS
    assert not any(
        (directory / name).exists() for name in ("original", "consolidated.safetensors", "pytorch_model.bin")
    )
    assert json.loads((directory / "config.json").read_text())["num_hidden_layers"] == 6
    asked = len(hub.asked)
    files._snapshot.cache_clear()
    assert base_directory(MODEL, SECOND) == str(directory) and len(hub.asked) == asked
    gone(hub, monkeypatch)
    assert base_directory(MODEL, SECOND) == str(directory)


def test_only_the_shards_of_the_index(hub: Hub) -> None:
    model = hub.commits[FIRST]
    for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
        (model / name).write_bytes(NO_TENSORS)
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    directory = Path(base_directory(MODEL, "main"))
    assert sorted(file.name for file in directory.glob("*.safetensors")) == ["a.safetensors", "b.safetensors"]


def test_weights_that_are_in_no_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    base_directory(MODEL, FIRST, weights=False)
    gone(hub, monkeypatch)
    with pytest.raises(ModelError, match=r"cannot be reached"):
        base_directory(MODEL, FIRST)


def test_a_plan_is_of_the_revision(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"plan --json --backend cpu --num_workers 1 --hf_model_path {MODEL} --storage_path {tmp_path}"
    layers = []
    for more in ("", " --hf_revision v2"):
        assert main((words + more).split()) == 0
        layers.append(sum(json.loads(capsys.readouterr().out)["layers_per_stage"]))
    assert layers == [4, 6]
    assert not hub.fetched["model.safetensors"]


def test_pickled_weights_are_converted_once(hub: Hub, tiny_qwen2: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tensors = load_file(tiny_qwen2 / "model.safetensors")
    model = hub.commits[FIRST]
    for file in tiny_qwen2.glob("*.json"):
        (model / file.name).write_bytes(file.read_bytes())
    (model / "model.safetensors").unlink()
    torch.save({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, model / "pytorch_model.bin")
    said: list[str] = []
    for source in (MODEL, str(model)):
        spec = at_commit(spec_of(tmp_path, hf_model_path=source))
        made = Path(model_path(spec))
        assert made.parent == tmp_path / "_models"
        make_weights(spec, said.append)
        make_weights(spec, pytest.fail)
        found = load_file(made / "model.safetensors")
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert (made / "tokenizer.json").exists() and not (made / "pytorch_model.bin").exists()
    assert [line.partition(": ")[2] for line in said] == [
        f"{source} has its weights as *.bin; as safetensors" for source in (MODEL, str(model))
    ]


def test_pickled_weights_that_are_none(tmp_path: Path) -> None:
    model = write_shape_only_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"model: its \*.bin cannot be read \("):
        make_weights(spec_of(tmp_path, hf_model_path=model), lambda line: None)


def test_pickled_weights_that_are_too_large(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hub.commits[FIRST]
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10}))
    spec = at_commit(spec_of(tmp_path))
    with pytest.raises(
        ModelError, match=r"to convert them takes 0.0 GiB, and 0.0 GiB (?s:.)*convert them first: python -c"
    ):
        make_weights(spec, lambda line: None)
    assert not hub.fetched["pytorch_model.bin"]

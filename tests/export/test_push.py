"""--push_to_hub against a hub on this machine: what is refused before a training, and what arrives."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tests.writable_hub import WritableHub

from raymb.errors import RunFailed, SpecError
from raymb.export.push import check_push, push, repositories
from raymb.spec import load_spec

Start = Callable[..., WritableHub]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    hubs: list[WritableHub] = []

    def one(token: str = "hf_ann", **settings: Any) -> WritableHub:
        hubs.append(hub := WritableHub(**settings))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", token)
        return hub

    yield one
    for hub in hubs:
        hub.close()


def scope(kind: str, name: str, *permissions: str) -> dict[str, Any]:
    return {"entity": {"type": kind, "name": name}, "permissions": list(permissions)}


@pytest.mark.parametrize(
    ("repository", "settings", "problem"),
    [
        ("ann/model", {"role": "read"}, "the token 'laptop' of ann may only read"),
        ("bob/model", {}, "the token is ann's, who is no member of bob"),
        ("lab/model", {"orgs": {"lab": "read"}}, "ann may only read in lab"),
        (
            "ann/model",
            {"role": "fineGrained", "scopes": [scope("user", "ann", "repo.content.read")]},
            r"has no permission to write there \(repo.write\)",
        ),
        ("ann/model", {"token": "hf_old"}, "the hub does not know the token"),
    ],
)
def test_who_may_not_write_is_told_before_the_training(
    start: Start, repository: str, settings: dict[str, Any], problem: str
) -> None:
    hub = start(**settings)
    with pytest.raises(SpecError, match=f"--push_to_hub {repository}: .*{problem}"):
        check_push(repository, False)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("repository", "settings"),
    [
        ("ann/model", {}),
        ("lab/model", {"orgs": {"lab": "write"}}),
        ("ann/model", {"role": "fineGrained", "scopes": [scope("user", "ann", "repo.write")]}),
        ("ann/model", {"role": "fineGrained", "scopes": [scope("model", "ann/model", "repo.write")]}),
    ],
)
def test_who_may_write_is_let_through(start: Start, repository: str, settings: dict[str, Any]) -> None:
    hub = start(**settings)
    check_push(repository, False)
    assert not hub.repositories, "a check makes nothing"


def test_nothing_becomes_public_by_mistake(start: Start) -> None:
    hub = start()
    hub.repositories["ann/model"] = {"private": False, "files": {}}
    with pytest.raises(SpecError, match="ann/model is a public repository"):
        check_push("ann/model", False)
    check_push("ann/model", True)


def test_without_a_token_or_a_hub(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start().close()
    with pytest.raises(SpecError, match="the hub cannot be reached"):
        check_push("ann/model", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SpecError, match="--push_to_hub ann/model needs a token"):
        check_push("ann/model", False)
    check_push(None, False)


@pytest.mark.parametrize("given", ["model", "a/b/c", "ann/mo--del", "ann/-model", "ann/model.git", "ann/mo del"])
def test_a_name_that_the_hub_cannot_have(given: str) -> None:
    with pytest.raises(SpecError, match=f"--push_to_hub {given}: "):
        load_spec({"hf_model_path": "m", "push_to_hub": given})


def test_flags_that_contradict_each_other() -> None:
    with pytest.raises(SpecError, match="--no_export_hf leaves exports out"):
        load_spec({"hf_model_path": "m", "push_to_hub": "ann/model", "export_hf": False})
    with pytest.raises(SpecError, match="--hub_public says how --push_to_hub"):
        load_spec({"hf_model_path": "m", "hub_public": True})


@pytest.fixture
def export(tmp_path: Path) -> Path:
    directory = tmp_path / "a run" / "hf"
    (directory / "code").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# model\n")
    (directory / "code" / "more.py").write_text("x = 1\n")
    return directory


@pytest.mark.parametrize("public", [False, True])
def test_every_file_arrives(start: Start, export: Path, public: bool) -> None:
    hub = start()
    assert push(export, "ann/model", public) == f"{hub.endpoint}/ann/model"
    there = hub.repositories["ann/model"]
    sent = {path.relative_to(export).as_posix(): path.read_bytes() for path in export.rglob("*") if path.is_file()}
    assert there["files"] == sent and there["private"] is not public
    push(export, "ann/model", public)  # again, into what is there now
    assert there["files"] == sent


def test_a_push_that_fails_says_where_the_export_is_and_how_to_push_it(start: Start, export: Path) -> None:
    hub = start()
    hub.full = True
    with pytest.raises(RunFailed, match=r"is whole, and is not pushed to ann/model: .*storage limit") as failed:
        push(export, "ann/model", False)
    assert failed.value.exit_code == 1 and str(export) in failed.value.message
    hub.full = False
    words = shlex.split(failed.value.hint.removeprefix("push it again: "))
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    program = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.repositories["ann/model"]["files"]
    assert hub.repositories["ann/model"]["private"]


def test_an_adapter_and_its_merged_model_have_repositories_of_their_own() -> None:
    model, adapter = Path("run/hf"), Path("run/adapter")
    assert repositories("ann/model", model, None) == {model: "ann/model"}
    assert repositories("ann/model", model, adapter) == {adapter: "ann/model", model: "ann/model-merged"}

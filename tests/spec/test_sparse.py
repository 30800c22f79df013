"""What a job's spec.yaml has: what differs from the defaults, so written that --config reads the same again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raymb.spec import RunSpec, differing_sections, load_spec, sparse_yaml
from raymb.submit.target import as_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
HARD = {
    "hf_model_path": "m",
    "prompt_template": "Q \\${{x}} ${{y}}: {question}  \n\n",
    "completion_template": " {answer}\t\u00fc \U0001f600",
    "system_prompt": "one \n  two\n" + "a long line " * 200,
    "env": {"NCCL_DEBUG_FILE": "${HOME}", "NCCL_DEBUG": "???"},
}


def read_again(spec: RunSpec, tmp_path: Path) -> RunSpec:
    file = tmp_path / "spec.yaml"
    file.write_text(sparse_yaml(spec))
    return load_spec({}, [file])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_spec_comes_back_from_what_differs(config: Path, tmp_path: Path) -> None:
    spec = load_spec({"hf_model_path": "m"}, [config], recipe=lambda name, merged: {})
    assert read_again(spec, tmp_path) == spec == RunSpec.model_validate(differing_sections(spec))
    defaults = load_spec({"hf_model_path": "m"}).model_dump(mode="json")
    for section, fields in differing_sections(spec).items():
        same = [name for name, value in fields.items() if value == defaults[section].get(name)]
        assert same in ([], ["hf_model_path"])


def test_a_spec_of_defaults_is_its_model() -> None:
    assert yaml.safe_load(sparse_yaml(load_spec({"hf_model_path": "m"}))) == {"model": {"hf_model_path": "m"}}


def test_texts_of_every_kind_come_back_and_stand_in_a_block_literal(tmp_path: Path) -> None:
    spec = load_spec(HARD, overrides=["optimizer.decoupled_lr=1e-4"])
    assert read_again(spec, tmp_path) == spec
    text = sparse_yaml(spec)
    document = as_yaml({"data": {"spec.yaml": text}})
    assert "spec.yaml: |\n    model:\n" in document
    assert yaml.safe_load(document)["data"]["spec.yaml"] == text


def test_a_secret_is_left_out() -> None:
    text = sparse_yaml(load_spec({"hf_model_path": "m", "env": {"HF_TOKEN": "hidden", "NCCL_DEBUG": "b"}}))
    assert "hidden" not in text and "NCCL_DEBUG: b" in text

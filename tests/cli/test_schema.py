"""The generated reference and schema are those of the code, and hold for what people write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from raymb.cli import main
from raymb.spec import SECTION_OF_FLAG
from raymb.spec.names import FLAG_OF_SHORT
from raymb.spec.schema import json_schema

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize(("words", "file"), [(["--markdown"], "reference.md"), ([], "schema.json")])
def test_what_is_generated_is_not_stale(words: list[str], file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", *words]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / file).read_text(), "run scripts/generate-reference"


def test_the_reference_has_every_flag_with_its_help_and_the_fields_it_owns() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    assert [flag for flag in SECTION_OF_FLAG if f"| `--{flag}`" not in page] == []
    assert [short for short, flag in FLAG_OF_SHORT.items() if f"| `--{flag}`, `--{short}` | " not in page] == []
    assert "| `--recompute_method` | uniform\\|block |" in page
    assert "`optimizer.pin_cpu_params`, `optimizer.pin_cpu_grads`" in page
    assert "| `raymb plan` * |" in page and "| `raymb export` |" in page


def problems(text: str) -> list[str]:
    return [error.message for error in Draft202012Validator(json_schema()).iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_in_an_editor(config: Path) -> None:
    Draft202012Validator.check_schema(json_schema())
    assert problems(config.read_text()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {train_itres: 5}", "'train_itres' was unexpected"),
        ("tarin: {}", "'tarin' was unexpected"),
        ("train: {recompute: some}", "'some' is not one of"),
        ("parallel: {tp: 2}", "'tp' was unexpected"),
        ("parallel: {data_parallel_size: 0}", "0 is not valid under any of the given schemas"),
        ("parallel: {num_workers: 0}", "0 is not valid under any of the given schemas"),
        ("moe: {moe_aux_loss_coeff: many}", "'many' is not valid"),
    ],
)
def test_an_editor_marks_mistakes(text: str, expected: str) -> None:
    assert expected in " ".join(problems(text))


def test_an_editor_accepts_one_word_for_a_list_and_a_range() -> None:
    text = "data: {dataset: sample}\npeft: {lora_target_modules: 'q_proj,v_proj'}\nparallel: {num_workers: '4:16'}"
    assert problems(text) == []
    assert problems("parallel: {num_workers: auto, data_parallel_size: '1:4'}") == []


def completed(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash would be told at the end of a line."""
    words = line.split(" ")
    environment = {"_RAYMB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raymb fine", ["finetune"]),
        ("raymb finetune --recompute_m", ["--recompute_method", "--recompute_modules"]),
        ("raymb plan --recompute ", ["auto", "none", "selective", "full"]),
        ("raymb plan --moe_token_dispatcher all", ["alltoall", "allgather"]),
        ("raymb data ins", ["inspect"]),
    ],
)
def test_the_shell_completes_commands_flags_and_values(
    line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed(line, monkeypatch, capsys) == expected


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"].keys() >= {"model", "moe", "overrides"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_an_editor_finds_the_schema_of_a_config(config: Path) -> None:
    name = config.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (config.parent / name).resolve() == ROOT / "docs" / "schema.json"

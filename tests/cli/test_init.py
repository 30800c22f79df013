"""`raymb init`: questions and answers in a terminal, flags instead, and a YAML that plans."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.cli.test_runs_command import SOURCE, read_until

from raymb.cli import main
from raymb.cli.init import _machine
from raymb.errors import SpecError
from raymb.spec import load_spec

QUESTIONS = ("Model", "Data", "Machine", "lora, dora or full")


def flags(model: Path, **others: object) -> list[str]:
    given = {"hf_model_path": model, "dataset": "rows.jsonl", "num_workers": 2, "gpu": "h100-80gb", "peft": "lora"}
    given |= others
    return [word for flag, value in given.items() if value is not None for word in (f"--{flag}", str(value))]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, {"num_workers": 2, "peft": "lora", "gpu": "h100-80gb", "backend": "cuda", "learning_rate": 2e-4}),
        ({"peft": "none", "num_workers": 3}, {"num_workers": 3, "peft": "none", "learning_rate": 1e-5}),
        ({"peft": "dora", "num_workers": None}, {"num_workers": 1, "peft": "dora"}),
        ({"gpu": "cpu", "num_workers": None}, {"num_workers": 2, "backend": "cpu", "gpu": "auto", "seq_length": 512}),
        ({"gpu": None, "num_workers": 4}, {"num_workers": 4, "backend": "cuda", "gpu": "auto"}),
    ],
)
def test_flags_answer_and_the_yaml_plans(
    others: dict, expected: dict, shape_only_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "first" / "run.yaml"
    assert main(["init", str(file), *flags(shape_only_model_dir, **others)]) == 0
    captured = capsys.readouterr()
    assert "workers" in captured.out and f"raymb finetune --config {file} --dry_run" in captured.out
    spec = load_spec({}, [file])
    values = {
        flag: value for section in spec.model_dump(exclude={"overrides"}).values() for flag, value in section.items()
    }
    assert {flag: values[flag] for flag in expected} == expected
    assert values["dataset"] == ["rows.jsonl"] and values["seq_length"] <= 1024  # the model's positions
    assert main(["plan", "--config", str(file)]) == 0
    lines = file.read_text().splitlines()
    keys = [line for line in lines if line.startswith("  ") and not line.startswith("  #")]
    assert all(" # " in line for line in keys) and len(keys) >= 12
    # What stands in comments as the next thing to set can be set.
    for line in (line for line in lines if line.startswith("  # ")):
        changed = tmp_path / "changed.yaml"
        changed.write_text(file.read_text().replace(line, line.replace("# ", "", 1)))
        assert load_spec({}, [changed])


def test_without_a_terminal_an_open_question_names_its_flag(
    shape_only_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    file = tmp_path / "run.yaml"
    assert main(["init", str(file), *flags(shape_only_model_dir, dataset=None, peft=None)]) == 2
    error = capsys.readouterr().err
    assert "nothing says --dataset, --peft" in error and "--hf_model_path" not in error and not file.exists()


def test_a_file_that_is_there_stays(
    shape_only_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("mine")
    assert main(["init", str(file), *flags(shape_only_model_dir)]) == 2
    assert "--overwrite" in capsys.readouterr().err and file.read_text() == "mine"
    assert main(["init", str(file), *flags(shape_only_model_dir), "--overwrite"]) == 0
    assert yaml.safe_load(file.read_text())["parallel"] == {"num_workers": 2}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"peft": "qlora"}, "--peft qlora: none, lora, dora is expected"),
        ({"gpu": "h900"}, "--gpu h900 is not known"),
        ({"num_workers": 0}, "--num_workers"),
    ],
)
def test_a_wrong_answer_is_refused_and_nothing_is_written(
    others: dict, said: str, shape_only_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "run.yaml"), *flags(shape_only_model_dir, **others)]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.glob("run.yaml")) == []


def test_a_model_that_cannot_be_reached_is_written_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["init", str(tmp_path / "run.yaml"), *flags(Path("some/model"))]) == 0
    assert "not planned: --hf_model_path some/model" in capsys.readouterr().err
    assert load_spec({}, [tmp_path / "run.yaml"]).model.hf_model_path == "some/model"


def test_four_questions_in_a_terminal(shape_only_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "COLUMNS": "120", "TERM": "xterm"}
    command = [sys.executable, "-m", "raymb", "init", str(file)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    answers = (str(shape_only_model_dir), "", "h900", "4 h200", "maybe", "full")
    asked = (QUESTIONS[0], QUESTIONS[1], QUESTIONS[2], QUESTIONS[2], QUESTIONS[3], QUESTIONS[3])
    try:
        seen = ""
        for question, answer in zip(asked, answers, strict=True):
            seen += read_until(ours, f"{question}")
            os.write(ours, f"{answer}\n".encode())
        seen += read_until(ours, "is written")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(ours)
    assert "--gpu h900 is not known" in seen and "--peft maybe" in seen
    spec = load_spec({}, [file])
    assert (spec.data.dataset, spec.parallel.num_workers, spec.cluster.gpu) == (["squad"], 4, "h200")
    assert spec.peft.peft == "none" and spec.optimizer.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        ("8 h100-80gb", (8, "h100-80gb", "cuda")),
        ("8xH200", (8, "h200", "cuda")),
        ("4", (4, None, "cuda")),
        ("l4", (1, "l4", "cuda")),
        ("cpu", (2, None, "cpu")),
        ("4 cpu", (4, None, "cpu")),
    ],
)
def test_what_a_machine_is_called(text: str, machine: tuple) -> None:
    assert tuple(_machine(text).values()) == machine


@pytest.mark.parametrize("text", ["0", "8 GPUs of h100", "-1"])
def test_what_is_no_machine(text: str) -> None:
    with pytest.raises(SpecError, match="such as 8 h100-80gb, or cpu"):
        _machine(text)

"""Which paths a job has: what is uploaded is a copy, in which nothing that is written lasts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.submit.conftest import MODEL, STORED

HERE = ["--working_dir", "."]
ANYSCALE = ["--image", "a/b:1", "--instance_type", "c"]
UPLOADING = {"ray": [], "anyscale": ANYSCALE, "skypilot": ["--accelerator", "H100"]}


@pytest.mark.parametrize("target", UPLOADING)
def test_a_run_is_not_written_into_the_copy(target: str, refused: Callable[..., str], home: Path) -> None:
    """The directory of earlier runs is there, and so is that of checkpoints."""
    for name in ("raymb-runs", "checkpoints"):
        (home / name).mkdir()
    words = [target, *MODEL, *HERE, *UPLOADING[target]]
    assert "--storage_path raymb-runs: what the job writes there would be lost with it" in refused(*words)
    assert "--output_dir checkpoints: what the job writes" in refused(*words, *STORED, "--output_dir", "checkpoints")


def test_a_copy_of_data_is_no_place_for_a_run(refused: Callable[..., str]) -> None:
    words = ["--hf_model_path", "/data/m", "--dataset", "/data/rows", "--storage_path", "/data/runs"]
    mounted = ["skypilot", *words, "--accelerator", "H100", "--file_mounts", "/data:./here"]
    assert "--storage_path /data/runs: what the job writes there would be lost" in refused(*mounted)
    channel = "/opt/ml/input/data/train"
    words = [
        "--hf_model_path",
        channel,
        "--dataset",
        channel,
        "--storage_path",
        channel,
        "--channels",
        "train=s3://b/x",
    ]
    words += ["--image", "a", "--role", "arn:aws:iam::123456789012:role/train", "--instance_type", "c"]
    said = refused("sagemaker", *words, "--output_s3", "s3://b/m")
    assert f"--storage_path {channel}: what the job writes there would be lost" in said
    assert "--dataset" not in said and "--hf_model_path" not in said


def test_what_is_beside_the_copy_is_not_in_it(refused: Callable[..., str], home: Path) -> None:
    words = ["ray", "--hf_model_path", "model", *STORED, *HERE]
    beside = home.parent / "beside.jsonl"
    beside.write_text('{"prompt": "a", "completion": "b"}\n')
    assert "--dataset ../beside.jsonl: this path is not one" in refused(*words, "--dataset", "../beside.jsonl")
    (home / "raymb-runs").mkdir()
    (home / "raymb-runs" / "rows.jsonl").write_text(beside.read_text())
    assert "this path is not one" in refused(*words, "--dataset", "raymb-runs/rows.jsonl")


def test_what_git_ignores_is_not_uploaded(
    refused: Callable[..., str], rendered: Callable[..., Path], home: Path
) -> None:
    subprocess.run(["git", "init", "-q", str(home)], check=True)
    rendered("ray", *MODEL, *STORED, *HERE)
    (home / ".gitignore").write_text("rows/\n")
    assert "--dataset rows: this path is not one that the job sees" in refused("ray", *MODEL, *STORED, *HERE)
    (home / ".gitignore").write_text("raymb-jobs\n")
    assert ".gitignore:1:raymb-jobs leaves them out" in refused("ray", *MODEL, *STORED, *HERE)


def test_a_glob_of_what_is_uploaded(rendered: Callable[..., Path], refused: Callable[..., str]) -> None:
    words = ["ray", "--hf_model_path", "model", *STORED, *HERE, "--dataset"]
    rendered(*words, "rows/*.jsonl")
    assert "--dataset columns/*.jsonl: this path" in refused(*words, "columns/*.jsonl")

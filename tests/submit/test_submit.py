"""What all targets have in common: flags, refusals, the job's directory."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from raymb.cli import main
from raymb.cli.submit import TARGETS
from raymb.spec import SECTION_OF_FLAG, load_spec
from raymb.submit.target import JobOptions
from tests.submit.conftest import AWAY, MODEL, STORED

CPU = ["--backend", "cpu", "--num_workers", "2"]


def test_no_flag_of_a_target_is_one_of_finetune() -> None:
    for target, _ in TARGETS.values():
        own = [*target.model_fields, *JobOptions.model_fields]
        assert len(set(own)) == len(own)
        assert not set(own) & {*SECTION_OF_FLAG, "config", "overrides", "dry_run"}
        assert [name for name, field in target.model_fields.items() if not field.description] == []


def test_the_spec_is_what_was_asked_for_on_the_cluster_of_the_job(rendered: Callable[..., Path]) -> None:
    job = rendered("slurm", *MODEL, *CPU, train_iters=7, partition="gpu")
    spec = load_spec({}, [job / "spec.yaml"])
    asked = load_spec({"hf_model_path": "model", "dataset": "rows", "train_iters": "7", "backend": "cpu"})
    assert spec.train == asked.train and spec.model == asked.model and spec.data == asked.data
    assert (spec.cluster.ray_address, spec.cluster.wait_for_resources) == ("auto", 900)


def test_what_is_wrong_is_said_before_anything_is_written(refused: Callable[..., str], home: Path) -> None:
    assert "targets: ray, slurm, kuberay, anyscale, sagemaker, skypilot" in refused("lsf")
    assert "--image is needed" in refused("kuberay", *MODEL, *STORED)
    assert "--role is needed\n  --instance_type is needed" in refused("sagemaker", *MODEL, "--image", "a", *STORED)
    assert "--num_workers 3 must be a multiple of" in refused(
        "slurm", *MODEL, "--num_workers", "3", "--tensor_parallel_size", "2"
    )
    assert "--time_limit tomorrow: must be MINUTES, HH:MM:SS" in refused("slurm", *MODEL, "--time_limit", "tomorrow")
    assert "--dataset nowhere.jsonl: no such file" in refused(
        "slurm", "--hf_model_path", "model", "--dataset", "nowhere.jsonl"
    )
    for flag in ("--dataset", "--validation_dataset"):
        words = ["--hf_model_path", "/shared/model", "--dataset", "/shared/rows", flag, "typing.jsonl#5"]
        assert f"{flag} typing.jsonl: this path" in refused("ray", *words, *STORED, "--working_dir", ".")
    assert "--dataset typing.jsonl: this path" in refused(
        "ray", "--hf_model_path", "model", "--dataset", "typing.jsonl", *STORED, "--working_dir", "."
    )
    assert "leave it out" in refused("slurm", *MODEL, "--ray_address", "auto")
    assert not (home / "raymb-jobs").exists()


def test_paths_that_the_job_cannot_see_are_refused_with_the_flag(refused: Callable[..., str]) -> None:
    said = refused("kuberay", *MODEL, "--image", "a", "--volume_claims", "claim:/data", "--storage_path", "/data/runs")
    assert "--dataset rows: this path is not one that the job sees\n  --hf_model_path model: " in said
    assert "--storage_path" not in said and "--volume_claims CLAIM:/PATH" in said
    assert "--storage_path raymb-runs" in refused("anyscale", *MODEL, "--image", "a", "--working_dir", ".")
    assert "--storage_path raymb-runs" in refused("ray", *MODEL, "--working_dir", ".")


def test_a_model_that_only_the_cluster_has_is_left_to_the_job(
    rendered: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"hf_model_path": "/data/model", "dataset": "/data/rows", "storage_path": "/data/runs"}
    rendered("kuberay", image="a", volume_claims="claim:/data", **flags)
    assert "not checked here, but by the job first: --hf_model_path /data/model" in capsys.readouterr().err


def test_no_secret_is_written(
    refused: Callable[..., str], rendered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hidden")
    for target, way in {
        "slurm": "export HF_TOKEN and give --pass_env HF_TOKEN,MINE",
        "kuberay": "create secret generic NAME --from-literal=HF_TOKEN=... --from-literal=MINE=..., and give --secrets",
        "ray": "start Ray on the nodes with HF_TOKEN, MINE; or pass on where a file",
    }.items():
        image = ["--image", "a"] if target == "kuberay" else []
        said = refused(target, *image, *MODEL, "--env", "MINE=hidden", "--env", "HF_TOKEN", "--env", "NCCL_DEBUG=INFO")
        assert "--env HF_TOKEN, MINE: not known to be harmless, and the job's files would hold the value" in said
        assert way in said and "hidden" not in said
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "--pass_env HF_TOKEN: this variable is not set here" in refused("slurm", *MODEL, "--pass_env", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    there = ["--hf_model_path", "/data/model", "--volume_claims", "claim:/data", *STORED, "--image", "a"]
    assert "create secret" in refused("kuberay", *there, "--pass_env", "HF_TOKEN")
    local = ["--working_dir", ".", *MODEL, *STORED, "--pass_env", "HF_TOKEN", "--replace"]
    assert "HF_TOKEN: not known to be harmless, and Ray writes the variables of a job into its" in refused(
        "ray", *local
    )
    for target, words in {
        "slurm": [*AWAY, "--pass_env", "HF_TOKEN", "--replace"],
        "anyscale": [*local, "--image", "a/b:1", "--instance_type", "p5.48xlarge"],
        "skypilot": [*local, "--accelerator", "H100"],
    }.items():
        directory = rendered(target, *words)
        assert [file.name for file in directory.iterdir() if "hidden" in file.read_text()] == []


def test_the_command_that_is_shown_takes_secrets_from_the_shell(
    rendered: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hidden")
    local = ["--working_dir", ".", *MODEL, *STORED, "--pass_env", "HF_TOKEN", "--replace"]
    rendered("anyscale", *local, "--image", "a/b:1", "--instance_type", "p5.48xlarge")
    assert "this command without --dry_run; `anyscale job submit " in capsys.readouterr().out
    rendered("skypilot", *local, "--accelerator", "H100")
    assert " --secret HF_TOKEN " in capsys.readouterr().out


def test_variables_whose_names_begin_alike_are_told_apart(
    rendered: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by a shell, as a user pastes the line."""
    values = {"AWS_ENDPOINT_URL": "short", "AWS_ENDPOINT_URL_S3": "long", "AWS_REGION": "other"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    local = ["--working_dir", ".", *MODEL, *STORED, "--replace", "--pass_env", ",".join(values)]
    rendered("ray", *local, "--address", "http://head:8265")
    line = capsys.readouterr().out.splitlines()[-1].strip().replace("ray job submit", "printf '%s\\n'")
    words = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(words[words.index("--runtime-env-json") + 1])["env_vars"] == values


def test_other_files_are_not_written_over(rendered: Callable[..., Path], refused: Callable[..., str]) -> None:
    job = rendered("slurm", *AWAY, *CPU)
    rendered("slurm", *AWAY, *CPU)  # the same again
    changed = ["slurm", *AWAY, *CPU, "--train_iters", "9", "--job_name", "job", "--dry_run"]
    assert "--replace writes over it" in refused(*changed)
    assert main(["submit", *changed, "--replace"]) == 0
    assert load_spec({}, [job / "spec.yaml"]).train.train_iters == 9


def test_a_job_that_starts_again_must_be_able_to_resume(
    refused: Callable[..., str], rendered: Callable[..., Path]
) -> None:
    assert "--overwrite" in refused("slurm", *AWAY, "--overwrite")
    assert "--resume never" in refused("slurm", *AWAY, "--resume", "never")
    rendered("slurm", *AWAY, *CPU, "--overwrite", "--no_requeue")


_ANYWHERE = ["--hf_model_path", "/data/model", *STORED]


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["slurm", *AWAY], "login node"),
        (["kuberay", *_ANYWHERE, "--image", "a", "--volume_claims", "c:/data"], "install kubectl"),
        (["anyscale", *MODEL, *STORED, "--working_dir", ".", "--image", "a/b:1", "--instance_type", "c"], "anyscale"),
        (["skypilot", *_ANYWHERE, "--file_mounts", "/data:s3://b", "--accelerator", "H100"], "skypilot"),
    ],
)
def test_a_client_that_is_missing_is_named(
    words: list[str], package: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("PATH", str(home))
    said = refused(*words)
    assert "on PATH to submit with" in said and package in said.splitlines()[-1]

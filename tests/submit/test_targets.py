"""What the other targets render, checked by their own schemas: Kubernetes' for KubeRay's pods, botocore's model of
CreateTrainingJob; test_clients.py has the parsers of anyscale and sky."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymb.cli import main
from raymb.spec import load_spec
from raymb.spec.sections import RunSpec
from tests.smoke.conftest import words_of
from tests.submit.conftest import MODEL, STORED
from tests.submit.programs import install

GPUS = ["--backend", "cuda", "--num_workers", "16", "--global_batch_size", "16"]
HERE = ["--working_dir", ".", *MODEL, *GPUS]
RAY_JOB = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text())
"""The fields of KubeRay's CRD (ray.io/v1, 1.5) as far as raymb renders them; no package index carries the CRD. Pods are
checked by Kubernetes' own schema."""


def documents_of(job: Path, name: str) -> list[Any]:
    return list(yaml.safe_load_all((job / name).read_text()))


KUBERAY: dict[str, Any] = {
    "hf_model_path": "/data/model",
    "dataset": "/data/rows",
    "storage_path": "/data/runs",
    "image": "registry/raymb:1",
    "volume_claims": "claim:/data",
    "num_workers": 16,
    "backend": "cuda",
}


def checked_ray_job(job: Path) -> dict[str, Any]:
    """The RayJob, after Kubernetes' schema and the CRD's have taken it."""
    import jsonschema
    import kubernetes_validate

    (config_map,), (ray_job,) = documents_of(job, "configmap.yaml"), documents_of(job, "rayjob.yaml")
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(config_map, version, strict=True)
    jsonschema.validate(ray_job, RAY_JOB)
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)
    assert RunSpec.model_validate(yaml.safe_load(config_map["data"]["spec.yaml"]))
    (mounted,) = {
        volume["configMap"]["name"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for volume in group["template"]["spec"]["volumes"]
        if "configMap" in volume
    }
    assert mounted == config_map["metadata"]["name"]
    return ray_job


def test_kuberay(rendered: Callable[..., Path]) -> None:
    ray_job = checked_ray_job(rendered("kuberay", **KUBERAY))
    spec = ray_job["spec"]
    assert spec["entrypoint"] == "python -m raymb finetune --config /etc/raymb/spec.yaml"
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert [workers[name] for name in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 2]
    container = workers["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"name": "volume-0", "mountPath": "/data"} in container["volumeMounts"]
    assert workers["rayStartParams"] == {"num-cpus": "32", "num-gpus": "8"}
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_everything_of_kuberay(rendered: Callable[..., Path]) -> None:
    more = {"secrets": ["hub", "tracking"], "queue": "team", "service_account": "trainer", "image_pull_secret": "pull"}
    more |= {"node_selector": "cloud.google.com/gke-accelerator=nvidia-h100-80gb", "time_limit": "3600"}
    ray_job = checked_ray_job(rendered("kuberay", "--token", **KUBERAY, **more))
    assert ray_job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert ray_job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    container = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "hub"}}, {"secretRef": {"name": "tracking"}}]


def test_each_submission_to_kuberay_is_a_job_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kubectl that notes its calls. `create` with generateName makes a job each time; a spec that another submission
    still reads stays as it is."""
    kubectl = (
        '#!/bin/bash\necho "$1 $(basename "$3")" >> {called}/kubectl; cp "$3" {called}/$(wc -l < {called}/kubectl)\n'
    )
    called = tmp_path / "cluster" / "called"
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'cluster', kubectl=kubectl)}{os.pathsep}{os.environ['PATH']}")
    for more in ([], [], ["--replace", "--train_iters", "9"]):
        assert main(["submit", "kuberay", *words_of(KUBERAY), "--job_name", "job", *more]) == 0
    assert (called / "kubectl").read_text().split("\n") == [*["apply configmap.yaml", "create rayjob.yaml"] * 3, ""]
    names = [yaml.safe_load((called / number).read_text())["metadata"] for number in ("1", "3", "5", "2")]
    assert names[0]["name"] == names[1]["name"] != names[2]["name"] and names[3]["generateName"] == "job-"


def test_the_schema_of_kuberay_finds_mistakes(rendered: Callable[..., Path]) -> None:
    import jsonschema

    (ray_job,) = documents_of(rendered("kuberay", **KUBERAY), "rayjob.yaml")
    for wrong in ({"entryPoint": "a"}, {"backoffLimit": "3"}, {"rayClusterSpec": {"workerGroupSpecs": [{}]}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**ray_job, "spec": {**ray_job["spec"], **wrong}}, RAY_JOB)


SAGEMAKER: dict[str, Any] = {
    "hf_model_path": "/opt/ml/input/data/model",
    "storage_path": "s3://bucket/runs",
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/raymb:1",
    "role": "arn:aws:iam::123456789012:role/train",
    "instance_type": "ml.p5.48xlarge",
    "output_s3": "s3://bucket/models",
    "channels": ["model=s3://bucket/model", "train=s3://bucket/rows"],
    "num_workers": 16,
    "backend": "cuda",
}


def checked_request(job: Path) -> dict[str, Any]:
    """CreateTrainingJob's parameters, after botocore has taken them."""
    import botocore.session
    from botocore.validate import ParamValidator

    request = json.loads((job / "training-job.json").read_text())
    model = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob")
    report = ParamValidator().validate(request, model.input_shape)
    assert not report.has_errors(), report.generate_report()
    assert max(map(len, request["HyperParameters"].values())) <= 2500
    return request


def test_sagemaker(rendered: Callable[..., Path], tmp_path: Path) -> None:
    job = rendered("sagemaker", "--spot", **SAGEMAKER)
    request = checked_request(job)
    assert request["ResourceConfig"]["InstanceCount"] == 2
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400, "MaxWaitTimeInSeconds": 172800}
    assert [channel["ChannelName"] for channel in request["InputDataConfig"]] == ["model", "train"]
    sections = {name: json.loads(text) for name, text in request["HyperParameters"].items()}
    assert sections["run"]["experiment_name"] == "job"
    expected = load_spec({}, [job / "spec.yaml"])
    named = expected.run.model_copy(update={"experiment_name": "job"})
    assert RunSpec.model_validate(sections) == expected.model_copy(update={"run": named})


def test_sagemaker_takes_the_code_along(home: Path, s3: str, tmp_path: Path) -> None:
    """To moto's S3 and SageMaker; then what a container runs, with the channel as SageMaker lays it out."""
    import boto3
    import fsspec

    (home / "mine.py").write_text("x = 1\n")
    flags = {**SAGEMAKER, "output_s3": f"{s3}/models", "hf_model_path": "model", "dataset": "rows", "working_dir": "."}
    flags |= {"channels": None, "job_name": "job", "region": "us-east-1"}
    assert main(["submit", "sagemaker", *words_of(flags)]) == 0
    client = boto3.client("sagemaker", region_name="us-east-1")
    (summary,) = client.list_training_jobs()["TrainingJobSummaries"]
    job = client.describe_training_job(TrainingJobName=summary["TrainingJobName"])
    (channel,) = job["InputDataConfig"]
    source = channel["DataSource"]["S3DataSource"]["S3Uri"]
    assert (channel["ChannelName"], source) == ("code", f"{s3}/models/{summary['TrainingJobName']}/source/")
    assert job["AlgorithmSpecification"]["ContainerEntrypoint"] == ["bash", "/opt/ml/input/data/code/start.sh"]
    filesystem, root = fsspec.url_to_fs(source)
    filesystem.get(f"{root.rstrip('/')}/", f"{tmp_path}/channel/", recursive=True)
    place = install(
        tmp_path / "cluster", python='#!/bin/bash\necho "$PWD $PYTHONPATH $*" > {called}/python; ls > {called}/ls\n'
    )
    run = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
    subprocess.run(["bash", str(tmp_path / "channel/start.sh")], check=True, env=run)
    where, source, *words = (tmp_path / "cluster/called/python").read_text().split()
    assert words == ["-m", "raymb.submit.sagemaker_host"] and where.removesuffix("code") == source.removesuffix("src")
    assert {"mine.py", "model", "rows"} <= set((tmp_path / "cluster/called/ls").read_text().split())
    assert Path(source, "raymb/submit/sagemaker_host.py").is_file()
    shutil.rmtree(Path(where).parent)


def test_checkpoints_of_several_instances_need_a_uri(refused: Callable[..., str], rendered) -> None:
    flags = [
        word
        for name, value in SAGEMAKER.items()
        if name not in ("storage_path", "channels", "num_workers")
        for word in (f"--{name}", str(value))
    ]
    flags += ["--channels", "model=s3://bucket/model", "--storage_path", "/opt/ml/checkpoints"]
    kept = ["--checkpoint_s3", "s3://bucket/checkpoints"]
    assert "--checkpoint_s3" in refused("sagemaker", *flags, "--num_workers", "8")
    assert "on each of 2 instances" in refused("sagemaker", *flags, *kept, "--num_workers", "16")
    assert checked_request(rendered("sagemaker", *flags, *kept, "--num_workers", "8"))["CheckpointConfig"]


def test_anyscale(rendered: Callable[..., Path], home: Path, refused: Callable[..., str]) -> None:
    words = [*HERE, "--storage_path", "/mnt/user_storage/runs", "--image", "registry/raymb:1", "--queue", "night"]
    (job,) = documents_of(rendered("anyscale", *words, instance_type="p5.48xlarge", tags="team=nlp"), "job.yaml")
    assert job["entrypoint"] == "python -m raymb finetune --config raymb-jobs/job/spec.yaml"
    assert (job["working_dir"], job["tags"], job["max_retries"]) == (str(home), {"team": "nlp"}, 3)
    (group,) = job["compute_config"]["worker_nodes"]
    assert (group["instance_type"], group["min_nodes"], group["max_nodes"]) == ("p5.48xlarge", 2, 2)
    assert "either --instance_type or --compute_config" in refused("anyscale", *words)


def test_no_command_line_of_anyscale_has_a_secret(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An anyscale that looks at its file as version 0.26.112 does: twice, and it must be a file."""
    anyscale = """#!/bin/bash
[ -f "$4" ] || {{ echo "Job config file '$4' not found."; exit 1; }}
cat /proc/[0-9]*/cmdline > {called}/lines 2> /dev/null
cat "$4" > {called}/first; cat "$4" > {called}/second
[ ! -e {called}/refuse ] || exit 3
"""
    called = tmp_path / "cluster" / "called"
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'cluster', anyscale=anyscale)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "it's: hidden\n#x")
    words = ["submit", "anyscale", *HERE, *STORED, "--image", "a/b:1", "--instance_type", "c", "--pass_env", "HF_TOKEN"]
    assert main([*words, "--job_name", "job"]) == 0
    read = [yaml.safe_load((called / name).read_text()) for name in ("first", "second")]
    assert read[0] == read[1] and read[0].pop("env_vars") == {"HF_TOKEN": "it's: hidden\n#x"}
    job = Path("raymb-jobs/job").absolute()
    assert [read[0]] == documents_of(job, "job.yaml")
    kept = [called / "lines", *(path for path in home.rglob("*") if path.is_file() and called not in path.parents)]
    assert [path for path in kept if b"it's: hidden" in path.read_bytes()] == []
    (called / "refuse").touch()
    capfd.readouterr()
    assert main([*words, "--job_name", "job"]) == 2
    assert "it's: hidden" not in "".join(capfd.readouterr())


def test_skypilot(rendered: Callable[..., Path], home: Path) -> None:
    words = [*HERE, *STORED, "--accelerator", "H100", "--file_mounts", "/data:s3://bucket", "--spot"]
    (task,) = documents_of(rendered("skypilot", *words, image="registry/raymb:1"), "task.yaml")
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8"
    assert task["file_mounts"] == {"/data": "s3://bucket"} and task["workdir"] == str(home)
    assert '--rank "$SKYPILOT_NODE_RANK"' in task["run"] and "--config raymb-jobs/job/spec.yaml" in task["run"]


def test_the_job_must_be_in_what_is_uploaded(refused: Callable[..., str], home: Path) -> None:
    said = refused("skypilot", *HERE, *STORED, "--accelerator", "H100", "--output", str(home.parent / "elsewhere"))
    assert "--output " in said and "must be in --working_dir" in said

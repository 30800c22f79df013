"""`raymb submit kuberay`: a RayJob for the KubeRay operator, and the spec in a ConfigMap."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raymb.errors import SpecError
from raymb.spec import RunSpec, sparse_yaml
from raymb.spec.values import Size, Words, written_as
from raymb.submit.target import SPEC, Submission, Target, as_yaml

CONFIG_MAP, MANIFEST = "configmap.yaml", "rayjob.yaml"
_SPEC_DIRECTORY = "/etc/raymb"
Claim = Annotated[
    str, written_as(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?:/.+", "must be CLAIM:/PATH, the name in small letters")
]
Label = Annotated[str, written_as(r"[\w./-]+=[\w.-]*", "must be NAME=VALUE")]
Quantity = Annotated[str, written_as(r"\d+(\.\d+)?([KMGT]i?)?", "must be a number and Ki, Mi, Gi or Ti, such as 256Gi")]


class Kuberay(Target):
    client: ClassVar[str] = "kubectl"
    package: ClassVar[str] = "install kubectl and log in to the cluster"

    image: str
    """Image with raymb and Ray, built from the Containerfile."""
    namespace: str = "default"
    """Namespace of the job."""
    volume_claims: list[Claim] = Field(default=[])
    """Volume that all pods mount (ReadWriteMany), CLAIM:/PATH. Repeatable."""
    secrets: Words = Field(default=[])
    """Secret of the namespace whose keys become environment variables, such as HF_TOKEN. Repeatable."""
    cpus_per_node: Size = 32
    """CPUs of a worker pod."""
    memory: Quantity = "256Gi"
    """Memory of a worker pod."""
    shared_memory: Quantity = "64Gi"
    """/dev/shm of a pod, for NCCL and Ray's object store; a part of --memory."""
    head_cpus: Size = 4
    """CPUs of the head, which runs the driver and no worker."""
    head_memory: Quantity = "32Gi"
    """Memory of the head."""
    gpu_resource: str = "nvidia.com/gpu"
    """Kubernetes' name of a GPU."""
    node_selector: list[Label] = Field(default=[])
    """Label that the workers' nodes have, NAME=VALUE. Repeatable."""
    queue: str | None = None
    """Kueue's local queue; the job waits until the queue admits it."""
    service_account: str | None = None
    """Service account of the pods."""
    image_pull_secret: str | None = None
    """Secret for the image's registry."""
    token: bool = False
    """Have KubeRay (1.5.1 or later) make a token, without which nothing joins the cluster."""
    retries: int = Field(default=3, ge=0)
    """New clusters after a failed one; the run resumes from its newest checkpoint."""
    time_limit: Size | None = None
    """Seconds after which Kubernetes ends the job; --max_time stops it with a checkpoint before."""
    keep_cluster: int = Field(default=600, ge=0)
    """Seconds for which the pods stay after the job's end, for their logs."""

    def starts_again(self) -> bool:
        return self.retries > 0

    def sees(self, path: str, spec: RunSpec) -> bool:
        return any(Path(path).is_relative_to(claim.partition(":")[2]) for claim in self.volume_claims)

    def where(self) -> str:
        return "--volume_claims CLAIM:/PATH mounts a volume; or give a URI (s3://...) or a hub id"

    def way_of_secrets(self, names: list[str]) -> str:
        literals = " ".join(f"--from-literal={name}=..." for name in names)
        return f"kubectl -n {self.namespace} create secret generic NAME {literals}, and give --secrets NAME"

    def check(self, job: Submission) -> None:
        if job.options.pass_env:
            raise SpecError(
                f"--pass_env {','.join(job.options.pass_env)}: a manifest would hold the values",
                self.way_of_secrets(job.options.pass_env),
            )

    def files(self, job: Submission) -> dict[str, str]:
        return {CONFIG_MAP: as_yaml(self._config_map(job)), MANIFEST: as_yaml(self._ray_job(job))}

    def commands(self, job: Submission) -> list[list[str]]:
        """Kubernetes completes the RayJob's name, so that each submission is a job; `apply` would do nothing where one
        of this name has run."""
        given = (("apply", CONFIG_MAP), ("create", MANIFEST))
        return [["kubectl", verb, "--filename", str(job.directory / name)] for verb, name in given]

    def _config_map(self, job: Submission) -> dict[str, Any]:
        metadata = {"name": _map_name(job), "namespace": self.namespace}
        spec = {SPEC: sparse_yaml(job.spec)}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": spec}

    def _ray_job(self, job: Submission) -> dict[str, Any]:
        labels = {"kueue.x-k8s.io/queue-name": self.queue} if self.queue else {}
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"generateName": f"{job.name}-", "namespace": self.namespace, "labels": labels},
            "spec": {
                "entrypoint": shlex.join(job.command(f"{_SPEC_DIRECTORY}/{SPEC}")),
                "backoffLimit": self.retries,
                "activeDeadlineSeconds": self.time_limit,
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": self.keep_cluster,
                "rayClusterSpec": {
                    "authOptions": {"mode": "token"} if self.token else {},
                    "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": self._pod(job, head=True)},
                    "workerGroupSpecs": [self._worker_group(job)],
                },
            },
        }

    def _worker_group(self, job: Submission) -> dict[str, Any]:
        sizes = {"replicas": job.nodes, "minReplicas": job.nodes, "maxReplicas": job.nodes}
        # Needed by KubeRay's older versions, which know no other names of GPUs than *gpu, either.
        parameters = {"num-cpus": str(self.cpus_per_node), "num-gpus": str(job.gpus_per_node)}
        template = self._pod(job, head=False)
        return {"groupName": "workers", **sizes, "rayStartParams": parameters, "template": template}

    def _pod(self, job: Submission, *, head: bool) -> dict[str, Any]:
        claims = [claim.partition(":") for claim in self.volume_claims]
        gpus = {} if head or not job.gpus else {self.gpu_resource: str(job.gpus_per_node)}
        size = (self.head_cpus, self.head_memory) if head else (self.cpus_per_node, self.memory)
        resources = {"cpu": str(size[0]), "memory": size[1], **gpus}
        container = {
            "name": "ray-head" if head else "ray-worker",
            "image": self.image,
            "resources": {"requests": resources, "limits": resources},
            "envFrom": [{"secretRef": {"name": secret}} for secret in self.secrets],
            "volumeMounts": [
                {"name": "spec", "mountPath": _SPEC_DIRECTORY, "readOnly": True},
                {"name": "shm", "mountPath": "/dev/shm"},
                *({"name": f"volume-{index}", "mountPath": path} for index, (_, _, path) in enumerate(claims)),
            ],
        }
        labels = dict(label.split("=", 1) for label in self.node_selector)
        pod = {
            "serviceAccountName": self.service_account,
            "imagePullSecrets": [{"name": self.image_pull_secret}] if self.image_pull_secret else [],
            "nodeSelector": {} if head else labels,
            "tolerations": [{"key": self.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}] if gpus else [],
            # SIGTERM to a pod asks the run for a checkpoint, which has this long.
            "terminationGracePeriodSeconds": int(job.spec.resilience.grace_time) + 60,
            "containers": [container],
            "volumes": [
                {"name": "spec", "configMap": {"name": _map_name(job)}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": self.shared_memory}},
                *(
                    {"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": claim}}
                    for index, (claim, _, _) in enumerate(claims)
                ),
            ],
        }
        return {"spec": pod}


def _map_name(job: Submission) -> str:
    """A name for each content: a job that waits or starts again reads what it was submitted with."""
    return f"{job.name}-{hashlib.sha256(sparse_yaml(job.spec).encode()).hexdigest()[:8]}"

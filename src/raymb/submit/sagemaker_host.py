"""What a host of a SageMaker training job runs: hyperparameters, channels and hosts become a spec and a Ray cluster.

    python -m raymb.submit.sagemaker_host

The hyperparameters are the spec's sections as JSON (raymb.submit.sagemaker). The first of SM_HOSTS is the head; when
the run has finished, it puts the export into SM_MODEL_DIR, which SageMaker takes to S3.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymb.spec import without_interpolation
from raymb.submit.node import follow, lead

if TYPE_CHECKING:
    from raymb.storage.remote import Remote

_PORT = 6379
_CHANNELS = {
    "dataset": ("train", "training"),  # the second is what the SDK calls a channel that has no name
    "validation_dataset": ("validation",),
    "test_dataset": ("test",),
}
"""A flag of section `data` to the channels that stand for it."""


def hosts_of(environment: Mapping[str, str], ml: Path) -> tuple[str, list[str]]:
    """(this host, all hosts), by SM_CURRENT_HOST and SM_HOSTS, which SageMaker's toolkits set, or by the file that
    every container has."""
    if "SM_HOSTS" in environment and "SM_CURRENT_HOST" in environment:
        return environment["SM_CURRENT_HOST"], sorted(json.loads(environment["SM_HOSTS"]))
    file = ml / "input/config/resourceconfig.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    here = config.get("current_host", "127.0.0.1")
    return here, sorted(config.get("hosts", [here]))


def channels_of(environment: Mapping[str, str], ml: Path) -> dict[str, str]:
    """Channel name to directory."""
    found = {path.name: str(path) for path in sorted((ml / "input/data").glob("*")) if path.is_dir()}
    said = {name.removeprefix("SM_CHANNEL_").lower(): path for name, path in environment.items() if _is_channel(name)}
    return {**found, **said}


def _is_channel(name: str) -> bool:
    return name.startswith("SM_CHANNEL_")


def sections_of(
    hyperparameters: Mapping[str, str], channels: Mapping[str, str], ml: Path, hosts: int
) -> dict[str, Any]:
    """The spec as sections: what the hyperparameters say, and channels and checkpoints where they say nothing."""
    sections = {name: json.loads(text) for name, text in hyperparameters.items() if not name.startswith("sagemaker_")}
    data, run = sections.setdefault("data", {}), sections.setdefault("run", {})
    for flag, names in _CHANNELS.items():
        found = [channels[name] for name in names if name in channels]
        if found and not data.get(flag):
            data[flag] = found if flag == "dataset" else found[0]
    if "model" in channels:
        sections.setdefault("model", {}).setdefault("hf_model_path", channels["model"])
    if hosts == 1:
        run.setdefault("storage_path", str(ml / "checkpoints"))
    run.setdefault("experiment_name", "sagemaker")
    sections.setdefault("cluster", {})["ray_address"] = "auto"
    return sections


def take_export(sections: Mapping[str, Any], to: Path) -> None:
    """Copy what the run has exported to the directory that SageMaker keeps, whose root is the model for what serves it;
    adapters beside a merged model go into a directory of their own."""
    from raymb.run.directory import RunDir
    from raymb.spec import RunSpec
    from raymb.storage.remote import is_uri

    spec = RunSpec.model_validate(sections)
    place = RunDir.of(spec, spec.run.experiment_name or "")
    target = to
    for directory in (place.hf, place.adapter):
        if is_uri(spec.run.storage_path) and place.remote is not None and place.remote.listing(directory.name):
            _download(place.remote, directory.name, target)
        elif directory.is_dir():
            shutil.copytree(directory, target, dirs_exist_ok=True)
        else:
            continue
        target = to / place.adapter.name


def _download(remote: Remote, name: str, to: Path) -> None:
    """Beside, and then file by file: the directory itself may be a mount, which nothing can be put in the place of."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to) as beside:
        remote.download(name, Path(beside, name))
        for path in Path(beside, name).iterdir():
            path.replace(to / path.name)


def main() -> int:
    ml = Path(os.environ.get("RAYMB_SAGEMAKER_DIR", "/opt/ml"))
    here, hosts = hosts_of(os.environ, ml)
    gpus = [f"--num-gpus={os.environ['SM_NUM_GPUS']}"] if "SM_NUM_GPUS" in os.environ else []
    port = int(os.environ.get("RAYMB_SAGEMAKER_PORT", _PORT))
    if here != hosts[0]:
        return follow(hosts[0], port, gpus)
    file = ml / "input/config/hyperparameters.json"
    sections = sections_of(json.loads(file.read_text(encoding="utf-8")), channels_of(os.environ, ml), ml, len(hosts))
    spec_file = Path("/tmp", f"raymb-spec-{os.getpid()}.yaml")
    spec_file.write_text(json.dumps(without_interpolation(sections)), encoding="utf-8")  # JSON is YAML
    code = lead(here, port, gpus, [sys.executable, "-m", "raymb", "finetune", "--config", str(spec_file)])
    if code == 0:
        take_export(sections, Path(os.environ.get("SM_MODEL_DIR", ml / "model")))
    return code


if __name__ == "__main__":
    raise SystemExit(main())

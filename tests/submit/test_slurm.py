"""The batch script: what sbatch reads, what bash makes of it; test_real.py runs it with Slurm."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.submit.conftest import AWAY as MODEL
from tests.submit.conftest import MODEL as HERE

GPUS = ["--backend", "cuda", "--num_workers", "16", "--global_batch_size", "16"]


def options_of(job: Path) -> list[str]:
    lines = (job / "job.sbatch").read_text().splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def step_of(job: Path) -> str:
    """The srun command."""
    text = (job / "job.sbatch").read_text().replace("\\\n", " ")
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith("srun "))


@pytest.fixture(autouse=True)
def good_scripts(home: Path):
    """bash reads every script that a test of this page renders; shellcheck finds nothing, where it is installed."""
    yield
    scripts = [str(file) for name in ("job.sbatch", "node.sh") for file in home.rglob(name)]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    if scripts and shutil.which("shellcheck"):
        # 2317: a trap's function; 2016: the shell that is meant is the inner one
        done = subprocess.run(["shellcheck", "--exclude=2317,2016", *scripts], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_gpus_nodes_and_accounts(rendered: Callable[..., Path], home: Path) -> None:
    job = rendered(
        "slurm", *MODEL, *GPUS, gpu_type="h100", account="nlp", partition="gpu", time_limit="1-00:00:00", memory="900G"
    )
    asked = options_of(job)
    for option in (
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=h100:8",
        "--account=nlp",
        "--partition=gpu",
        "--time=1-00:00:00",
        "--mem=900G",
        "--exclusive",
        "--requeue",
        "--open-mode=append",
        "--signal=B:TERM@180",
        f"--chdir={home}",
    ):
        assert option in asked
    node = (job / "node.sh").read_text()
    assert '--rank "$SLURM_NODEID" --head "$RAYMB_HEAD"' in node and "--num-gpus=8" in node
    assert node.endswith('\n    python -m raymb finetune --config "$RAYMB_JOB"/spec.yaml\n')
    assert f"export RAYMB_JOB={job}\n" in (job / "job.sbatch").read_text()


def test_a_job_that_is_not_requeued(rendered: Callable[..., Path]) -> None:
    job = rendered("slurm", *MODEL, "--no_requeue", "--no_exclusive", "--sbatch_options", "--reservation=r")
    assert {"--no-requeue", "--reservation=r"} <= set(options_of(job)) and "--exclusive" not in options_of(job)
    assert "scontrol requeue" not in (job / "job.sbatch").read_text()


def test_a_container_of_pyxis(rendered: Callable[..., Path], refused: Callable[..., str], home: Path) -> None:
    image = ["--container_image", "registry/raymb:1"]
    assert "--container_mounts DIRECTORY" in refused("slurm", *HERE, *image, "--container_mounts", "/data")
    step = step_of(rendered("slurm", *HERE, *image, container_mounts=[str(home), "/scratch:/data"]))
    mounts = f'"$RAYMB_JOB":"$RAYMB_JOB",{home}:{home},/scratch:/data'
    assert f"--container-image=registry/raymb:1 --container-mounts={mounts} --container-workdir={home}" in step


def test_a_container_of_apptainer(rendered: Callable[..., Path], home: Path) -> None:
    flags = {"container_image": "raymb.sif", "container_runtime": "apptainer", "container_mounts": str(home)}
    step = step_of(rendered("slurm", *HERE, *GPUS, **flags))
    assert ' apptainer exec --nv --bind="$RAYMB_JOB":"$RAYMB_JOB" ' in step and "raymb.sif bash " in step


def test_symmetric_run_and_options_of_srun(rendered: Callable[..., Path], refused: Callable[..., str]) -> None:
    symmetric = ["--launcher", "symmetric-run"]
    job = rendered("slurm", *MODEL, *symmetric, "--srun_options", "--auto-resume=1", "--setup", "module load cuda")
    assert (
        'ray symmetric-run --address "$RAYMB_HEAD" --min-nodes "$SLURM_JOB_NUM_NODES"' in (job / "node.sh").read_text()
    )
    assert " --auto-resume=1 " in step_of(job)
    assert "\nmodule load cuda\n" in (job / "job.sbatch").read_text()
    assert "--launcher head-workers" in refused("slurm", *MODEL, *symmetric, "--no_exclusive")


def test_the_last_checkpoint_has_its_time(refused: Callable[..., str]) -> None:
    assert "--stop_before 420" in refused("slurm", *MODEL, "--grace_time", "300")

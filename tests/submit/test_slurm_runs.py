"""Slurm's scripts as bash runs them: in directories with a space, with a copy of the code, and from a laptop by ssh.
Slurm, ssh and rsync are programs of tests/submit/programs.py, but where a test says that it takes rsync itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from raymb.cli import main
from raymb.spec import load_spec
from tests.conftest import write_shape_only_model
from tests.models import write_rows
from tests.smoke.conftest import words_of
from tests.submit import programs
from tests.submit.conftest import AWAY, MODEL
from tests.submit.programs import HOST

CPU = {"backend": "cpu", "num_workers": 2, "gpus_per_node": 1}
THERE = {"ssh_host": HOST, "storage_path": "/scratch/runs"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs on PATH; their notes are in place/called."""
    found = programs.install(
        tmp_path / "cluster",
        ssh=programs.SSH,
        rsync=programs.RSYNC,
        sbatch=programs.SBATCH,
        srun=programs.SRUN,
        scontrol=programs.SCONTROL,
        python=programs.PYTHON,
    )
    monkeypatch.setenv("PATH", f"{found}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "cluster"


def submit(*words: str, code: int = 0, **flags: object) -> Path:
    given = ["slurm", *words, *words_of({**CPU, "job_name": "job", **flags})]
    assert main(["submit", *given]) == code
    return Path("raymb-jobs/job").absolute()


def run(script: Path, cwd: Path, **more: str) -> int:
    """As Slurm runs it, whose first line it is: a copy, elsewhere."""
    copy = cwd / "slurm_script"
    shutil.copy(script, copy)
    settings = {"SLURM_JOB_ID": f"77{os.getpid()}", "SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_NUM_NODES": "2", **more}
    return subprocess.run(["bash", str(copy)], cwd=cwd, env={**os.environ, **settings}, timeout=60).returncode


def ray_directories() -> list[Path]:
    return list(Path("/tmp").glob(f"ray-77{os.getpid()}-*"))


def test_directories_with_a_space(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "it's 50%j #1"
    write_shape_only_model(home / "model")
    write_rows(home / "rows")
    monkeypatch.chdir(home)
    job = submit(*MODEL)
    assert (place / "called/sbatch").read_text().splitlines() == [str(home), str(job / "job.sbatch")]
    lines = (job / "job.sbatch").read_text().splitlines()
    chdir, output = (
        next(line for line in lines if line.startswith(f"#SBATCH --{name}=")) for name in ("chdir", "output")
    )
    # What sbatch makes of quotes is what a shell makes of them (tried with Slurm 22.05).
    read = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {chdir[8:]} {output[8:]}"], text=True).splitlines()
    assert read == [f"--chdir={home}", f"--output={tmp_path}/it's 50%%j #1/raymb-jobs/job/%j.log"]
    assert run(job / "job.sbatch", home) == 0
    called = (place / "called/python").read_text()
    assert [line for line in called.splitlines() if line.startswith("node")] == [
        f"node {node} in {home}, 700, {os.environ.get('PYTHONPATH', '')}" for node in (0, 1)
    ]
    assert called.count(f"  --config\n  {job}/spec.yaml\n") == 2


def test_the_directory_of_ray_is_private_and_goes_with_the_job(rendered: Callable[..., Path], place: Path) -> None:
    job = rendered("slurm", *AWAY, **CPU)
    left = Path(f"/tmp/ray-77{os.getpid()}-0")  # of a start that was killed: open, and with files
    left.mkdir(mode=0o755)
    (left / "old").touch()
    (place / "called/code").write_text("75")
    assert run(job / "job.sbatch", job) == 75
    assert (place / "called/python").read_text().count(", 700, ") == 2
    assert ray_directories() == []
    assert (place / "called/scontrol").read_text() == f"requeue 77{os.getpid()}\n"


def test_the_code_is_copied_and_data_stay(home: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is changed while the job waits is not in it; a link to a directory is not copied where files are shared."""
    (home / "mine.py").write_text("x = 1\n")
    (home / "raymb-runs").mkdir()
    (home / "raymb-runs" / "run.txt").touch()
    (home / "large").symlink_to(home / "rows")
    job = submit(*MODEL, working_dir=".")
    (home / "mine.py").write_text("x = 2\n")
    assert (job / "code" / "mine.py").read_text() == "x = 1\n"
    assert (job / "code" / "large").is_symlink() and not (job / "code" / "raymb-runs").exists()
    spec = load_spec({}, [job / "spec.yaml"])
    assert spec.run.storage_path == str(home / "raymb-runs") and spec.data.dataset == [str(home / "rows")]
    assert spec.model.hf_model_path == str(home / "model") and spec.cluster.working_dir is None
    assert run(job / "job.sbatch", home) == 0
    assert f"node 0 in {job}/code, 700, {job}/src" in (place / "called/python").read_text()
    version = [shutil.which("python3"), "-c", "import raymb; print(raymb.__file__)"]
    known = subprocess.check_output(version, env={**os.environ, "PYTHONPATH": str(job / "src")}, text=True, cwd=home)
    assert known == f"{job}/src/raymb/__init__.py\n"
    capsys.readouterr()
    submit(*MODEL, working_dir=".", code=2)
    assert "code/mine.py is there with another content" in capsys.readouterr().err
    (home / "mine.py").unlink()
    submit("--replace", *MODEL, working_dir=".")
    assert not (job / "code" / "mine.py").exists()


def test_git_says_what_is_copied(home: Path, place: Path) -> None:
    subprocess.run(["git", "init", "-q", str(home)], check=True)
    (home / ".gitignore").write_text("rows/\n*.bin\n")
    for name in ("mine.py", "large.bin"):
        (home / name).touch()
    job = submit(*MODEL, working_dir=".")
    copied = {path.name for path in (job / "code").iterdir()}
    assert {"mine.py", ".gitignore", "model"} <= copied and not copied & {"large.bin", "rows", ".git", "raymb-jobs"}


@pytest.mark.parametrize("rsync", ["stand-in", "itself"])
def test_a_job_from_a_laptop(
    rsync: str, home: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if rsync == "itself":
        (place / "programs/rsync").unlink()
        if shutil.which("rsync") is None:
            pytest.skip("needs rsync: apt-get install rsync")
    monkeypatch.setenv("HF_TOKEN", "it's hidden $HOME")
    (home / "data").symlink_to(home / "rows")
    submit("--hf_model_path", "model", "--dataset", "data", working_dir=".", pass_env="HF_TOKEN", **THERE)
    (job,) = (place / "there/raymb-jobs").iterdir()
    assert (place / "called/sbatch").read_text().splitlines() == [str(job), "job.sbatch"]
    assert "HF_TOKEN=it's hidden $HOME\n" in (place / "called/environment").read_text()
    assert f"its output: {HOST}:raymb-jobs/{job.name}/JOBID.log" in capfd.readouterr().out
    told = [
        place / "called/ssh",
        *(path for path in job.rglob("*") if path.is_file()),
    ]
    assert not [path for path in told if "it's hidden" in path.read_text(errors="replace")]
    script = (job / "job.sbatch").read_text()
    assert str(home) not in script and "#SBATCH --output=%j.log" in script and "--chdir" not in script
    assert sorted(path.name for path in (job / "code/data").iterdir()) == sorted(os.listdir(home / "rows"))
    assert run(job / "job.sbatch", job, SLURM_SUBMIT_DIR=str(job)) == 0
    called = (place / "called/python").read_text()
    assert f"node 1 in {job}/code, 700, {job}/src" in called and f"  --config\n  {job}/spec.yaml\n" in called
    assert {path.name for path in job.iterdir()} >= {"spec.yaml", "job.sbatch"} and not (job / "code").exists()
    assert not (job / "src").exists()


def test_the_commands_that_are_shown_do_it(
    home: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hidden")
    submit(*AWAY, "--dry_run", pass_env="HF_TOKEN", **THERE)
    shown = capsys.readouterr().out.partition("submit it with\n")[2]
    assert "hidden" not in shown and not (place / "called/sbatch").exists()
    subprocess.run(["bash", "-c", shown], check=True)
    assert "HF_TOKEN=hidden\n" in (place / "called/environment").read_text()


def test_what_ssh_cannot_do_is_said(refused: Callable[..., str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["slurm", *words_of(CPU)]
    said = refused(*words, *MODEL, "--ssh_host", HOST)
    assert "--dataset rows: this path is not one that the job sees" in said
    assert "--storage_path raymb-runs: what the job writes there would be lost" in said
    assert "absolute paths are those of --ssh_host" in said
    away = [*words, *AWAY, "--storage_path", "/scratch/runs"]
    assert "--ssh_host -oProxyCommand=x: must be HOST" in refused(*away, "--ssh_host=-oProxyCommand=x")
    assert "--ssh_directory a b: must be letters" in refused(*away, "--ssh_host", HOST, "--ssh_directory", "a b")
    assert "rsync to nobody ended with exit code" in refused(*away, "--ssh_host", "nobody")
    (place / "programs/rsync").unlink()
    monkeypatch.setenv("PATH", str(place / "programs"))
    assert "there is no rsync on PATH" in refused(*away, "--ssh_host", HOST)

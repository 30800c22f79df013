"""Jobs that really run, on this machine: a Ray cluster with a token and its job server, Slurm with two nodes, and two
hosts of SageMaker as processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raymb.doctor.ranks import free_port
from tests.fault_table import Row
from tests.models import write_rows
from tests.smoke.conftest import read_metrics, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(600)]
SOURCE = str(Path(__file__).parents[2] / "src")
TRAINING = {
    "dataset": "rows",
    "num_workers": 2,
    "gpus_per_node": 1,
    "seq_length": 64,
    "train_iters": 4,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
    "eval_interval": 0,
    "save_interval": 0,
    "backend": "cpu",
    "experiment_name": "run",
}


@pytest.fixture
def home(tmp_path: Path, tiny_qwen2: Path) -> Path:
    write_rows(tmp_path / "rows")
    (tmp_path / "model").symlink_to(tiny_qwen2)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": SOURCE, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **more}


def submit(home: Path, *words: str, code: int = 0, settings: dict[str, str], **flags: object) -> str:
    given = {**TRAINING, "hf_model_path": home / "model", "storage_path": home / "runs", **flags}
    done = subprocess.run(
        [sys.executable, "-m", "raymb", "submit", *words, *words_of(given)],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=home,
        env=settings,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """A head with a job server; yields the environment of clients on its machine, and the server's address."""
    port, server = free_port(), free_port()
    place = tempfile.mkdtemp(prefix="rs-", dir="/tmp")  # short: it holds sockets
    settings = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 32, RAY_TMPDIR=place)
    words = ["start", "--head", "--block", "--port", str(port), "--dashboard-port", str(server), "--num-cpus", "2"]
    # Other clusters of this machine have the ports that Ray would take.
    words += ["--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port", str(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words, "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=settings,
    )
    from raymb.submit.node import _answers

    assert _answers("127.0.0.1", server, 90, process)
    while not Path(place, "ray", "ray_current_cluster").exists():  # Ray notes the address last
        assert process.poll() is None
        time.sleep(0.2)
    yield settings, f"http://127.0.0.1:{server}"
    process.terminate()
    process.wait(timeout=60)
    shutil.rmtree(place, ignore_errors=True)


def test_a_job_of_a_ray_cluster(head: tuple[dict[str, str], str], home: Path) -> None:
    """No job server is named: it is that of the cluster that runs on this machine."""
    upload, (settings, server) = ["ray", "--working_dir", ".", "--follow"], head
    said = submit(home, *upload, settings=settings)
    assert "SUCCEEDED" in said and "training with 2 workers" in said
    assert [record["step"] for record in read_metrics(home / "runs" / "run")] == [1, 2, 3, 4]
    wrong = {**settings, "RAY_AUTH_TOKEN": "b" * 32, "RAY_API_SERVER_ADDRESS": server}
    said = submit(home, *upload, code=2, settings=wrong)
    assert "Invalid authentication token" in said and "Traceback" not in said


class Line:
    """A connection to a server that can be cut, and be down."""

    def __init__(self, to: int):
        self.to, self.sockets, self.down = to, [], False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            if self.down:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            self.sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.sockets.clear()


_FOLLOW = """
import shlex, sys
from ray.job_submission import JobSubmissionClient
from raymb.submit.job_output import JobOutput

code = "import time; [(print('line', n, flush=True), time.sleep(0.5)) for n in range(30)]; raise SystemExit(7)"
client = JobSubmissionClient(sys.argv[1])
identity = client.submit_job(entrypoint=shlex.join([sys.executable, "-c", code]))
print(identity, file=sys.stderr, flush=True)
raise SystemExit(JobOutput(client, identity).follow())
"""


def test_following_a_job_outlives_the_line(head: tuple[dict[str, str], str], fault_table: list[Row]) -> None:
    settings, server = head
    line = Line(int(server.rpartition(":")[2]))
    process = subprocess.Popen(
        [sys.executable, "-c", _FOLLOW, line.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=settings,
    )
    assert process.stderr
    identity = process.stderr.readline().strip()
    for seconds, down in ((4, False), (4, True), (5, False)):
        time.sleep(seconds)
        line.down = down
        line.cut()
    said, notes = process.communicate(timeout=120)
    assert process.returncode == 7, notes
    assert re.findall(r"^line (\d+)$", said, re.MULTILINE) == [str(number) for number in range(30)]
    assert notes.count("connecting again") >= 2 and said.endswith(f"{identity}: FAILED\n")
    fault_table.append(Row("submit ray --follow: the line is cut three times", "every line once, the job's exit code"))


def test_a_head_beside_another_one(tmp_path: Path, fault_table: list[Row]) -> None:
    """Another job on a node that is shared, or SkyPilot's Ray, has the port of Ray's clients already."""
    joined = "import ray, time; time.sleep(20); ray.init(); print(ray.cluster_resources()['CPU'])"
    place = tempfile.mkdtemp(prefix="rs-", dir="/tmp")
    words = [
        "--rank",
        "0",
        "--head",
        f"127.0.0.1:{free_port()}",
        "--ray=--num-cpus=3",
        "--ray=--include-dashboard=false",
    ]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # taken: the better
            stack.enter_context(socket.create_server(("0.0.0.0", 10001)))
        done = subprocess.run(
            [sys.executable, "-m", "raymb.submit.node", *words, "--", sys.executable, "-c", joined],
            capture_output=True,
            text=True,
            timeout=200,
            env=environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 32, RAY_TMPDIR=place),
        )
    shutil.rmtree(place, ignore_errors=True)
    assert (done.returncode, done.stdout.strip()) == (0, "3.0"), done.stderr[-3000:]
    fault_table.append(Row("a job's head on a node where Ray's port is taken", "takes another one, runs"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have an /etc/hosts of its own")
def test_a_head_whose_name_is_not_known_yet(tmp_path: Path, fault_table: list[Row]) -> None:
    """DNS of Kubernetes, and of a cloud, learns a pod's name some seconds after the pod begins."""
    joined = "import ray; ray.init(); print(ray.cluster_resources()['CPU'])"
    place, names = tempfile.mkdtemp(prefix="rs-", dir="/tmp"), tmp_path / "hosts"
    names.write_text(Path("/etc/hosts").read_text())
    head = f"head-{os.getpid()}.raymb"
    words = ["-m", "raymb.submit.node", "--rank", "0", "--head", f"{head}:{free_port()}"]
    words += ["--ray=--num-cpus=3", "--ray=--include-dashboard=false", "--", sys.executable, "-c", joined]
    own = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(names), sys.executable]
    process = subprocess.Popen(
        [*own, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 32, RAY_TMPDIR=place),
    )
    time.sleep(6)
    assert process.poll() is None
    with open(names, "a") as file:
        file.write(f"127.0.0.1 {head}\n")
    said, error = process.communicate(timeout=200)
    shutil.rmtree(place, ignore_errors=True)
    assert (process.returncode, said.strip()) == (0, "3.0"), error[-3000:]
    fault_table.append(Row("a job's head whose name DNS learns after 6 s", "waits, runs"))


def test_two_hosts_of_sagemaker(home: Path) -> None:
    flags = {"image": "a", "role": "arn:aws:iam::123456789012:role/train", "instance_type": "ml.c5.large"}
    flags |= {"hf_model_path": "/opt/ml/input/data/model", "dataset": None, "storage_path": "s3://bucket/runs"}
    flags |= {"output_s3": "s3://bucket/models", "channels": ["model=s3://bucket/m", "train=s3://bucket/rows"]}
    submit(home, "sagemaker", "--dry_run", "--output", "job", settings=environment(), **flags)
    sections = json.loads((home / "job" / "training-job.json").read_text())["HyperParameters"]
    # On this machine nothing is at /opt/ml, and there is no S3.
    sections["model"] = json.dumps({**json.loads(sections["model"]), "hf_model_path": str(home / "model")})
    sections["run"] = json.dumps({**json.loads(sections["run"]), "storage_path": str(home / "runs")})
    ml = home / "ml"
    (ml / "input/config").mkdir(parents=True)
    (ml / "input/config/hyperparameters.json").write_text(json.dumps(sections))
    port = str(free_port())
    hosts = ["127.0.0.1", "localhost"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "raymb.submit.sagemaker_host"],
            cwd=home,
            env=environment(
                SM_HOSTS=json.dumps(hosts),
                SM_CURRENT_HOST=host,
                SM_CHANNEL_TRAIN=str(home / "rows"),
                SM_MODEL_DIR=str(home / "exported"),
                RAYMB_SAGEMAKER_DIR=str(ml),
                RAYMB_SAGEMAKER_PORT=port,
            ),
        )
        for host in hosts
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.terminate()
    assert [record["step"] for record in read_metrics(home / "runs" / "run")] == [1, 2, 3, 4]
    assert (home / "exported" / "config.json").is_file()


SLURM = """
ClusterName=raymb
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=1 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES State=UP
"""
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two nodes of Slurm on this machine; yields the clients' environment."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    home = Path(f"/tmp/raymb-slurm-{os.getpid()}")  # the path of a socket is short
    home.mkdir(mode=0o755)
    (home / "state").mkdir()
    ports = dict(zip(("port", "port1", "port2"), (free_port() for _ in range(3)), strict=True))
    host = subprocess.check_output(["hostname", "-s"], text=True).strip()
    (home / "slurm.conf").write_text(SLURM.format(home=home, host=host, **ports))
    (home / "munge.key").write_bytes(os.urandom(1024))
    (home / "munge.key").chmod(0o600)
    settings = environment(SLURM_CONF=str(home / "slurm.conf"))
    settings["PATH"] += ":/usr/sbin"
    munge = ["munged", "--foreground", "--force", *(f"--{name}={home}/munge.{end}" for name, end in MUNGE.items())]
    commands = [munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    processes = []
    for command in commands:
        processes.append(subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(2)
    yield settings
    for process in reversed(processes):
        process.terminate()
        process.wait(timeout=30)
    shutil.rmtree(home)


MUNGE = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def test_a_job_of_slurm_stops_and_resumes(slurm: dict[str, str], home: Path, fault_table: list[Row]) -> None:
    """SIGTERM, as before the time limit: a checkpoint, the queue again, and every step once. In a directory with a
    space, and from a copy of the code."""
    home = home.rename(home.with_name("with a space"))
    words = ["slurm", "--no_exclusive", "--output", "job", "--no_export_hf", "--working_dir", "."]
    flags = {"cpus_per_node": 1, "time_limit": 10, "train_iters": 120}
    said = submit(home, *words, settings=slurm, **flags)
    job = re.findall(r"Submitted batch job (\d+)", said)[0]

    def slurm_says(*command: str) -> str:
        return subprocess.run(command, env=slurm, capture_output=True, text=True, check=True).stdout

    def wait(what: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, (home / "job" / f"{job}.log").read_text()
            time.sleep(0.5)

    metrics = home / "runs" / "run" / "metrics.jsonl"
    wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3, 200)
    slurm_says("scancel", "--signal=TERM", "--batch", job)
    wait(lambda: "Restarts=1" in slurm_says("scontrol", "show", "job", job), 60)
    slurm_says("scontrol", "update", f"jobid={job}", "StartTime=now")  # else a minute or two later
    wait(lambda: "JobState=COMPLETED" in slurm_says("scontrol", "show", "job", job), 200)
    assert "training from step" in (home / "job" / f"{job}.log").read_text()
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))
    assert [record["step"] for record in read_metrics(home / "runs" / "run")] == list(range(1, 121))
    fault_table.append(
        Row("SIGTERM to a Slurm job before its time limit", "checkpoint, queued again, every step once", lost="0")
    )

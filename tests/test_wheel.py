"""raymb as others get it: the wheel, in an environment of its own, with the two lines of docs/install.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

from tests.smoke.conftest import read_metrics

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "install.md"
LINKED = {"raymb/doctor/tested": "requirements/*.txt", "raymb/spec/shipped": "configs/*.yaml"}
"""Directory of the wheel to the files of the source tree that are in it."""
UNREACHABLE = re.compile("Could not connect|error sending request|dns error|Failed to fetch", re.I)
CERTIFICATES = {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"} if Path("/etc/ssl/certs").is_dir() else {}
"""As scripts/setup has uv take them: a proxy's are in the system's store. The second: older uv."""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "requirements", "configs"):
        left_out = shutil.ignore_patterns("*.egg-info", "__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=left_out)
    make = [sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('.')"]
    done = subprocess.run(make, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(source.glob("*.whl"))


def test_a_wheel_has_every_file_of_the_source(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        for directory, pattern in LINKED.items():
            files = list(ROOT.glob(pattern))
            assert files
            for file in files:
                assert content.read(f"{directory}/{file.name}") == file.read_bytes()
    own = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    own = [path for path in own if not any(part.endswith(".egg-info") for part in path.parts)]
    assert [path for path in own if path.relative_to(ROOT / "src").as_posix() not in names] == []


def test_its_metadata_names_the_megatron_that_works(wheel: Path) -> None:
    """A resolver that may take another one walks back to megatron-core 0.13.1, which Bridge 0.6.2 does not import."""
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith("/METADATA") and name.startswith("raymb-"))
        metadata = Parser().parsestr(content.read(name).decode())
    required = metadata.get_all("Requires-Dist", [])
    assert {"megatron-core==0.19.2", "megatron-bridge==0.6.2"} <= set(required)


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    return found or pytest.skip("there is no uv")


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "[cuda]"])
def test_a_resolver_finds_no_broken_set(wheel: Path, extra: str, tmp_path: Path) -> None:
    """What Bridge asks for cannot be had together, and raymb's own pins leave no older Megatron to walk back to."""
    (tmp_path / "in.txt").write_text(f"raymb{extra} @ {wheel.as_uri()}\n")
    command = [uv(), "pip", "compile", "--no-config", "--python", sys.executable, "in.txt", "-o", "out.txt"]
    environment = CERTIFICATES | os.environ
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    if "No solution found" not in done.stderr and UNREACHABLE.search(done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 1 and "No solution found" in done.stderr, done.stderr


def documented() -> list[str]:
    """The first two commands of the page."""
    lines = [line.strip() for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    pip ")]
    assert len(lines) >= 2
    return lines[:2]


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command of an environment that has the wheel and what its own list pins, in an empty directory. Where no
    index is reached, what is pinned comes from this environment."""
    home = tmp_path_factory.mktemp("elsewhere")
    python = home / "env/bin/python"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, str(home / "env")], check=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {**CERTIFICATES, **kept, "PATH": f"{python.parent}:{os.environ['PATH']}"}

    def run(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        place = Path(home, "empty")
        place.mkdir(exist_ok=True)
        return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=timeout)

    # pip compiles to bytecode by itself, and Ray's first start waits 30 s for processes that import much.
    installer = f"{shlex.quote(uv())} pip install --quiet --compile-bytecode --python {shlex.quote(str(python))}"
    for line in documented():
        command = line.replace("pip install", installer).replace("raymb-0.1.0-py3-none-any.whl", str(wheel))
        done = run("bash", "-c", command, timeout=800)
        if done.returncode and UNREACHABLE.search(done.stderr):
            ours = Path(pytest.__file__).parents[1]
            site = next((home / "env/lib").glob("python3*/site-packages"))
            (site / "pinned.pth").write_text(f"{ours}\n")
            print(f"no package index can be reached: {line} takes {ours}")
        else:
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    return run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_plans_elsewhere(elsewhere: Run) -> None:
    where = elsewhere("python", "-c", "import raymb; print(raymb.__file__)").stdout
    assert "/env/" in where and str(ROOT) not in where
    done = elsewhere("raymb", "plan", "--hf_model_path", "sample", "--num_workers", "2")
    assert done.returncode == 0 and re.search(r"^workers +2 = 1 x 1 x 1 x 2 ", done.stdout, re.M), done
    found = json.loads(elsewhere("raymb", "doctor", "--json").stdout)
    said = next(one["said"] for one in found["findings"] if one["name"] == "packages" and one["status"] == "ok")
    assert re.match(r"(\d+) of \1 as tested", said)


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_runs_elsewhere(elsewhere: Run) -> None:
    done = elsewhere("raymb", "finetune", "--config", "quickstart-cpu", timeout=1500)
    assert done.returncode == 0, done.stderr
    run = Path(elsewhere("pwd").stdout.strip(), "raymb-runs", "quickstart-cpu")
    losses = {record["step"]: record["loss"] for record in read_metrics(run, "validation")}
    assert max(losses) == 24 and losses[24] < 0.75 * losses[0]
    assert (run / "hf" / "model.safetensors").exists()

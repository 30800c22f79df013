"""Model directories as transformers 4 and 5 read them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

REQUIREMENTS = Path(__file__).parents[1] / "requirements" / "transformers4.txt"
READER = Path(__file__).with_name("read_model.py")


@pytest.fixture(scope="session")
def transformers_4() -> Path:
    """A directory with transformers 4, to be put on PYTHONPATH; installed once, below the temporary directory."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = Path(tempfile.gettempdir()) / f"raymb-transformers-4-{os.getuid()}-{digest}"
    if not place.is_dir():
        part = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
        try:
            _install(part)
            part.replace(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return place


def _install(into: Path) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    program = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    words = [*program, "--no-deps", "--target", str(into), "--requirement", str(REQUIREMENTS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"transformers 4 cannot be installed: {' '.join(words)}\n{done.stderr[-2000:]}")


def read(directories: list[Path], out: Path, version: Path | None = None, **settings: Any) -> dict[str, dict[str, Any]]:
    """What transformers makes of model directories (read_model.py), by directory name.

    Args:
        out: a directory that exists, for logits.
        version: a directory with another transformers than the environment's.
    """
    env = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"PYTHONPATH": str(version)} if version else {})
    words = [sys.executable, str(READER), json.dumps(settings), str(out), *map(str, directories)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {answer.pop("name"): answer for answer in map(json.loads, done.stdout.splitlines())}


def differences(four: dict[str, Any], five: dict[str, Any]) -> dict[str, Any]:
    """What differs between two readings of a directory: name to (transformers 4's, transformers 5's)."""
    import torch

    found = {name: (four[name], five[name]) for name in four if name not in ("config", "logits", "version")}
    found = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
    found |= _config_differences(four["config"], five["config"])
    if four.get("logits"):
        one, other = (torch.load(place["logits"]) for place in (four, five))
        distance = float((one - other).abs().max())
        if not distance <= 1e-4 * float(other.abs().max()):
            found["logits"] = distance
    return found


def _config_differences(four: dict[str, Any], five: dict[str, Any]) -> dict[str, Any]:
    """Of the entries that both have."""
    found: dict[str, Any] = {}
    for name in (four.keys() & five.keys()) - {"transformers_version", "model_type", "_name_or_path"}:
        one, other = four[name], five[name]
        if name.endswith("_config") and isinstance(one, dict) and isinstance(other, dict):
            found |= {f"{name}.{inner}": pair for inner, pair in _config_differences(one, other).items()}
        elif one != other:
            found[name] = (one, other)
    return found

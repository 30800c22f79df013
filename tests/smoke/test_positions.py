"""Sliding windows and rotary scaling against transformers, in sequences longer than the window and than the length that
the model was made for. One process computes all; the tests ask it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raymb.model.shape import read_model_shape
from raymb.spec import load_spec
from tests.conftest import resolved_job
from tests.families import make_model
from tests.positions import LENGTH, computed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    home, cases = tmp_path_factory.mktemp("positions"), computed()
    for number, (family, settings) in enumerate(cases.values()):
        place = home / str(number)
        model = make_model(family, place / "model", **settings)
        spec = load_spec({"hf_model_path": str(model), "seq_length": str(LENGTH), "backend": "cpu"})
        job = resolved_job(spec, read_model_shape(str(model)), place, "cpu", str(model))
        (place / "job.json").write_text(job.to_json())
    jobs = [home / str(number) / "job.json" for number in range(len(cases))]
    script = Path(__file__).with_name("check_conversion.py")
    done = subprocess.run([sys.executable, script, *jobs], capture_output=True, text=True)
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(cases), done.stderr[-3000:]
    return {name: json.loads(line) for name, line in zip(cases, lines, strict=True)}


@pytest.mark.parametrize("name", computed())
def test_logits_are_those_of_transformers(name: str, results: dict[str, dict[str, Any]]) -> None:
    assert "error" not in results[name], results[name]
    print(f"\n{name}: {results[name]['logits']:.1e}")
    assert results[name]["logits"] <= 1e-4
    assert (results[name]["changed"], results[name]["missing"]) == ([], [])

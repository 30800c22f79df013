"""The command: what it prints, how it exits, and that nothing hangs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymb.cli import main
from raymb.doctor import examination
from raymb.doctor.finding import Finding

AREAS = ["environment", "gpus", "storage", "hub"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_json_is_one_object(shape_only_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "--json", "--hf_model_path", str(shape_only_model_dir), "--storage_path", str(tmp_path)]
    code = main(words)
    told = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(finding["area"] for finding in told["findings"])) == AREAS
    assert (told["errors"] > 0) == (code == 1)
    for finding in told["findings"]:
        assert finding["status"] in ("ok", "warning", "error") and finding["said"]
        assert finding["fix"] or finding["status"] == "ok"
    assert told["errors"] == sum(finding["status"] == "error" for finding in told["findings"])


def test_an_error_exits_with_1_and_has_its_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--hf_model_path", str(tmp_path), "--storage_path", "/proc/nowhere"]) == 1
    text = capsys.readouterr().out
    assert "error    storage_path: /proc cannot be written" in text and "fix: name another directory" in text
    assert text.rstrip().endswith("a run would fail here")
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_no_framework_is_imported(shape_only_model_dir: Path) -> None:
    """So that it can tell of a broken one."""
    import subprocess
    import sys

    code = (
        f"import sys; from raymb.cli import main; main(['doctor', '--hf_model_path', {str(shape_only_model_dir)!r}]); "
        "print([name for name in ('ray', 'torch', 'transformers', 'megatron') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_a_check_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs() -> Iterator[Finding]:
        yield Finding("storage", "first", "ok", "said")
        time.sleep(60)

    begin = time.monotonic()
    found = list(examination._within(0.2, "storage", hangs))
    assert time.monotonic() - begin < 5
    assert [(finding.name, finding.status) for finding in found] == [("first", "ok"), ("time", "error")]


def test_a_check_that_fails_says_so() -> None:
    def fails() -> Iterator[Finding]:
        raise OSError("stale file handle")
        yield

    (found,) = examination._within(5.0, "storage", fails)
    assert found.status == "error" and "stale file handle" in found.said


def test_all_reduce_between_two_cpu_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from raymb.doctor.allreduce import check_allreduce

    (found,) = check_allreduce(None, [], 60.0, lambda what: None)
    assert found.status == "ok" and "GB/s bus bandwidth, gloo, 2 ranks on 1 node (16 MiB" in found.said


def test_all_reduce_that_nobody_answers_is_given_up() -> None:
    from raymb.doctor.allreduce import check_allreduce

    begin = time.monotonic()
    (found,) = check_allreduce(None, [], 0.1, lambda what: None)
    assert found.status == "error" and "no answer within 0.1 s" in found.said and time.monotonic() - begin < 10

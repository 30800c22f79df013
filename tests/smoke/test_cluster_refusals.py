"""What the cluster lacks is said before a run directory is made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault_table import Row

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(200)]


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ({"num_workers": 4, "cpus_per_worker": 8}, "32 CPUs asked (8 for each worker), 16 there"),
        ({"num_workers": 2, "backend": "cuda"}, "2 GPUs asked (1 for each worker), 0 there"),
    ],
    ids=["cpus", "gpus"],
)
def test_too_few_resources(
    flags: dict[str, object],
    asked: str,
    finetune: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    finetune(**flags, wait_for_resources=1, code=2)
    error = capfd.readouterr().err
    assert asked in error and "--num_workers" in error and "--wait_for_resources" in error
    assert [place.name for place in tmp_path.iterdir()] == ["_prepared"]
    fault_table.append(Row(f"too few on the cluster: {asked}", "exit 2, names the flags"))


def test_no_cluster_at_the_address(shape_only_model_dir: Path, tmp_path: Path, fault_table: list[Row]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    words = ["--hf_model_path", shape_only_model_dir, "--dataset", tmp_path / "rows.jsonl", "--seq_length", "64"]
    words += ["--storage_path", tmp_path / "runs", "--ray_address", "127.0.0.1:1"]
    done = subprocess.run([sys.executable, "-m", "raymb", "finetune", *words], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr and "--ray_address" in done.stderr
    assert "Traceback" not in done.stderr and [place.name for place in (tmp_path / "runs").iterdir()] == ["_prepared"]
    fault_table.append(Row("no cluster at --ray_address", "exit 2, names it"))


def test_a_node_that_does_not_see_the_storage(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/self/cwd is another directory for each process whose working directory is another."""
    from raymb.driver.nodes import check_nodes
    from raymb.errors import ClusterError

    check_nodes(tmp_path, "cpu")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClusterError, match=r"is not one place for all nodes; not seen by\n  \S+ \(") as caught:
        check_nodes(Path("/proc/self/cwd"), "cpu")
    assert "No such file or directory" in caught.value.message and "--storage_path" in caught.value.hint
    assert not list(tmp_path.iterdir())

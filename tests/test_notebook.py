"""docs/notebook.ipynb: its cells run in their order, and what is stored below them is what they say. It is made anew by
`jupyter nbconvert --execute --inplace docs/notebook.ipynb` (of nbconvert and ipykernel, which raymb does not need)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raymb
from tests.outputs import form

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="ascii"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def stored(call: str, kind: str) -> tuple[str, str]:
    """(source, output) of the cell that makes a call.

    Args:
        kind: of the output: text, or a MIME type.
    """
    (cell,) = [cell for cell in CODE if call in source_of(cell)]
    (output,) = cell["outputs"]
    return source_of(cell), "".join(output["text"] if kind == "text" else output["data"][kind])


def test_it_has_been_run_from_top_to_bottom_and_is_small() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds == {"stream", "display_data", "execute_result"}  # and no error
    assert (ROOT / "docs" / "notebook.ipynb").stat().st_size < 100_000


def test_the_plan_is_todays() -> None:
    source, output = stored("num_workers=8, gpu=", "text/html")
    assert form(eval(source, {"raymb": raymb})._repr_html_()) == form(output)


def test_the_mistake_is_todays(capsys: pytest.CaptureFixture[str]) -> None:
    source, output = stored("num_worker=8", "text")
    exec(source, {"raymb": raymb})
    assert capsys.readouterr().out == output


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.timeout(1500)
def test_the_cells_run_in_one_process(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(source_of(cell) for cell in CODE), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1400
    )
    assert done.returncode == 0, done.stderr[-4000:]
    run = raymb.Run(tmp_path / "raymb-runs" / "notebook")
    losses = run.metrics.query("kind == 'train'")["loss"]
    assert (run.state, len(losses), Path(str(run.exported)).name) == ("finished", 8, "adapter")
    (cell,) = [cell for cell in CODE if "raymb.finetune(" in source_of(cell)]
    assert losses.iloc[-1] < losses.iloc[0] and cell["outputs"]
    answer = stored("run.generate(", "text")[1]
    assert done.stdout.splitlines()[-1].split() and answer.strip()

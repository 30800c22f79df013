"""The line of a run in a notebook's cell. IPython is not installed here: what is asked of it is recorded."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from raymb.telemetry.notebook import console_for_people, in_notebook
from raymb.telemetry.records import Step
from raymb.telemetry.terminal import Terminal


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the one display of a cell has had, in a process that looks like a notebook's kernel."""
    texts: list[str] = []
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    display.HTML = str  # type: ignore[attr-defined]

    def show(text: str, display_id: bool) -> Any:
        assert display_id and not texts, "one line, in its place"
        texts.append(text)
        return SimpleNamespace(update=texts.append)

    display.display = show  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return texts


def _step(number: int) -> Step:
    values = {"loss": 1.5, "grad_norm": None, "step_seconds": 60.0, "tokens_per_second": 1000.0}
    return {"kind": "train", "step": number, **values}  # type: ignore[typeddict-item]


def test_a_notebook_has_one_line_and_plain_phases(shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert in_notebook()
    terminal = Terminal(console_for_people(), 200)
    terminal.start(0, workers=2)
    for number in range(1, 201):
        terminal.step(_step(number))
    terminal.start(0, workers=2)  # after a failure: the same line
    terminal.close()
    printed = capsys.readouterr()
    assert "training with 2 workers" in printed.out and "loss" not in printed.out + printed.err
    assert '<progress value="1" max="200">' in shown[1] and "3:19:00 left" in shown[1]
    assert len(shown) < 100 and "step 200/200" in shown[-1] and "loss 1.5000  grad norm -" in shown[-1]


def test_ipython_in_a_terminal_is_no_notebook(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: object())
    assert not in_notebook() and console_for_people().stderr
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()

"""From rows in a file to a tuned model, with what the data flags add on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.templates import unmarked
from tests.smoke.conftest import read_metrics

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(300)]


def test_packed_conversations_for_two_epochs(
    finetune: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ShareGPT rows, a template of the user's, packed rows, epochs, validation, a test, and an answer at the end."""
    monkeypatch.chdir(tmp_path)  # the workers have a working directory of their own
    rows, template = tmp_path / "rows.jsonl", tmp_path / "qwen.jinja"
    turns = [{"from": "human", "value": "alpha beta"}, {"from": "gpt", "value": "gamma"}]
    content = [{"conversations": [*turns, {"from": "human", "value": f"row {n}"}, turns[1]]} for n in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in content))
    template.write_text(unmarked("Qwen"))
    run = finetune(
        dataset=rows,
        storage_path="runs",
        chat_template=template,
        packing=True,
        seq_length=256,
        num_workers=2,
        global_batch_size=2,
        validation_split=0.1,
        test_split=0.1,
        num_epochs=2,
        train_iters=None,
        eval_interval=4,
        sample_prompt="held-out",
    )
    plan, data = (json.loads((run / name).read_text()) for name in ("plan.json", "data.json"))
    assert [data["parts"][part]["rows"] for part in ("train", "validation", "test")] == [45, 12, 3]
    assert plan["rows"] == data["parts"]["train"]["packed_rows"] < 45
    assert plan["train_iters"] == plan["rows"] == len(read_metrics(run))  # 2 epochs in batches of 2
    assert next(iter(read_metrics(run, "validation")))["step"] == 4
    (test,) = read_metrics(run, "test")
    assert test["step"] == plan["train_iters"] and test["loss"] > 0
    assert (run / "hf" / "chat_template.jinja").read_text() == template.read_text()
    shown = capfd.readouterr().err
    assert "base" in shown and "tuned" in shown and "in the data" in shown and "gamma" in shown

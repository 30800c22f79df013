"""Trainings that start from a model that is made: a base model that gets a chat template's tokens, learns where answers
end, and stops there; and one from random weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smoke.conftest import read_metrics

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(900)]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = "alpha beta gamma"


def generated(place: Path) -> str:
    words = [sys.executable, "-m", "raymb", "generate", place, "--prompt", "delta 3", "--max_new_tokens", "40"]
    env = {**os.environ, "PYTHONPATH": "src"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def eos_ids(directory: Path) -> list[int]:
    return json.loads((directory / "generation_config.json").read_text())["eos_token_id"]


def test_a_base_model_with_added_tokens_stops_where_answers_end(
    finetune: Callable[..., Path], tiny_qwen2: Path, tmp_path: Path
) -> None:
    rows, tokens, template = (tmp_path / name for name in ("rows.jsonl", "tokens.txt", "chatml.jinja"))
    tokens.write_text("<tool>\n</tool>\n<|im_start|>\n<|im_end|>\n")
    template.write_text(CHATML)
    with rows.open("w") as stream:
        for number in range(64):
            turns = [("user", f"delta {number}"), ("assistant", ANSWER)]
            row = {"messages": [{"role": role, "content": content} for role, content in turns]}
            stream.write(json.dumps(row) + "\n")
    flags = {"dataset": rows, "chat_template": template, "seq_length": 64, "num_workers": 2}
    run = finetune(**flags, add_tokens=tokens, tensor_parallel_size=2, learning_rate=5e-3, train_iters=40)
    (made,) = (tmp_path / "_models").iterdir()
    config = json.loads((made / "config.json").read_text())
    mark = json.loads((made / "tokenizer.json").read_text())["added_tokens"][-1]
    assert (mark["content"], mark["special"]) == ("<|im_end|>", True)
    assert config["vocab_size"] == mark["id"] + 1 > 304
    assert json.loads((run / "hf" / "config.json").read_text()) == config | {
        "transformers_version": config["transformers_version"]
    }
    assert eos_ids(run / "hf") == [0, mark["id"]]
    assert generated(run) == ANSWER
    # Without the mark among the ends it runs on: what the base model's own settings would do.
    copy = shutil.copytree(run / "hf", tmp_path / "copy")
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 0}))
    assert len(generated(copy)) > len(ANSWER)

    adapter = finetune(**flags, hf_model_path=made, experiment_name="lora", peft="lora", train_iters=2) / "adapter"
    assert eos_ids(adapter) == [0, mark["id"]]


def test_from_scratch_without_weights(finetune: Callable[..., Path], tiny_qwen2: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_qwen2, tmp_path / "model")
    (model / "model.safetensors").unlink()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{ANSWER} {number} " * 40}) + "\n" for number in range(64)))
    flags = {"hf_model_path": model, "dataset": rows, "packing": True, "init": "random", "learning_rate": 3e-3}
    run = finetune(**flags, num_workers=2, pipeline_parallel_size=2, train_iters=30, save_interval=15)
    losses = [record["loss"] for record in read_metrics(run)]
    assert losses[0] > 5.5 and losses[-1] < 3
    (export,) = read_metrics(run, "export")
    assert export["error"] < 1e-4
    assert "from random weights" in (run / "hf" / "README.md").read_text()

"""Hub data sets and presets, without a hub; and what is said when it does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from raymb.cli import main
from raymb.data.hub import Loaded
from raymb.data.locate import locate
from raymb.data.presets import PRESETS
from raymb.errors import DataError
from raymb.spec.sections import Data

HUB_ROWS = {
    "squad": {"context": "C.", "question": "Q?", "answers": {"text": ["A", "B"]}},
    "gsm8k": {"question": "1+1?", "answer": "two\n#### 2"},
    "openmathinstruct2": {"problem": "1+1?", "generated_solution": "It is 2.", "expected_answer": "2"},
    "tulu3": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """What is asked of the hub; it answers with the splits train, dev and other."""
    asked = []

    def load(name: str, hub_id: str, settings: dict[str, str], streaming: Any) -> Any:
        asked.append((hub_id, dict(settings)))
        row = HUB_ROWS.get(name, HUB_ROWS["gsm8k"] if name.startswith("gsm8k") else {"prompt": "p", "completion": " c"})
        splits = {split: Dataset.from_list([row] * count) for split, count in (("train", 5), ("dev", 2), ("other", 1))}
        if name == "owner/untrained":
            splits.pop("train")
        return Loaded({"": splits.get(settings["split"], splits["train"])} if "split" in settings else splits, "abc")

    monkeypatch.setattr("raymb.data.hub.load", load)
    return asked


def rows(sources: Any) -> list[dict[str, Any]]:
    return [row for source in sources for batch in source.batches() for row in batch.rows]


def test_splits_are_found_by_name(hub: Any) -> None:
    found = locate("owner/name?config=main&revision=v1:0.5", chat=False)
    assert (found.word, found.weight) == ("owner/name?config=main&revision=v1", 0.5)
    assert hub == [("owner/name", {"config": "main", "revision": "v1"})]
    assert {part: len(rows(sources)) for part, sources in found.parts.items()} == {"train": 5, "validation": 2}
    assert found.parts["train"][0].fingerprint() != found.parts["validation"][0].fingerprint()
    assert [len(rows(sources)) for sources in locate("owner/name?split=other", chat=False).parts.values()] == [1]


def test_a_preset_takes_settings_and_says_when_its_columns_have_changed(hub: Any) -> None:
    assert len(rows(locate("gsm8k?split=other:2", chat=False).parts["train"])) == 1
    assert hub[-1] == ("openai/gsm8k", {"config": "main", "split": "other"})
    HUB_ROWS["gsm8k?revision=v9"] = {"q": "1+1?"}
    with pytest.raises(DataError, match="columns are no longer those that raymb knows; found q"):
        rows(locate("gsm8k?revision=v9", chat=False).parts["train"])
    del HUB_ROWS["gsm8k?revision=v9"]


def test_no_training_split(hub: Any) -> None:
    with pytest.raises(DataError, match="no split is called train; there are dev, other") as caught:
        locate("owner/untrained", chat=False)
    assert "?split=NAME" in caught.value.hint


def test_presets_read_rows_as_bridge_does(hub: Any) -> None:
    """But for the space between prompt and completion, which Bridge's prompt-completion preprocessing leaves out."""
    program = """
import json, sys
from raymb import cpu
from raymb.bridge.patches import imports
imports.install()
cpu.activate()
import megatron.bridge.models.conversion  # first, or Bridge imports itself in a circle
from megatron.bridge.data.sources import hf, hf_adapters
given, answer = json.loads(sys.argv[1]), {}
for name, row in given.items():
    preset = hf._HF_DATASET_PRESETS[name]
    adapter = preset.schema_adapter
    read = getattr(hf_adapters, f"_{adapter}_adapter") if adapter else hf_adapters._native_conversation_adapter
    answer[name] = dict(hub_id=preset.path_or_dataset, config=preset.subset, split=preset.split, row=read(row, {}))
print("\\n" + json.dumps(answer))
"""
    environment = os.environ | {"PYTHONPATH": "src"}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(HUB_ROWS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    bridge = json.loads(done.stdout.splitlines()[-1])
    assert bridge.keys() == PRESETS.keys()
    for name, theirs in bridge.items():
        preset = PRESETS[name]
        assert (preset.hub_id, preset.settings.get("config")) == (theirs["hub_id"], theirs["config"])
        assert preset.settings.get("split", "train") == theirs["split"]
        (ours, *_) = rows(locate(name, chat=True).parts["train"])
        if "completion" in ours:
            assert ours["completion"].startswith(" ")
            ours["completion"] = ours["completion"].removeprefix(" ")
        assert ours == {key: theirs["row"][key] for key in ours}


def test_hub_out_of_reach_fails_within_seconds(tmp_path: Path, shape_only_model_dir: Path) -> None:
    """A subprocess, because the hub's address is read when its client is imported. Port 1 refuses at once."""
    words = ["data", "prepare", "--hf_model_path", shape_only_model_dir, "--storage_path", tmp_path / "storage"]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path), "PYTHONPATH": "src"}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raymb", *map(str, words)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert time.monotonic() - start < 30
    assert done.returncode == 2
    first, hint = done.stderr.strip().splitlines()[-2:]
    assert "error: no --dataset: training on SQuAD, as the public example does; --dataset squad: reading it " in first
    assert "from the hub failed (ConnectError" in first
    assert "--dataset takes a file" in hint and "sample" in hint


def test_sample_dialogues() -> None:
    chat, plain = (rows(locate("sample", chat=chat).parts["train"]) for chat in (True, False))
    assert len(chat) == len(plain) > 700
    assert rows(locate("sample", Data(apply_chat_template=False), chat=True).parts["train"]) == plain
    question, answer = chat[0]["messages"]
    assert (question["role"], answer["role"]) == ("user", "assistant")
    assert plain[0] == {"prompt": f"Question: {question['content']}\nAnswer:", "completion": f" {answer['content']}"}


def test_sample_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"(?s:.*)pip install chatterbot-corpus"):
        rows(locate("sample", chat=True).parts["train"])


NOTE = "no --dataset: training on SQuAD, as the public example does"


@pytest.mark.parametrize("given", [[], ["--dataset", "squad"]])
def test_that_it_is_squad_is_said_where_nobody_has_said_it(
    given: list[str],
    hub: Any,
    shape_only_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    in_this_process: None,
) -> None:
    words = ["--hf_model_path", str(shape_only_model_dir), "--storage_path", str(tmp_path), "--backend", "cpu", *given]
    words += ["--global_batch_size", "1", "--num_workers", "1"]
    for command in (["plan"], ["finetune", "--dry_run"]):
        assert main([*command, *words]) == 0
        captured = capsys.readouterr()
        assert (NOTE in captured.out.splitlines()[0]) == (not given)
        assert captured.err.splitlines()[:1] == ([NOTE] if not given and command != ["plan"] else [])
    for command in ("prepare", "inspect"):
        assert main(["data", command, *words, "--json"]) == 0
        assert capsys.readouterr().err.splitlines()[:1] == ([] if given else [NOTE])

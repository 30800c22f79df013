"""Tokens and what is trained of them, on real dialogues: as TRL's trainer prepares them for its assistant-only loss,
with the published templates of seven families and SmolLM2's real vocabulary."""

from __future__ import annotations

from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tests.data.masks import stretches
from tests.data.published import Row, published, template_marks

from raymb.data.encode import Encoder
from raymb.data.settings import DAY, Settings
from raymb.data.shapes import Shape
from raymb.data.sources import Batch

pytestmark = pytest.mark.slow
TEMPLATES = published()
FAMILIES = {"qwen2_5": 200, "qwen3": 80, "llama3": 200, "gptoss": 200, "gemma3": 200, "glm4moe": 200, "phi3": 200}
"""Of 200 conversations, those that TRL renders as the model's own template does: Qwen3's twin writes an empty thought
into earlier turns, too. TRL has no twin of Llama 3.1 and 3.2."""
PROMPTS = {"qwen2_5": "\n", "gptoss": "<|start|>assistant"}
"""What a twin marks although the prompt for an answer brings it."""


class _Now(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.fromisoformat(DAY)


@pytest.fixture
def rows(dialogues: list[list[str]]) -> list[Row]:
    """80 conversations of one turn, 80 of two and 40 of three, every other one with a system message."""
    pairs = [turns[:2] for turns in dialogues if all(text.strip() for text in turns[:2])]
    found, begin = [], 0
    for index in range(200):
        turns = 1 if index < 80 else 2 if index < 160 else 3
        texts = chain.from_iterable(pairs[begin : begin + turns])
        begin += turns
        system = [{"role": "system", "content": "Answer in a few words."}] if index % 2 else []
        spoken = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        found.append({"messages": system + spoken})
    return found


@pytest.fixture
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def of_trl(tokenizer: Any, rows: list[Row], folder: Path) -> list[tuple[list[int], list[int]]]:
    """(ids, 1 where a label is) of TRL's trainer and its collator."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    given = {"assistant_only_loss": True, "max_length": None, "use_cpu": True, "bf16": False, "report_to": "none"}
    trainer = SFTTrainer(
        model,
        args=SFTConfig(str(folder), per_device_train_batch_size=1, **given),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    return [(one["input_ids"][0].tolist(), (one["labels"][0] != -100).int().tolist()) for one in batches]


@pytest.mark.parametrize("name", FAMILIES)
def test_trl_prepares_the_same(
    name: str, rows: list[Row], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _Now)
    template = TEMPLATES[name]
    special, plain = template_marks(template.text)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(plain)
    tokenizer.chat_template = template.text
    tokenizer.save_pretrained(tmp_path / "model")
    theirs = of_trl(tokenizer, rows, tmp_path / "trl")
    settings = Settings(str(tmp_path / "model"), False, None, Shape(), "assistant", 100_000, "fail")
    encoded = Encoder(settings).encode(Batch("row", range(1, len(rows) + 1), rows, 0))
    assert encoded.problems == []
    ends = encoded.lengths.cumsum().tolist()
    mine = [
        (encoded.tokens[end - length : end].tolist(), encoded.trained[end - length : end].tolist())
        for end, length in zip(ends, encoded.lengths.tolist(), strict=True)
    ]
    same = [index for index in range(len(rows)) if mine[index][0] == theirs[index][0]]
    prompt = tokenizer(PROMPTS.get(name, ""), add_special_tokens=False)["input_ids"]
    for index in same:
        ids, labels = theirs[index]
        for begin, _ in stretches(labels) if prompt else ():
            assert ids[begin : begin + len(prompt)] == prompt
            labels[begin : begin + len(prompt)] = [0] * len(prompt)
        assert mine[index][1] == labels, tokenizer.decode(ids)
    print(f"\n{name}: {len(same)} of {len(rows)} with the same tokens, and all of those with the same labels")
    assert len(same) == FAMILIES[name]

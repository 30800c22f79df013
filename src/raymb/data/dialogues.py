"""The rows of `--dataset sample`: dialogues of the chatterbot-corpus package."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb.data.sources import Batch, of_objects
from raymb.errors import DataError


@dataclass(frozen=True)
class Dialogues:
    """Question and first answer of every English dialogue of the chatterbot-corpus package, as messages or, for a model
    without a chat template, as prompt and completion. A question asked again is left out.

    2,026 dialogues ask 748 questions (ten tech-support questions alone a thousand times): with repetitions, a held-out
    question would be trained on. Further answers contradict the first.
    """

    chat: bool
    name: str = "sample"

    @property
    def size(self) -> int:
        return 1

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(file.read_bytes())
        return f"chatterbot-corpus:{self.chat}:{digest.hexdigest()}"

    def batches(self) -> Iterator[Batch]:
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        answers: dict[str, tuple[str, str]] = {}
        for file in self._files():
            for conversation in yaml.load(file.read_text(encoding="utf-8"), loader)["conversations"]:
                if not isinstance(conversation, list) or len(conversation) < 2:
                    continue  # one entry of trivia.yml is a bare string
                question, answer = (str(text).strip() for text in conversation[:2])
                if question and answer:
                    answers.setdefault(question.casefold(), (question, answer))
        rows = [self._row(question, answer) for question, answer in answers.values()]
        yield from of_objects("sample row", rows, 1)

    def _row(self, question: str, answer: str) -> dict[str, Any]:
        if self.chat:
            return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        return {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"}

    def _files(self) -> list[Path]:
        spec = importlib.util.find_spec("chatterbot_corpus")
        folder = Path(spec.origin or "").parent / "data" / "english" if spec else None
        if folder is None or not folder.is_dir():
            raise DataError(
                "--dataset sample: the package chatterbot-corpus is not installed",
                "pip install chatterbot-corpus (the extra `sample`), or use your own rows with --dataset FILE.jsonl",
            )
        return sorted(folder.glob("*.yml"))

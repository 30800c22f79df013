"""From rows to tokens and to which of them are trained. One Encoder a process; imports transformers.

A chat template with {% generation %} marks says itself what is trained, and transformers reads the marks; without marks
turns.py finds the assistant's turns.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from raymb.data.shapes import EmptyAnswer, Row, Shape, WrongRow, filled, shown
from raymb.data.sources import Batch
from raymb.data.turns import Turns, overlap
from raymb.errors import DataError, ModelError
from raymb.spec.conflicts import template_columns

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Settings:
    """What decides the tokens of a row.

    Args:
        model_path, revision, trust_remote_code: of the tokenizer.
        chat_template: Jinja text instead of the tokenizer's own.
        shape: how a row is read.
        loss_mode: "assistant" (completions), "last_turn" or "full".
        max_tokens: longest sample: sequence length + 1, because the last token is only predicted.
        long_rows: "truncate", "drop" or "fail".
    """

    model_path: str
    revision: str | None
    trust_remote_code: bool
    chat_template: str | None
    shape: Shape
    loss_mode: str
    max_tokens: int
    long_rows: str


@dataclass
class Encoded:
    """Samples of one batch, one after the other.

    Args:
        tokens: int32 ids of all samples; trained: uint8, 1 where the token is a target.
        lengths: tokens of each sample.
        hashes: uint64, equal for equal samples.
        numbers: the row number of each sample in its source.
        where: the source, as in Batch.
        eos_id: of the tokenizer; also what rows are padded with.
        problems: (row number, what is wrong) of the rows left out.
        truncated, too_long, untrained: row numbers: cut, left out for their length, left with nothing to train on.
        empty, cut_tokens: problems that are empty answers; tokens that were cut.
        pairs: rows of prompt and completion.
        size: of the batch.
    """

    tokens: np.ndarray
    trained: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    numbers: np.ndarray
    where: str
    eos_id: int
    problems: list[tuple[int, str]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    untrained: list[int] = field(default_factory=list)
    empty: int = 0
    pairs: int = 0
    cut_tokens: int = 0
    size: int = 0


class Encoder:
    def __init__(self, settings: Settings):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # "sequence longer than ..." is no news here
        from transformers import AutoTokenizer

        self.settings = settings
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                settings.model_path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
            )
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise ModelError(
                f"--hf_model_path {settings.model_path}: its tokenizer cannot be loaded ({_in_one_line(error)})"
            ) from None
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"--hf_model_path {settings.model_path}: its tokenizer has no end-of-sequence token",
                "set eos_token in its tokenizer_config.json",
            )
        if settings.chat_template is not None:
            self.tokenizer.chat_template = settings.chat_template

    def encode(self, batch: Batch) -> Encoded:
        """Read, tokenize and cut the rows of a batch; a row that cannot be used is named in `problems`."""
        problems: list[tuple[int, str]] = []
        rows: list[tuple[int, Row]] = []
        empty = 0
        for number, raw in zip(batch.numbers, batch.rows, strict=True):
            if isinstance(raw, bytes) and not raw.strip():
                continue
            try:
                rows.append((number, self.settings.shape.read(_parsed(raw) if isinstance(raw, bytes) else raw)))
            except WrongRow as wrong:
                problems.append((number, str(wrong)))
                empty += isinstance(wrong, EmptyAnswer)
        encoded = self._collected(self._tokenized(rows, problems), batch, problems)
        encoded.problems.sort()
        encoded.empty, encoded.pairs = empty, sum("prompt" in row for _, row in rows)
        return encoded

    def tokens_of_prompt(self, text: str) -> list[int]:
        """A prompt as the model saw it in rows of prompt and completion; a template of one column is filled with it."""
        template = self.settings.shape.prompt_template
        columns = template_columns(template) if template is not None else []
        if template is not None and len(columns) == 1:
            text = filled(template, {columns[0]: text})
        return self._prompts([text])[0]

    def _tokenized(self, rows: list[tuple[int, Row]], problems: list[tuple[int, str]]) -> list[_Sample]:
        pairs = [(number, row) for number, row in rows if "prompt" in row]
        chats = [(number, row) for number, row in rows if "messages" in row]
        samples = self._pairs(pairs) + self._chats(chats, problems)
        return sorted(samples, key=lambda sample: sample.number) if pairs and chats else samples

    def _pairs(self, rows: list[tuple[int, Row]]) -> list[_Sample]:
        """Prompt and completion are tokenized apart, as they are when the model is asked."""
        if not rows:
            return []
        prompts = self._prompts([row["prompt"] for _, row in rows])
        completions = self._ids([row["completion"] for _, row in rows])
        end = [self.tokenizer.eos_token_id]
        full = self.settings.loss_mode == "full"
        samples = []
        for (number, _), prompt, completion in zip(rows, prompts, completions, strict=True):
            target = completion + end
            samples.append(_Sample(number, prompt + target, [int(full)] * len(prompt) + [1] * len(target)))
        return samples

    def _prompts(self, texts: list[str]) -> list[list[int]]:
        first = self._first_tokens
        return [
            ids if first and text.startswith(self.tokenizer.bos_token) else first + ids
            for text, ids in zip(texts, self._ids(texts), strict=True)
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if self.tokenizer.is_fast and not self.tokenizer.split_special_tokens:  # the same, without HF's bookkeeping
            fast = self.tokenizer.backend_tokenizer
            fast.no_truncation()
            fast.no_padding()
            return [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=False)]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    @cached_property
    def _first_tokens(self) -> list[int]:
        """[BOS] if the tokenizer puts one in front of a text by itself."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    @cached_property
    def _turns(self) -> Turns:
        return Turns(self.tokenizer)

    def _chats(self, rows: list[tuple[int, Row]], problems: list[tuple[int, str]]) -> list[_Sample]:
        if not rows:
            return []
        template = self.tokenizer.chat_template
        if not template:
            raise DataError(
                f"--dataset: the rows are messages, but {self.settings.model_path} has no chat template",
                "give one with --chat_template FILE, prompt/completion rows, or an instruct model with --hf_model_path",
            )
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"--hf_model_path {self.settings.model_path}: its tokenizer cannot say which characters a token "
                f"covers, which the messages' trained tokens are found by",
                "give a model with a tokenizer.json",
            )
        if isinstance(template, str) and _MARKS.search(template):
            return [sample for number, row in rows if (sample := self._marked(number, row, problems))]
        texts, found, numbers = [], [], []
        for number, row in rows:
            try:
                text, spans = self._turns.find(row, self.settings.loss_mode)
            except WrongRow as wrong:
                problems.append((number, str(wrong)))
                continue
            except Exception as error:  # a template raises what it likes
                problems.append((number, f"the chat template refuses it: {_in_one_line(error)}"))
                continue
            texts.append(text)
            found.append(spans)
            numbers.append(number)
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True
        )
        return [
            _Sample(number, ids, overlap(offsets, spans))
            for number, ids, offsets, spans in zip(
                numbers, encoded["input_ids"], encoded["offset_mapping"], found, strict=True
            )
        ]

    def _marked(self, number: int, row: Row, problems: list[tuple[int, str]]) -> _Sample | None:
        try:
            encoded = self.tokenizer.apply_chat_template(
                row["messages"], tools=row.get("tools"), return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:
            problems.append((number, f"the chat template refuses it: {_in_one_line(error)}"))
            return None
        ids, trained = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        if self.settings.loss_mode == "full":
            trained = [1] * len(ids)
        elif self.settings.loss_mode == "last_turn" and 1 in trained:
            last = len(trained) - trained[::-1].index(1)
            first = max((index + 1 for index in range(last) if not trained[index]), default=0)
            trained = [int(first <= index < last) for index in range(len(ids))]
        return _Sample(number, ids, trained)

    def _collected(self, samples: list[_Sample], batch: Batch, problems: list[tuple[int, str]]) -> Encoded:
        settings, kept = self.settings, []
        truncated, too_long, untrained, cut_tokens = [], [], [], 0
        for sample in samples:
            if not any(sample.trained[1:]):
                problems.append((sample.number, "no token of it is trained"))
                continue
            if len(sample.ids) > settings.max_tokens:
                if settings.long_rows != "truncate":
                    too_long.append(sample.number)
                    continue
                truncated.append(sample.number)
                cut_tokens += len(sample.ids) - settings.max_tokens
                sample = sample.cut(settings.max_tokens)
                if not any(sample.trained[1:]):
                    untrained.append(sample.number)
                    continue
            kept.append(sample)
        tokens = _flat([sample.ids for sample in kept], np.int32)
        trained = _flat([sample.trained for sample in kept], np.uint8)
        lengths = np.array([len(sample.ids) for sample in kept], dtype=np.int32)
        return Encoded(
            tokens=tokens,
            trained=trained,
            lengths=lengths,
            hashes=_hashes(tokens, trained, lengths),
            numbers=np.array([sample.number for sample in kept], dtype=np.int64),
            where=batch.where,
            eos_id=self.tokenizer.eos_token_id,
            problems=problems,
            truncated=truncated,
            too_long=too_long,
            untrained=untrained,
            cut_tokens=cut_tokens,
            size=batch.size,
        )


@dataclass(frozen=True)
class _Sample:
    number: int
    ids: list[int]
    trained: list[int]

    def cut(self, length: int) -> _Sample:
        return _Sample(self.number, self.ids[:length], self.trained[:length])


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise WrongRow(f"byte {line[error.start]:#04x} at position {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise WrongRow(f"not valid JSON: {error.msg} at column {error.colno}: {shown(error.doc)}") from None
    except RecursionError:
        raise WrongRow("not a row: brackets are nested too deeply") from None


def _flat(lists: list[list[int]], kind: Any) -> np.ndarray:
    return np.fromiter(chain.from_iterable(lists), dtype=kind, count=sum(map(len, lists)))


def _hashes(tokens: np.ndarray, trained: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    ends = np.cumsum(lengths)
    digests = [
        hashlib.blake2b(tokens[end - length : end].tobytes() + trained[end - length : end].tobytes(), digest_size=8)
        for end, length in zip(ends, lengths, strict=True)
    ]
    return np.frombuffer(b"".join(digest.digest() for digest in digests), dtype=np.uint64)


def _in_one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__}"[:200]

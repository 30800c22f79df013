"""From rows to tokens and to which of them are trained. One Encoder a process; imports transformers."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from raymb.data.chats import Chats, in_one_line, template_of
from raymb.data.encoded import Encoded, EncodedSample, collected
from raymb.data.row_values import EmptyAnswer, WrongRow, shown
from raymb.data.settings import Settings
from raymb.data.shapes import Row, filled, without_nulls
from raymb.data.sources import Batch
from raymb.errors import ModelError
from raymb.model.remote_code import hint_for
from raymb.runtime.importing import importing
from raymb.spec.conflicts import template_columns


class Encoder:
    def __init__(self, settings: Settings):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # "sequence longer than ..." is no news here
        with importing():
            from transformers import AutoTokenizer

        self.settings = settings
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                settings.model_path, trust_remote_code=settings.trust_remote_code
            )
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise ModelError(
                f"--hf_model_path {settings.model_path}: its tokenizer cannot be loaded ({in_one_line(error)})",
                hint_for(error),
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
        empty, chat = 0, bool(self.tokenizer.chat_template)
        for number, raw in zip(batch.numbers, batch.rows, strict=True):
            if isinstance(raw, bytes) and not raw.strip():
                continue
            try:
                parsed = _parsed(raw) if isinstance(raw, bytes) else without_nulls(raw) if batch.columnar else raw
                rows.append((number, self.settings.shape.read(parsed, chat=chat)))
            except WrongRow as wrong:
                problems.append((number, str(wrong)))
                empty += isinstance(wrong, EmptyAnswer)
        home = Path(batch.where.rpartition(" ")[0]).parent
        dropped: Counter[str] = Counter()
        samples = self._tokenized(rows, home, problems, dropped)
        ends = Counter(sample.end(self._special, self._blank) for sample in samples)
        encoded = collected(samples, batch, problems, self.settings, self.tokenizer.eos_token_id)
        encoded.find_largest(self.tokenizer)
        encoded.problems.sort()
        encoded.dropped = dropped
        encoded.ends = Counter({token: count for token, count in ends.items() if token is not None})
        encoded.empty = empty
        encoded.wordings = Counter(row.get("style", "prompt") for _, row in rows if "messages" not in row)
        return encoded

    def tokens_of_prompt(self, text: str) -> list[int]:
        """A prompt as the model saw it in rows of prompt and completion; a template of one column is filled with it."""
        template = self.settings.shape.prompt_template
        columns = template_columns(template) if template is not None else []
        if template is not None and len(columns) == 1:
            text = filled(template, {columns[0]: text})
        return self._prompts([text])[0]

    def tokens_of_messages(self, messages: list[Row]) -> list[int]:
        """Messages up to where an answer begins, as the model saw them in rows of messages."""
        return self._ids([template_of(self.settings, self.tokenizer).render(messages, prompt=True)[0]])[0]

    def _tokenized(
        self, rows: list[tuple[int, Row]], home: Path, problems: list[tuple[int, str]], dropped: Counter[str]
    ) -> list[EncodedSample]:
        pairs = [(number, row) for number, row in rows if "prompt" in row]
        chats = [(number, row) for number, row in rows if "messages" in row]
        documents = [(number, row) for number, row in rows if "text" in row]
        samples = self._pairs(pairs) + self._documents(documents)
        samples += self._chats.encode(chats, home, problems, dropped) if chats else []
        return sorted(samples, key=lambda sample: sample.number) if len(rows) > len(pairs) else samples

    def _documents(self, rows: list[tuple[int, Row]]) -> list[EncodedSample]:
        """Documents in pieces of the sequence length. A piece begins with the last token of the one before it, which
        is only predicted there: so every token is a target once."""
        end, longest = [self.tokenizer.eos_token_id], self.settings.max_tokens
        samples = []
        for (number, _), ids in zip(rows, self._prompts([row["text"] for _, row in rows]), strict=True):
            whole = ids + end
            pieces = [whole[begin : begin + longest] for begin in range(0, len(whole) - 1, longest - 1)]
            samples += [EncodedSample(number, piece, [1] * len(piece)) for piece in pieces]
        return samples

    def _pairs(self, rows: list[tuple[int, Row]]) -> list[EncodedSample]:
        """Prompt and completion are tokenized apart, as they are when the model is asked."""
        if not rows:
            return []
        prompts = self._prompts([row["prompt"] for _, row in rows])
        completions = self._ids([row["completion"] for _, row in rows])
        end = [self.tokenizer.eos_token_id]
        full = self.settings.loss_mode == "full"
        samples = []
        for (number, _), prompt, completion in zip(rows, prompts, completions, strict=True):
            target = completion if completion[-1:] == end else completion + end
            samples.append(EncodedSample(number, prompt + target, [int(full)] * len(prompt) + [1] * len(target)))
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
    def _blank(self) -> frozenset[int]:
        """Tokens of white space, which may stand between the marks at a text's end."""
        return frozenset(ids[0] for ids in self._ids(["\n", "\n\n", " "]) if len(ids) == 1)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset([self.tokenizer.eos_token_id, *(token for token, about in added if about.special)])

    @cached_property
    def _chats(self) -> Chats:
        return Chats(self.settings, self.tokenizer)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise WrongRow(f"byte {line[error.start]:#04x} at position {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise WrongRow(f"not valid JSON: {error.msg} at column {error.colno}: {shown(error.doc)}") from None
    except RecursionError:
        raise WrongRow("not a row: brackets are nested too deeply") from None

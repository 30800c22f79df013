"""From conversations to tokens and to which of them are trained. One a process."""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from raymb.data.chat_template import ChatTemplate
from raymb.data.encoded import EncodedSample
from raymb.data.images import ImageProcessor, ImageReader, Places, expanded
from raymb.data.row_values import WrongRow
from raymb.data.settings import Settings
from raymb.data.shapes import Row
from raymb.data.turns import Conversation, Stretch, Turns
from raymb.errors import DataError, ModelError


class Chats:
    """
    Args:
        tokenizer: of transformers.

    Raises:
        DataError, ModelError: the tokenizer cannot do it, or its template cannot.
    """

    def __init__(self, settings: Settings, tokenizer: Any):
        if not tokenizer.chat_template:
            raise DataError(
                f"--dataset: the rows are messages, but {settings.model_path} has no chat template",
                "give one with --chat_template FILE, prompt/completion rows, or an instruct model with --hf_model_path",
            )
        if not tokenizer.is_fast:
            raise ModelError(
                f"--hf_model_path {settings.model_path}: its tokenizer cannot say which characters a token "
                f"covers, which the messages' trained tokens are found by",
                "give a model with a tokenizer.json",
            )
        self.settings, self.tokenizer = settings, tokenizer
        self.template = template_of(settings, tokenizer)
        self.turns = Turns(self.template, settings.loss_mode, settings.train_on_roles)

    def encode(
        self, rows: list[tuple[int, Row]], home: Path, problems: list[tuple[int, str]], dropped: Counter[str]
    ) -> list[EncodedSample]:
        """Samples of the rows that can be used; the others are named in `problems`.

        Args:
            home: directory of the rows, which images' relative paths begin at.
            dropped: counts what the chat template leaves out.
        """
        found = []
        for number, row in rows:
            try:
                conversation = self._found(row)
                images = self._read_images(row, home) if "images" in row else []
                text, spans = conversation.text, conversation.trained
                if images:
                    text, spans = expanded(text, spans, self._mark, [count for _, count in images])
            except WrongRow as wrong:
                problems.append((number, str(wrong)))
            except Exception as error:  # a template raises what it likes
                problems.append((number, f"the chat template refuses it: {in_one_line(error)}"))
            else:
                found.append((number, text, spans, images))
                dropped.update(conversation.dropped)
        encodings = self._encodings([text for _, text, _, _ in found])
        samples = []
        for (number, text, spans, images), encoding in zip(found, encodings, strict=True):
            trained = trained_tokens(encoding, spans, len(text))
            try:
                samples.append(self._sample(number, encoding.ids, trained, images))
            except WrongRow as wrong:
                problems.append((number, str(wrong)))
        return samples

    def _found(self, row: Row) -> Conversation:
        conversation = self.turns.find(self._with_system(row))
        if not conversation.trained:
            left_out = "; ".join(text.replace("{n}", str(n)) for text, n in conversation.dropped.items())
            more = f": the chat template leaves out {left_out}" if left_out else ""
            raise WrongRow(f"no token of it is trained{more}")
        return conversation

    def _sample(self, number: int, ids: list[int], trained: list[int], images: list[tuple[str, int]]) -> EncodedSample:
        if not images:
            return EncodedSample(number, ids, trained)
        places = Places(ids, self.tokenizer.convert_tokens_to_ids(self._mark), [count for _, count in images])
        for begin, end in places.stretches:  # only --loss_mode full would train them
            trained[begin:end] = [0] * (end - begin)
        return EncodedSample(number, ids, trained, tuple(digest for digest, _ in images), places)

    def _with_system(self, row: Row) -> Row:
        text, first = self.settings.system_prompt, row["messages"][0]
        if text is None or first["role"] in ("system", "developer"):
            return row
        return {**row, "messages": [{"role": "system", "content": text}, *row["messages"]]}

    def _encodings(self, texts: list[str]) -> list[Any]:
        """Of the tokenizers library, without its post-processor: rendered texts get no further tokens, and with
        trim_offsets it takes the blanks out of the tokens' offsets."""
        fast = self.tokenizer.backend_tokenizer
        fast.no_truncation()
        fast.no_padding()
        fast.encode_special_tokens = self.tokenizer.split_special_tokens
        processor = fast.post_processor
        fast.post_processor = None
        try:
            return fast.encode_batch(texts, add_special_tokens=False)
        finally:
            fast.post_processor = processor

    @cached_property
    def _images(self) -> ImageReader:
        settings = self.settings
        if not settings.architecture or not settings.copies:
            raise WrongRow(f"it has an image, and {settings.model_path} is no vision-language model")
        processor = ImageProcessor(settings.architecture, settings.model_path)
        return ImageReader(processor, Path(settings.copies))

    @property
    def _mark(self) -> str:
        return self._images.processor.vision.mark

    def _read_images(self, row: Row, home: Path) -> list[tuple[str, int]]:
        """(digest, tokens) of each."""
        return [self._images.read(one, home, f"image {index}") for index, one in enumerate(row["images"], start=1)]


def template_of(settings: Settings, tokenizer: Any) -> ChatTemplate:
    """The tokenizer's, with the variables that the settings say.

    Raises:
        DataError: it cannot keep reasoning.
    """
    template = ChatTemplate(tokenizer, json.loads(settings.chat_template_kwargs), settings.day)
    if settings.keep_reasoning and not template.keep_reasoning():
        raise DataError(
            "--keep_reasoning: this chat template leaves out the reasoning of earlier turns, and has no switch for it",
            "give a --chat_template that keeps it, or leave --keep_reasoning out",
        )
    return template


def trained_tokens(encoding: Any, spans: list[Stretch], length: int) -> list[int]:
    """1 for each token that shares a character with a span.

    Args:
        encoding: of the tokenizers library.
        spans: (begin, end) characters, in order.
        length: of the text.
    """
    marks = [0] * len(encoding)
    for begin, end in spans:
        if begin == end:
            continue
        first, last = encoding.char_to_token(begin), encoding.char_to_token(end - 1)
        after = encoding.char_to_token(end) if end < length else len(encoding)
        if first is None or last is None or after is None:  # the tokenizer leaves characters out
            return _by_offsets(encoding.offsets, spans)
        after = max(after, last + 1)  # a token may reach beyond the span, or one character be several tokens
        marks[first:after] = [1] * (after - first)
    return marks


def _by_offsets(offsets: list[Stretch], spans: list[Stretch]) -> list[int]:
    """A token of no character, such as a blank that the tokenizer adds, belongs to the character after it."""
    marks, current = [0] * len(offsets), 0
    for index, (start, end) in enumerate(offsets):
        end = max(end, start + 1)
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        if current == len(spans):
            break
        marks[index] = int(spans[current][0] < end)
    return marks


def in_one_line(error: Exception) -> str:
    """At most 200 characters."""
    return f"{' '.join(str(error).split()) or type(error).__name__}"[:200]

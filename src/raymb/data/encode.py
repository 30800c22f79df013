"""From rows to tokens and to which of them are trained. One Encoder a process; imports transformers.

A chat template with {% generation %} marks says itself what is trained, and transformers reads the marks; without marks
turns.py finds the assistant's turns.
"""

from __future__ import annotations

import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from raymb.data.encoded import Encoded, EncodedSample, collected
from raymb.data.images import ImageProcessor, ImageReader, Places, expanded
from raymb.data.row_values import EmptyAnswer, WrongRow, shown
from raymb.data.settings import Settings
from raymb.data.shapes import Row, filled
from raymb.data.sources import Batch
from raymb.data.turns import Turns, overlap
from raymb.errors import DataError, ModelError
from raymb.spec.conflicts import template_columns

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
        empty, chat = 0, bool(self.tokenizer.chat_template)
        for number, raw in zip(batch.numbers, batch.rows, strict=True):
            if isinstance(raw, bytes) and not raw.strip():
                continue
            try:
                parsed = _parsed(raw) if isinstance(raw, bytes) else raw
                rows.append((number, self.settings.shape.read(parsed, chat=chat)))
            except WrongRow as wrong:
                problems.append((number, str(wrong)))
                empty += isinstance(wrong, EmptyAnswer)
        home = Path(batch.where.rpartition(" ")[0]).parent
        encoded = collected(
            self._tokenized(rows, home, problems), batch, problems, self.settings, self.tokenizer.eos_token_id
        )
        encoded.problems.sort()
        encoded.empty, encoded.pairs = empty, sum("messages" not in row for _, row in rows)
        return encoded

    def tokens_of_prompt(self, text: str) -> list[int]:
        """A prompt as the model saw it in rows of prompt and completion; a template of one column is filled with it."""
        template = self.settings.shape.prompt_template
        columns = template_columns(template) if template is not None else []
        if template is not None and len(columns) == 1:
            text = filled(template, {columns[0]: text})
        return self._prompts([text])[0]

    def _tokenized(
        self, rows: list[tuple[int, Row]], home: Path, problems: list[tuple[int, str]]
    ) -> list[EncodedSample]:
        pairs = [(number, row) for number, row in rows if "prompt" in row]
        chats = [(number, row) for number, row in rows if "messages" in row]
        documents = [(number, row) for number, row in rows if "text" in row]
        samples = self._pairs(pairs) + self._chats(chats, home, problems) + self._documents(documents)
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
            target = completion + end
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
    def _turns(self) -> Turns:
        return Turns(self.tokenizer)

    @cached_property
    def _images(self) -> ImageReader | None:
        """None where no row may have images."""
        settings = self.settings
        if not settings.architecture or not settings.copies:
            return None
        processor = ImageProcessor(settings.architecture, settings.model_path, settings.revision)
        return ImageReader(processor, Path(settings.copies))

    def _chats(self, rows: list[tuple[int, Row]], home: Path, problems: list[tuple[int, str]]) -> list[EncodedSample]:
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
        marked = isinstance(template, str) and bool(_MARKS.search(template))
        pictures = {number: row for number, row in rows if "images" in row}
        samples = [self._with_images(number, row, home, marked, problems) for number, row in pictures.items()]
        rows = [(number, row) for number, row in rows if number not in pictures]
        if marked:
            samples += [self._by_marks(number, row, problems) for number, row in rows]
        else:
            samples += self._by_turns(rows, problems)
        return sorted(filter(None, samples), key=lambda sample: sample.number)

    def _by_turns(self, rows: list[tuple[int, Row]], problems: list[tuple[int, str]]) -> list[EncodedSample]:
        """Samples of text, the turns found in them."""
        texts, found, numbers = [], [], []
        for number, row in rows:
            if rendered := self._rendered(number, row, problems):
                texts.append(rendered[0])
                found.append(rendered[1])
                numbers.append(number)
        if not texts:
            return []
        return [
            EncodedSample(number, ids, overlap(offsets, spans))
            for number, (ids, offsets), spans in zip(numbers, self._with_offsets(texts), found, strict=True)
        ]

    def _rendered(
        self, number: int, row: Row, problems: list[tuple[int, str]]
    ) -> tuple[str, list[tuple[int, int]]] | None:
        """(text, trained stretches of it)."""
        try:
            return self._turns.find(row, self.settings.loss_mode)
        except WrongRow as wrong:
            problems.append((number, str(wrong)))
        except Exception as error:  # a template raises what it likes
            problems.append((number, f"the chat template refuses it: {_in_one_line(error)}"))
        return None

    def _with_offsets(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, characters that each token covers) of each text."""
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def _with_images(
        self, number: int, row: Row, home: Path, marked: bool, problems: list[tuple[int, str]]
    ) -> EncodedSample | None:
        """A sample with images."""
        try:
            if self._images is None:
                raise WrongRow(f"it has an image, and {self.settings.model_path} sees none")
            if marked:
                raise WrongRow(
                    "it has an image, and raymb does not follow the template's {% generation %} marks there; give a "
                    "--chat_template without them"
                )
            images = [
                self._images.read(source, home, f"image {index}") for index, source in enumerate(row["images"], start=1)
            ]
            if (rendered := self._rendered(number, row, problems)) is None:
                return None
            counts = [count for _, count in images]
            mark = self._images.processor.vision.mark
            text, spans = expanded(*rendered, mark, counts)
            [(ids, offsets)] = self._with_offsets([text])
            places = Places(ids, self.tokenizer.convert_tokens_to_ids(mark), counts)
            trained = overlap(offsets, spans)
            for begin, end in places.stretches:  # only --loss_mode full would train them
                trained[begin:end] = [0] * (end - begin)
            return EncodedSample(number, ids, trained, tuple(digest for digest, _ in images), places)
        except WrongRow as wrong:
            problems.append((number, str(wrong)))
            return None

    def _by_marks(self, number: int, row: Row, problems: list[tuple[int, str]]) -> EncodedSample | None:
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
        return EncodedSample(number, ids, trained)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise WrongRow(f"byte {line[error.start]:#04x} at position {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise WrongRow(f"not valid JSON: {error.msg} at column {error.colno}: {shown(error.doc)}") from None
    except RecursionError:
        raise WrongRow("not a row: brackets are nested too deeply") from None


def _in_one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__}"[:200]

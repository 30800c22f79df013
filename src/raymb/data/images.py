"""Images of rows: read and checked once, while rows are prepared; cut into patches by the model's own settings when a
batch is made."""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from raymb.data.row_values import WrongRow, shown
from raymb.errors import ModelError
from raymb.model.families import family_of

_SHOWN_ERROR = 120


class ImageProcessor:
    """What a model makes of an image.

    Args:
        architecture: of a vision-language model that raymb trains.
        model_path: directory of the model.
    """

    def __init__(self, architecture: str, model_path: str):
        vision = family_of(architecture).vision
        if vision is None:
            raise ValueError(f"{architecture} is no vision-language model that raymb trains")
        self.vision, self.model_path = vision, model_path
        module, name = vision.image_processor
        try:
            cls = getattr(importlib.import_module(module), name)
            self.processor: Any = cls.from_pretrained(model_path)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"--hf_model_path {model_path}: its image processor cannot be loaded ({_in_one_line(error)})",
                "preprocessor_config.json belongs beside config.json: fetch the whole model",
            ) from None

    @cached_property
    def mark_id(self) -> int:
        """The mark's token, as config.json says it."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model_path).image_token_id

    def tokens(self, content: bytes) -> int:
        """How many tokens an image takes.

        Raises:
            ValueError: it cannot be cut into patches.
        """
        image = decoded(content)
        patches = self.processor.get_number_of_image_patches(image.height, image.width, {})
        return patches // self.processor.merge_size**2

    def pixels(self, contents: Sequence[bytes]) -> dict[str, Any]:
        """Tensors of the images: pixel_values [patches of all, numbers of a patch] and image_grid_thw [images, 3]."""
        found = self.processor(images=[decoded(content) for content in contents], return_tensors="pt")
        return {name: found[name] for name in ("pixel_values", "image_grid_thw")}


def decoded(content: bytes) -> Any:
    """A PIL image in RGB, upright, as transformers loads it."""
    from PIL import Image, ImageOps

    return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")


class ImageReader:
    """Reads the images that rows name, checks that they can be decoded, and keeps a copy of each.

    Args:
        processor: of the model.
        copies: directory for the copies; a file's name is the digest of its content.
    """

    def __init__(self, processor: ImageProcessor, copies: Path):
        self.processor, self.copies = processor, copies
        self.known: dict[str, int] = {}

    def read(self, source: Any, home: Path, name: str) -> tuple[str, int]:
        """(digest, tokens) of an image.

        Args:
            source: a path, an address, a data: URI, or {"bytes"} or {"path"} as columnar files have them.
            home: directory of the rows, which relative paths begin at.
            name: of the image, for errors.

        Raises:
            WrongRow: it is not there, or no image.
        """
        content = _content(source, home, name)
        digest = sha256(content).hexdigest()[:32]
        if digest not in self.known:
            try:
                self.known[digest] = self.processor.tokens(content)
            except Exception as error:  # Pillow's decoders raise what they like
                raise WrongRow(f"{name}, {_said(source)}: not an image ({_in_one_line(error)})") from None
            _keep(self.copies / digest, content)
        return digest, self.known[digest]


def _keep(file: Path, content: bytes) -> None:
    if not file.exists():
        part = file.with_name(f"{file.name}.{os.getpid()}")
        part.write_bytes(content)
        os.replace(part, file)


def _content(source: Any, home: Path, name: str) -> bytes:
    if isinstance(source, Mapping):
        if isinstance(source.get("bytes"), bytes):
            return source["bytes"]
        source = source.get("path")
    if not isinstance(source, str) or not source:
        raise WrongRow(f"{name} is {shown(source)}; it must be a path, an address or a data: URI")
    if source.startswith("data:"):
        try:
            return base64.b64decode(source.partition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            raise WrongRow(f"{name}, {_said(source)}: not base64") from None
    try:
        if "://" in source:
            import fsspec

            with fsspec.open(source, "rb") as stream:
                return stream.read()  # type: ignore[union-attr]
        return (home / Path(source).expanduser()).read_bytes()
    except FileNotFoundError:
        where = "" if "://" in source or Path(source).is_absolute() else f" in {home}"
        raise WrongRow(f"{name}, {_said(source)}: no such file{where}") from None
    except Exception as error:  # a store's client raises what it likes
        raise WrongRow(f"{name}, {_said(source)}: cannot be read ({_in_one_line(error)})") from None


def _said(source: Any) -> str:
    return shown(source["path"] if isinstance(source, Mapping) and source.get("path") else source)


def _in_one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__}"[:_SHOWN_ERROR]


def expanded(
    text: str, spans: list[tuple[int, int]], mark: str, counts: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """A rendered conversation with as many marks for each image as it takes tokens, and its spans moved along.

    Args:
        spans: (begin, end) stretches of the text.
        mark: stands for an image.
        counts: tokens of each image.

    Raises:
        WrongRow: there are not as many marks as images.
    """
    pieces = text.split(mark)
    if len(pieces) - 1 != len(counts):
        raise WrongRow(
            f"the chat template makes {len(pieces) - 1} marks {mark} of a row with {len(counts)} images; no text may "
            f"hold the mark itself"
        )
    begins, place = [], 0
    for piece in pieces[:-1]:
        place += len(piece)
        begins.append(place)
        place += len(mark)

    def moved(position: int) -> int:
        before = sum(count - 1 for begin, count in zip(begins, counts, strict=True) if begin < position)
        return position + before * len(mark)

    filled = "".join(piece + mark * count for piece, count in zip(pieces, [*counts, 0], strict=True))
    return filled, [(moved(begin), moved(end)) for begin, end in spans]


class Places:
    """Where the images of a sample are among its tokens.

    Args:
        ids: of the sample.
        token: of the mark.
        counts: tokens of each image.

    Raises:
        WrongRow: the tokenizer has no token for the mark.
    """

    def __init__(self, ids: Sequence[int], token: int, counts: Sequence[int]):
        self.found = [place for place, one in enumerate(ids) if one == token]
        self.counts = counts
        if len(self.found) != sum(counts):
            raise WrongRow(f"its images are {sum(counts)} tokens, and the tokenizer makes {len(self.found)} of them")

    @cached_property
    def stretches(self) -> list[tuple[int, int]]:
        """(begin, end) of each image."""
        return list(self._stretches())

    def _stretches(self) -> Iterator[tuple[int, int]]:
        start = 0
        for count in self.counts:
            yield self.found[start], self.found[start + count - 1] + 1
            start += count

    def kept(self, length: int) -> tuple[int, int]:
        """(length, images) of the sample cut to a length: an image is kept whole or left out. The last token is only
        predicted, so an image must end before it."""
        for index, (begin, end) in enumerate(self.stretches):
            if end >= length:
                return min(length, begin), index
        return length, len(self.counts)

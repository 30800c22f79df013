"""Rows with images: read, checked, copied once, and as many marks as the model makes tokens of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymb.data.encode import Encoder
from raymb.data.encoded import Encoded
from raymb.data.images import expanded
from raymb.data.prepare import prepare
from raymb.data.samples import samples_in
from raymb.data.settings import Settings
from raymb.data.shapes import Shape, WrongRow
from raymb.data.sources import Batch
from raymb.data.store import IMAGES, ImageFile, RowFile
from raymb.errors import DataError
from raymb.spec import load_spec

QWEN = "Qwen2_5_VLForConditionalGeneration"
PAD = "<|image_pad|>"


def png(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "PNG")
    return stream.getvalue()


def row(*parts: Any, answer: str = "beta", **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", **part} for part in parts]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **more}


@pytest.fixture
def model(shape_only_vlm_dir: Path) -> Path:
    return shape_only_vlm_dir


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png(112, 56))  # 8 patches of 28 pixels
    (tmp_path / "b.png").write_bytes(png(56, 56))
    (tmp_path / "noise.png").write_bytes(b"no image")
    (tmp_path / "half.png").write_bytes(png(300, 300)[:60])
    return tmp_path


@pytest.fixture
def encode(model: Path, home: Path) -> Callable[..., Encoded]:
    def run(*rows: dict[str, Any], **changes: Any) -> Encoded:
        given = {"chat_template": None, "shape": Shape(), "loss_mode": "assistant", "max_tokens": 1000}
        given |= {"long_rows": "truncate", "architecture": QWEN, "copies": str(home / "copies")} | changes
        (home / "copies").mkdir(exist_ok=True)
        encoder = Encoder(Settings(str(model), False, **given))
        return encoder.encode(Batch(f"{home / 'rows.jsonl'} line", range(1, len(rows) + 1), list(rows), 0))

    return run


def test_an_image_takes_as_many_tokens_as_it_has_patches(encode: Callable[..., Encoded], model: Path, home: Path):
    uri = "data:image/png;base64," + base64.b64encode(png(56, 56)).decode()
    found = encode(
        row({"image": "a.png"}, "alpha"),
        row("alpha", {"image_url": {"url": uri}}, {"path": str(home / "a.png")}),
        row("alpha"),
        row({}, {}, "alpha", images=["b.png", {"bytes": png(112, 56), "path": None}]),
    )
    assert found.problems == []
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    pad, begins = tokenizer.convert_tokens_to_ids(PAD), np.cumsum(found.lengths) - found.lengths
    samples = [
        (found.tokens[begin : begin + length], found.trained[begin : begin + length])
        for begin, length in zip(begins, found.lengths, strict=True)
    ]
    assert [int((ids == pad).sum()) for ids, _ in samples] == [8, 4 + 8, 0, 4 + 8]
    for ids, trained in samples:
        assert tokenizer.decode(ids[trained == 1]) == "beta<|im_end|>\n"
    copies = {file.name: file.read_bytes() for file in (home / "copies").iterdir()}
    assert sorted(copies.values()) == sorted([png(112, 56), png(56, 56)])  # each once
    assert [[copies[digest] for digest in one] for one in found.images] == [
        [png(112, 56)],
        [png(56, 56), png(112, 56)],
        [],
        [png(56, 56), png(112, 56)],
    ]


def test_another_image_makes_another_sample(encode: Callable[..., Encoded], home: Path):
    (home / "c.png").write_bytes(png(112, 56, (1, 2, 3)))
    same = encode(row({"image": "a.png"}, "x"), row({"image": "c.png"}, "x"), row({"image": "a.png"}, "x"))
    assert same.hashes[0] == same.hashes[2] != same.hashes[1]


@pytest.mark.parametrize(
    ("bad", "words"),
    {
        "missing": (row({"image": "no.png"}), ["image 1", '"no.png"', "no such file"]),
        "no image": (row({"image": "noise.png"}), ["noise.png", "not an image"]),
        "cut off": (row({"image": "half.png"}), ["half.png", "not an image"]),
        "no base64": (row({"image": "data:image/png;base64,#"}), ["not base64"]),
        "a number": (row({"image": 5}), ["image 1 is 5", "a path, an address or a data: URI"]),
        "no source": (row({}), ["says no image"]),
        "too few sources": (row({}, {}, images=["a.png"]), ["1 entries for 2 image parts"]),
        "a mark in the text": (row({"image": "a.png"}, f"alpha {PAD}"), ["2 marks", "1 images"]),
        "a video": (row({"type": "video", "video": "a.mp4"}), ['type is "video"', "text or image"]),
        "an image as answer": (
            {"messages": [row("a")["messages"][0], {**row({"image": "a.png"})["messages"][0], "role": "assistant"}]},
            ["answers in words"],
        ),
    }.values(),
)  # fmt: skip
def test_what_is_wrong_is_named(bad: dict[str, Any], words: list[str], encode: Callable[..., Encoded]):
    [(number, text)] = encode(row("alpha"), bad).problems
    assert number == 2 and all(word in text for word in words), text


def test_a_model_of_text_sees_none(encode: Callable[..., Encoded]):
    [(_, text)] = encode(row({"image": "a.png"}), architecture="").problems
    assert "is no vision-language model" in text


def test_an_image_is_kept_whole_or_left_out(encode: Callable[..., Encoded]):
    turns = [*row({"image": "a.png"}, "alpha")["messages"], *row({"image": "b.png"}, "alpha")["messages"]]
    [whole] = encode({"messages": turns}).lengths
    for limit in range(int(whole)):
        found = encode({"messages": turns}, max_tokens=limit)
        pads = int((found.tokens[:-1] == 306).sum())  # the last token is only predicted
        assert pads == (0, 8, 12)[len(found.images[0]) if found.images else 0], limit
    assert len(encode({"messages": turns}, max_tokens=int(whole) - 1).images[0]) == 2


def test_marks_grow_and_stretches_move():
    text, spans = expanded(f"a{PAD}bc{PAD}d", [(0, 1), (1 + len(PAD), 3 + len(PAD))], PAD, [2, 3])
    assert text == f"a{PAD * 2}bc{PAD * 3}d"
    assert [text[begin:end] for begin, end in spans] == ["a", "bc"]
    with pytest.raises(WrongRow, match="1 marks"):
        expanded(PAD, [], PAD, [])


def test_prepared_rows_bring_their_images(model: Path, home: Path, in_this_process: None):
    lines = [row({"image": name}, text) for name in ("a.png", "b.png") for text in ("alpha", "gamma")]
    (home / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    flags = {"hf_model_path": str(model), "dataset": str(home / "rows.jsonl"), "storage_path": str(home / "runs")}
    spec = load_spec({**flags, "validation_split": "0.25"})

    def build() -> Any:
        return prepare(spec, str(model), chat=True, sample_multiple=1, architecture=QWEN)

    prepared = build()
    assert prepared.manifest["images"] == 2 and build().reused
    images = ImageFile(prepared.path / IMAGES)
    assert [images[0], images[1]] == [png(112, 56), png(56, 56)]
    parts = [list(samples_in(RowFile(prepared.path / f"{part}.arrow"))) for part in ("train", "validation")]
    assert sorted(one for samples in parts for sample in samples for one in sample.images) == [0, 0, 1, 1]
    assert not list(prepared.path.glob("*.tmp"))
    (home / "rows.jsonl").write_text(json.dumps(row({"image": "no.png"})) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl line 1: image 1, \"no.png\": no such file in"):
        build()

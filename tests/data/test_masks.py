"""What rows and flags say about what is trained, with real tokenizers and published templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.conftest import write_shape_only_model
from tests.data.masks import stretches
from tests.data.published import TOOL, Published, Row, encoder_of, published, small_tokenizer
from tests.data.templates import marked
from tests.data.test_encode import Encode, conversation, expected

from raymb.data.encode import Encoder
from raymb.data.encoded import Encoded
from raymb.data.prepare import prepare
from raymb.data.samples import samples_in
from raymb.data.settings import Settings
from raymb.data.shapes import Shape
from raymb.data.sources import Batch
from raymb.data.store import RowFile
from raymb.spec import load_spec

TEMPLATES = published()
USER, ANSWER = {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}
USER1, ANSWER1 = {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "It was."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "day": None}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": "sunny"}


@pytest.fixture
def encoder(tmp_path: Path) -> Callable[..., Encoder]:
    """With a published template, by its name, or one that is given."""

    def make(template: str, **changes: Any) -> Encoder:
        found = TEMPLATES.get(template) or Published("given", template)
        return encoder_of(found, tmp_path / str(len(list(tmp_path.iterdir()))), **changes)

    return make


def encoded(encoder: Encoder, *rows: Row, **more: Any) -> Encoded:
    given = [json.dumps(row).encode() for row in rows]
    found = encoder.encode(Batch("rows.jsonl line", range(1, len(rows) + 1), given, 0, **more))
    assert found.problems == []
    return found


def texts(encoder: Encoder, *rows: Row) -> list[tuple[str, list[str]]]:
    """(text, trained stretches) of each row."""
    found, begin, read = encoded(encoder, *rows), 0, []
    for length in found.lengths.tolist():
        ids, trained = (one[begin : begin + length].tolist() for one in (found.tokens, found.trained))
        pieces = [encoder.tokenizer.decode(ids[a:b]) for a, b in stretches(trained)]
        read.append((encoder.tokenizer.decode(ids), pieces))
        begin += length
    return read


def trained(encoder: Encoder, row: Row) -> list[str]:
    return texts(encoder, row)[0][1]


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen", "Llama 3"])
def test_an_answer_may_hold_what_ends_a_turn(name: str, encode: Encode, tokenizers: dict[str, Path]) -> None:
    end = "<|eot_id|>" if name == "Llama 3" else "<|im_end|>"
    rows = [conversation(["a", f"b {end} c", "d", f"{end}e"]), conversation(["a", f"b\n{end}\n", f"{end} d", "e"])]
    assert encode(tokenizers[name], rows) == [expected(tokenizers[name], name, row, "assistant") for row in rows]


def test_blanks_are_trained_with_tokenizers_that_leave_them_out_of_words(
    encode: Encode, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizers["Qwen"])
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.save_pretrained(tmp_path)
    code = "def f():\n        return  1\n\n\n    \n"
    rows = [conversation([f"  {code} ", f" {code}", " and ", "x   y"]), conversation([" a", " b"])]
    assert encode(tmp_path, rows) == encode(tokenizers["Qwen"], rows)
    [(ids, marks)] = encode(tmp_path, rows[:1])
    [first, _] = (tokenizer.decode(ids[a:b]) for a, b in stretches(marks))
    assert first == f" {code}<|im_end|>\n"


def test_tokens_of_no_character_belong_to_the_next(tmp_path: Path) -> None:
    """A tokenizer as Llama 2's, which puts a blank in front of every text between marks."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = "\u2581abcdefghijklmnopqrstuvwxyz?.:"
    fast = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast.decoder = decoders.Replace("\u2581", " ")
    fast.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
        "</s> {% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder(Settings(str(tmp_path), False, None, Shape(), "assistant", 1000, "fail"))
    turns = ["is it?", "it  is.", "and now?", "it was."]
    found = encoded(encoder, conversation(turns))
    ids, marks = found.tokens.tolist(), found.trained.tolist()
    [first, second] = ("".join(tokenizer.convert_ids_to_tokens(ids[a:b])) for a, b in stretches(marks))
    assert first.lstrip("\u2581") == "it\u2581\u2581is.</s>" and second.lstrip("\u2581") == "it\u2581was.</s>"


@pytest.mark.parametrize("key", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}])
def test_a_message_says_that_it_is_not_trained(key: Row, encoder: Callable[..., Encoder]) -> None:
    row = {"messages": [USER, ANSWER | key, USER1, ANSWER1 | {"weight": 1, "train": True}]}
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Is it?"},
            {"from": "gpt", "value": "It is."} | key,
            {"from": "human", "value": "And now?"},
            {"from": "gpt", "value": "It was.", "loss": True},
        ]
    }
    for template in ("qwen2_5", TEMPLATES["qwen3_instruct_2507"].twin, "gptoss", "glm4moe", "phi3"):
        pieces = trained(encoder(template), row)
        assert len(pieces) == 1 and "It was." in pieces[0] and "It is." not in pieces[0]
        assert trained(encoder(template), sharegpt) == pieces
    [text, whole] = texts(encoder("qwen2_5", loss_mode="full"), row)[0]
    assert "".join(whole) == text.replace("\nIt is.<|im_end|>\n", "\n", 1) and len(whole) == 2
    with pytest.raises(AssertionError, match="no token of it is trained"):
        encoded(encoder("qwen2_5", loss_mode="last_turn"), {"messages": [USER, ANSWER | key]})


def test_whose_messages_are_trained(encoder: Callable[..., Encoder]) -> None:
    row = {"messages": [{"role": "system", "content": "Be kind."}, USER, CALLS, TOLD, ANSWER], "tools": [TOOL]}
    roles = {role: trained(encoder("qwen3", train_on_roles=(role,)), row) for role in ("system", "user", "tool")}
    assert roles["user"] == ["Is it?<|im_end|>\n"]
    assert roles["tool"] == ["sunny\n</tool_response><|im_end|>\n"]
    assert roles["system"][0].startswith("Be kind.") and "weather" in roles["system"][0]
    both = trained(encoder("qwen3", train_on_roles=("assistant", "tool")), row)
    assert sorted(both) == sorted(trained(encoder("qwen3"), row) + roles["tool"])
    twin = TEMPLATES["qwen3_instruct_2507"].twin
    assert trained(encoder(twin, train_on_roles=("tool", "user")), row) == roles["user"] + roles["tool"]


def test_a_system_message_for_conversations_without_one(encoder: Callable[..., Encoder]) -> None:
    own = {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER | {"weight": 1}, USER1, ANSWER1]}
    without = {"messages": [USER, ANSWER | {"weight": 0}, USER1, ANSWER1]}
    [(kept, _), (given, pieces)] = texts(encoder("qwen2_5", system_prompt="Be brief."), own, without)
    assert "Be kind." in kept and "Be brief." not in kept
    assert given.startswith("<|im_start|>system\nBe brief.<|im_end|>\n") and pieces == ["It was.<|im_end|>\n"]


def test_variables_of_the_template(encoder: Callable[..., Encoder]) -> None:
    row = {"messages": [USER, ANSWER]}
    plain, changed = (
        texts(encoder("glm4moe", chat_template_kwargs=kwargs), row)[0][0]
        for kwargs in ("{}", '{"enable_thinking": false}')
    )
    assert changed == plain.replace("Is it?", "Is it?/nothink") != plain


def test_the_day_is_always_the_same(encoder: Callable[..., Encoder]) -> None:
    row = {"messages": [USER, ANSWER]}
    for template, day in {"llama3_2": "26 Jul 2024", "gptoss": "2024-07-26"}.items():
        assert day in texts(encoder(template), row)[0][0]
    assert "1 May 2025" in texts(encoder("llama3_2", chat_template_kwargs='{"date_string": "1 May 2025"}'), row)[0][0]


def _thinks(key: str | None) -> Row:
    def answer(text: str, thought: str) -> Row:
        if key is None:
            return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{text}"}
        return {"role": "assistant", "content": text, key: thought}

    return {"messages": [USER, answer("It is.", "Hm one."), USER1, answer("It was.", "Hm two.")]}


def test_what_a_template_leaves_out_is_counted(encoder: Callable[..., Encoder]) -> None:
    rows = {
        "qwen3": ("reasoning_content", {"the reasoning of {n} messages": 1}),
        "nemotron_3_nano": (None, {"the reasoning of {n} messages": 1}),
        "deepseek_r1_distill": (None, {"the reasoning of {n} messages": 2}),
        "qwen2_5": ("reasoning_content", {"the key 'reasoning_content' of {n} messages": 2}),
    }
    for template, (key, counts) in rows.items():
        assert encoded(encoder(template), _thinks(key)).dropped == counts, template
    developer = {"messages": [{"role": "developer", "content": "Be kind.", "mood": "good"}, USER, ANSWER]}
    assert encoded(encoder("phi3"), developer).dropped == {
        "{n} messages of the role developer": 1,
        "the key 'mood' of {n} messages": 1,
    }
    called = {"messages": [USER, CALLS, TOLD, ANSWER], "tools": [TOOL]}
    assert encoded(encoder("phi3"), called).dropped == {
        "the tool calls of {n} messages": 1,
        "{n} messages of the role tool": 1,
        "the tools of {n} rows": 1,
    }


@pytest.mark.parametrize("template", ["nemotron_3_nano", "qwen3_6", "lfm2_2_5_v2"])
def test_reasoning_is_kept_where_a_template_can(template: str, encoder: Callable[..., Encoder]) -> None:
    row = _thinks("thinking" if template.startswith("lfm2") else "reasoning_content")
    before, after = (trained(encoder(template, keep_reasoning=keep), row) for keep in (False, True))
    assert "Hm one." not in "".join(before) and "Hm two." in before[-1]
    assert "Hm one." in after[0] and "Hm two." in after[-1]


def _write_tokenizer(model: Path, template: str) -> None:
    write_shape_only_model(model)
    small_tokenizer(TEMPLATES[template].text).save_pretrained(model)


def test_what_is_left_out_is_said_once(tmp_path: Path, in_this_process: None) -> None:
    model = tmp_path / "model"
    _write_tokenizer(model, "deepseek_r1_distill")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(_thinks(None)) + "\n" for _ in range(40)))
    flags = {"hf_model_path": str(model), "dataset": str(file), "storage_path": str(tmp_path), "seq_length": "2000"}
    prepared = prepare(load_spec(flags), str(model), chat=True, sample_multiple=1)
    assert prepared.manifest["notes"][0] == "the chat template leaves out the reasoning of 80 messages"
    assert prepared.manifest["key"]["settings"]["day"] == "2024-07-26"
    others = prepare(load_spec(flags | {"system_prompt": "Be kind."}), str(model), chat=True, sample_multiple=1)
    assert others.path != prepared.path and others.manifest["parts"] != prepared.manifest["parts"]


@pytest.mark.parametrize("template", ["qwen2_5", "gptoss", "deepseek_r1_distill", "llama3_1", "gemma4_v5"])
def test_arguments_may_be_json(template: str, encoder: Callable[..., Encoder]) -> None:
    function = CALL["function"]
    as_text = CALL | {"function": function | {"arguments": json.dumps(function["arguments"])}}
    rows = [
        {"messages": [USER, CALLS | {"tool_calls": [call]}, TOLD | {"name": "weather"}, ANSWER], "tools": [TOOL]}
        for call in (CALL, as_text)
    ]
    found = texts(encoder(template), *rows)
    assert found[0] == found[1]
    assert "\\" not in found[0][0] and "'city'" not in found[0][0] and "Paris" in "".join(found[0][1])


def test_nulls_that_a_row_wrote_stay(encoder: Callable[..., Encoder], tmp_path: Path, in_this_process: None) -> None:
    row = {"messages": [USER, CALLS, TOLD, ANSWER], "tools": [TOOL]}
    [call, _] = trained(encoder("qwen2_5"), row)
    assert '{"city": "Paris", "day": null}' in call
    parquet.write_table(pa.Table.from_pylist([row] * 2), tmp_path / "rows.parquet")
    model = tmp_path / "model"
    _write_tokenizer(model, "qwen2_5")
    flags = {"hf_model_path": str(model), "dataset": str(tmp_path / "rows.parquet"), "storage_path": str(tmp_path)}
    prepared = prepare(load_spec({**flags, "seq_length": "2000"}), str(model), chat=True, sample_multiple=1)
    from transformers import AutoTokenizer

    sample, *_ = samples_in(RowFile(prepared.path / "train.arrow"))
    assert '{"city": "Paris"}' in AutoTokenizer.from_pretrained(model).decode(sample.ids)


def test_function_calls_of_sharegpt(encoder: Callable[..., Encoder]) -> None:
    call = {"name": "weather", "arguments": {"city": "Paris", "day": None}}
    spoken = [("human", "Is it?"), ("function_call", call), ("observation", "sunny"), ("gpt", "It is.")]
    for value in (
        json.dumps(call),
        json.dumps([call]),
        json.dumps(call | {"arguments": json.dumps(call["arguments"])}),
    ):
        row = {
            "conversations": [{"from": who, "value": value if what is call else what} for who, what in spoken],
            "tools": json.dumps([TOOL]),
        }
        same = {"messages": [USER, CALLS, TOLD, ANSWER], "tools": [TOOL]}
        assert texts(encoder("qwen2_5"), row) == texts(encoder("qwen2_5"), same)


def test_a_completion_ends_once(encoder: Callable[..., Encoder]) -> None:
    for template in ("qwen2_5", "phi3"):
        end = encoder(template).tokenizer.eos_token
        rows = [{"prompt": "Is it?", "completion": f" It is.{more}"} for more in ("", end)]
        found = texts(encoder(template), *rows)
        assert found[0] == found[1] == (f"Is it? It is.{end}", [f" It is.{end}"])


def test_a_template_that_goes_through_tools_which_are_not_there(encoder: Callable[..., Encoder]) -> None:
    template = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + marked("Qwen").replace("if tools", "if false")
    assert trained(encoder(template), {"messages": [USER, ANSWER]}) == ["It is.<|im_end|>\n"]


@pytest.mark.parametrize(
    ("template", "mark"),
    [("qwen2_5", "<|im_end|>"), ("gptoss", "<|return|>"), ("glm4moe", "<|user|>"), ("phi3", "<|end|>")],
)
def test_what_ends_the_last_answer_is_where_the_model_will_stop(
    encoder: Callable[..., Encoder], template: str, mark: str
) -> None:
    """Not what ends a thought or an earlier answer: gpt-oss writes <|end|> there, and would stop before its answer."""
    made = encoder(template)
    found = encoded(made, {"messages": [USER, ANSWER, USER1, ANSWER1]}, {"messages": [USER, ANSWER]})
    assert {made.tokenizer.convert_ids_to_tokens(token): count for token, count in found.ends.items()} == {mark: 2}

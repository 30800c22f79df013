"""Every mistake in data and its flags: exit code 2 and one message with the place, the rule and the flag."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.conftest import write_shape_only_model
from tests.data.templates import unmarked

from raymb.cli import main

GOOD = {"prompt": "Question: 1+1?\nAnswer:", "completion": " 2"}
USER, ASSISTANT = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
CHAT = {"messages": [USER, ASSISTANT]}
TOOL = {"role": "tool", "content": "2"}


def messages(*given: Any) -> dict[str, Any]:
    return {"messages": list(given)}


ROWS: dict[str, tuple[Any, list[str]]] = {
    "invalid JSON": (b'{"prompt": "a", ', ["line 2: not valid JSON", "column"]),
    "not UTF-8": (b'{"prompt": "a\xff", "completion": "b"}', ["line 2: byte 0xff at position 13 is not UTF-8"]),
    "nested too deeply": (b"[" * 100_000, ["line 2: not"]),
    "array": (["a", "b"], ['line 2: found ["a", "b"]; each row must be an object']),
    "no completion": ({"prompt": "a"}, ["line 2: 'completion' is missing; found the columns 'prompt'"]),
    "no prompt": ({"question": "a", "completion": "b"}, ["'prompt' is missing", "--prompt_column"]),
    "nothing": ({}, ["'prompt' is missing; found no columns"]),
    "number for a prompt": ({"prompt": 3, "completion": "b"}, ["prompt is 3; it must be a string"]),
    "null completion": ({"prompt": "a", "completion": None}, ["'completion' is missing"]),
    "list for a completion": (
        {"prompt": "a", "completion": ["b"]},
        ["one of prompt and completion is a list; both must be texts, or both lists of messages"],
    ),
    "empty completion": ({"prompt": "a", "completion": " "}, ["the completion is empty; there is nothing to train on"]),
    "half a surrogate": (b'{"prompt": "\\ud800", "completion": "b"}', ["half of a surrogate pair"]),
    "two kinds in a row": (GOOD | CHAT, ["messages together with prompt and completion"]),
    "no messages": ({"messages": []}, ["messages is []; it must be a list with at least one message"]),
    "text for messages": ({"messages": "hello"}, ['messages is "hello"; a text there must be JSON']),
    "message that is text": (messages("hello"), ['messages[0] is "hello"; it must be an object with role and content']),
    "message without content": (messages({"role": "user"}), ["messages[0] is"]),
    "message without role": (messages({"content": "a"}), ["messages[0] is", "role and content"]),
    "unknown role": (messages({"role": "robot", "content": "a"}), ['messages[0].role is "robot"', "assistant"]),
    "role that is a list": (messages({"role": ["user"], "content": "a"}), ['messages[0].role is ["user"]']),
    "content that is a number": (messages({"role": "user", "content": 1}), ["messages[0].content is 1"]),
    "no answer": (messages(USER), ["no message has the role assistant"]),
    "empty answer": (messages(USER, {"role": "assistant", "content": ""}), ["messages[1].content is empty"]),
    "answer first": (messages(ASSISTANT, USER), ["messages[0] is an assistant message that answers no one"]),
    "system later": (
        messages(USER, ASSISTANT, {"role": "system", "content": "x"}, USER, ASSISTANT),
        ["messages[2] is a system message, but it follows a assistant message; it must be first"],
    ),
    "two users": (messages(USER, USER, ASSISTANT), ["both have the role user; roles must alternate"]),
    "weight of a half": (
        messages(USER, ASSISTANT | {"weight": 0.5}),
        ["messages[1].weight is 0.5; it must be 0 or 1, true or false"],
    ),
    "calls that are text": (
        messages(USER, {"role": "assistant", "tool_calls": "f"}),
        ['messages[1].tool_calls is "f"'],
    ),
    "function call without a name": (
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": '{"arguments": {}}'}]},
        ["conversations[1] is", 'a function call is {"name": ..., "arguments": ...}'],
    ),
    "function call of no JSON": (
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f(x)"}]},
        ['conversations[1] is "f(x)"; a text there must be JSON'],
    ),
    "tool without a call": (messages(USER, TOOL, ASSISTANT), ["messages[1] is a tool message", "assistant's call"]),
    "tools that are text": (CHAT | {"tools": "no JSON"}, ['tools is "no JSON"; a text there must be JSON']),
    "tools that are numbers": (CHAT | {"tools": [1]}, ["tools is [1]; it must be a list of objects"]),
    "unknown ShareGPT speaker": (
        {"conversations": [{"from": "alien", "value": "x"}]},
        ['conversations[0].from is "alien"', "human"],
    ),
}


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape_only_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def refused(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> Callable[..., str]:
    """The message of `raymb data prepare`, which must leave nothing behind."""

    def run(*words: object, model: Path = model) -> str:
        before = sorted(tmp_path.rglob("*"))
        storage = ["--storage_path", tmp_path / "storage", "--hf_model_path", model]
        code = main(["data", "prepare", *map(str, [*storage, *words])])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, ""), captured
        assert captured.err.startswith("error: ") and "Traceback" not in captured.err
        assert sorted(tmp_path.rglob("*")) == before
        return captured.err

    return run


def write(file: Path, *lines: Any) -> Path:
    file.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return file


@pytest.mark.parametrize(("line", "said"), [pytest.param(*case, id=name) for name, case in ROWS.items()])
def test_row(line: Any, said: list[str], refused: Callable[..., str], tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", GOOD, line)
    error = refused("--dataset", file)
    assert f"--dataset {file}: 1 row is wrong\n  {file} line 2: " in error
    assert [part for part in said if part not in error] == []
    assert "a row is {" in error and "--bad_rows drop" in error


FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "empty file": ("a.jsonl", b"", ["no rows to train on"]),
    "blank lines": ("a.jsonl", b"\n \n", ["no rows to train on"]),
    "unknown ending": ("a.xlsx", b"", ["a.xlsx", "the ending says no format", "jsonl"]),
    "broken JSON file": ("a.json", b'[{"prompt": "a",]', ["a.json: not valid JSON", "line 1, column"]),
    "JSON file of numbers": ("a.json", b"[1]", ["row 1: found 1; each row must be an object"]),
    "CSV without the columns": ("a.csv", b"q,a\n1,2\n", ["row 1: 'prompt' is missing; found the columns 'q', 'a'"]),
    "CSV with more fields": ("a.csv", b"prompt,completion\na,b,c\n", ["line 2 has more fields than the 2 columns"]),
    "CSV with fewer fields": ("a.csv", b"prompt,completion\na\n", ["line 2 has fewer fields", "quote fields"]),
    "CSV with an open quote": ("a.csv", b'prompt,completion\na,"b\n', ["a.csv: line", "not valid CSV"]),
    "CSV in Latin 1": ("a.csv", b"prompt,completion\na,caf\xe9\n", ["byte 0xe9 is not UTF-8", "save the file"]),
    "CSV of nothing": ("a.csv", b"", ["no rows to train on"]),
    "TSV with an empty answer": ("a.tsv", b"prompt\tcompletion\na\t \n", ["row 1: the completion is empty"]),
    "Parquet that is none": ("a.parquet", b"PAR1 no", ["not a readable Parquet file"]),
    "gzip that is none": ("a.jsonl.gz", b"no", ["a.jsonl.gz: cannot be read"]),
}


@pytest.mark.parametrize(("name", "content", "said"), [pytest.param(*case, id=name) for name, case in FILES.items()])
def test_file(name: str, content: bytes, said: list[str], refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused("--dataset", tmp_path / name)
    assert [part for part in ["--dataset", *said] if part not in error] == []


def test_parquet_with_numbers(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["a", "b"], "completion": [1, 2]}), file)
    assert f"{file} row 1: completion is 1; it must be a string" in refused("--dataset", file)


FLAGS: dict[str, tuple[str, list[str]]] = {
    "no such file": ("--dataset {tmp}/none.jsonl", ["none.jsonl: no such file or directory", "hub id (owner/name)"]),
    "no such preset": ("--dataset alpaka", ["--dataset alpaka: no such file", "squad", "gsm8k", "tulu3"]),
    "glob of nothing": ("--dataset {tmp}/*.parquet", ["no file matches"]),
    "directory of nothing": ("--dataset {tmp}/empty", ["this directory has no rows to train on"]),
    "weight of nothing": ("--dataset {rows}:0", ["a weight must be greater than 0"]),
    "unknown hub setting": ("--dataset openai/gsm8k?confg=main", ["'confg' is not understood", "?config=NAME"]),
    "unknown address": ("--dataset nosuch://bucket/a.jsonl", ["--dataset nosuch://bucket/a.jsonl: cannot be reached"]),
    "nothing at the address": ("--dataset file://{tmp}/none*.jsonl", ["nothing to read at this URI"]),
    "no such validation rows": ("--dataset {rows} --validation_dataset {tmp}/v.jsonl", ["v.jsonl: no such file"]),
    "half a template": (
        "--dataset {rows} --prompt_template {{prompt}}",
        ["--prompt_template needs --completion_template"],
    ),
    "template without columns": (
        "--dataset {rows} --prompt_template Q --completion_template {{completion}}",
        ["--prompt_template Q: columns are named in braces"],
    ),
    "template with an open brace": (
        "--dataset {rows} --prompt_template {{prompt --completion_template {{completion}}",
        ["--prompt_template {prompt: "],
    ),
    "template with a missing column": (
        "--dataset {rows} --prompt_template {{prompt}}{{context}} --completion_template {{completion}}",
        ["line 1: 'context' of the template is missing; found the columns 'prompt', 'completion'"],
    ),
    "template and column": (
        "--dataset {rows} --prompt_template {{prompt}} --completion_template {{completion}} --prompt_column prompt",
        ["--prompt_template and --prompt_column both say"],
    ),
    "two kinds of columns": (
        "--dataset {rows} --messages_column m --completion_column c",
        ["--messages_column and --completion_column are two kinds of rows"],
    ),
    "column that is not there": ("--dataset {rows} --prompt_column question", ["line 1: 'question' is missing"]),
    "messages column that is not there": ("--dataset {rows} --messages_column chat", ["chat is null"]),
    "chat rows without a template": ("--dataset {chat}", ["has no chat template", "--chat_template FILE"]),
    "template file that is not there": (
        "--dataset {chat} --chat_template {tmp}/t.jinja",
        ["--chat_template", "No such"],
    ),
    "template that is broken": ("--dataset {chat} --chat_template {broken}", ["the chat template refuses it"]),
    "template that shows no turns": (
        "--dataset {chat} --chat_template {shapeless}",
        ["does not say where messages[1] begins", "{% generation %} marks"],
    ),
    "template without answers": ("--dataset {chat} --chat_template {silent}", ["line 1: no token of it is trained"]),
    "shares over 1": (
        "--dataset {rows} --validation_split 0.6 --test_split 0.5",
        ["together they must be less than 1"],
    ),
    "roles of a full loss": (
        "--dataset {rows} --train_on_roles assistant,tool --loss_mode full",
        ["--train_on_roles assistant,tool", "--loss_mode full trains all"],
    ),
    "unknown role to train": ("--dataset {rows} --train_on_roles robot", ["--train_on_roles", "robot", "'assistant'"]),
    "variables that are none": (
        "--dataset {rows} --chat_template_kwargs enable_thinking=false",
        ["--chat_template_kwargs", "must be a JSON object of names and values"],
    ),
    "variables that are taken": (
        '--dataset {rows} --chat_template_kwargs {{"messages":[]}}',
        ["--chat_template_kwargs", "must not name messages, tools"],
    ),
    "empty system prompt": ("--dataset {rows} --system_prompt=", ["--system_prompt", "must have at least 1 character"]),
    "reasoning that cannot be kept": (
        "--dataset {chat} --keep_reasoning --chat_template {forgets}",
        ["--keep_reasoning: this chat template leaves out the reasoning of earlier turns, and has no switch"],
    ),
    "unknown loss": (
        "--dataset {rows} --loss_mode answer",
        ["--loss_mode answer", "'assistant', 'last_turn' or 'full'"],
    ),
    "unknown policy": ("--dataset {rows} --long_rows cut", ["--long_rows cut", "'truncate', 'drop' or 'fail'"]),
    "two lengths of a run": ("--dataset {rows} --train_iters 5 --num_epochs 2", ["--train_iters 5 and --num_epochs 2"]),
    "no epochs": ("--dataset {rows} --num_epochs 0", ["--num_epochs 0", "greater than 0"]),
    "epochs without end": ("--dataset {rows} --num_epochs inf", ["--num_epochs inf", "finite number"]),
    "epochs in words": ("--dataset {rows} --num_epochs two", ["--num_epochs two", "number"]),
    "no validation samples": (
        "--dataset {rows} --max_validation_samples 0",
        ["--max_validation_samples 0", "greater than or equal to 1"],
    ),
    "half a validation sample": (
        "--dataset {rows} --max_validation_samples 0.5",
        ["--max_validation_samples 0.5", "whole number"],
    ),
    "batches of a validation": (
        "--dataset {rows} --eval_iters 4",
        ["--eval_iters", "--max_validation_samples"],
    ),
    "batches of a validation, as Bridge names them": (
        "--dataset {rows} validation.eval_iters=4",
        ["validation.eval_iters", "--max_validation_samples"],
    ),
    "a batch of a validation, as Bridge names it": (
        "--dataset {rows} validation.eval_micro_batch_size=4",
        ["validation.eval_micro_batch_size", "--micro_batch_size"],
    ),
    "best of no validation": (
        "--dataset {rows} --export_checkpoint best --eval_interval 0",
        ["--export_checkpoint best needs validations: --eval_interval more than 0"],
    ),
    "rows too long": ("--dataset {rows} --seq_length 4 --long_rows fail", ["longer than --seq_length 4", "line 1"]),
    "nothing left of the rows": ("--dataset {rows} --seq_length 4", ["no row has a trained token left", "line 1"]),
}


@pytest.mark.parametrize(("line", "said"), [pytest.param(*case, id=name) for name, case in FLAGS.items()])
def test_flags(line: str, said: list[str], refused: Callable[..., str], tmp_path: Path) -> None:
    places = {
        "rows": write(tmp_path / "rows.jsonl", GOOD, GOOD),
        "chat": write(tmp_path / "chat.jsonl", CHAT),
        "broken": tmp_path / "broken.jinja",
        "shapeless": tmp_path / "shapeless.jinja",
        "silent": tmp_path / "silent.jinja",
        "forgets": tmp_path / "forgets.jinja",
    }
    places["broken"].write_text("{{ raise_exception('only one message, please') }}")
    places["shapeless"].write_text(
        "{% for m in messages %}{{ m.content }}{% if not loop.last %} + {% endif %}{% endfor %}={{ messages | length }}"
    )
    places["silent"].write_text(
        "{{ messages[0].content }}{% if false %}{% generation %}x{% endgeneration %}{% endif %}"
    )
    places["forgets"].write_text("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}")
    (tmp_path / "empty").mkdir()
    error = refused(*line.format(tmp=tmp_path, **places).split())
    assert [part for part in said if part not in error] == []


def test_a_template_that_looks_at_texts(refused: Callable[..., str], tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", messages(USER, ASSISTANT, USER, ASSISTANT))
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[1].content | length }}: " + unmarked("Qwen"))
    error = refused("--dataset", file, "--chat_template", template)
    assert "writes something else when its messages are marked" in error and "{% generation %} marks" in error


def test_many_mistakes_are_counted(refused: Callable[..., str], tmp_path: Path) -> None:
    error = refused("--dataset", write(tmp_path / "a.jsonl", *[b"{"] * 9))
    assert "9 rows are wrong" in error and "line 5: " in error and "line 6: " not in error and "and 4 more" in error


def test_broken_tokenizer(
    refused: Callable[..., str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = write_shape_only_model(tmp_path_factory.mktemp("model") / "broken")
    (model / "tokenizer.json").write_text("{}")
    error = refused("--dataset", write(tmp_path / "a.jsonl", GOOD), model=model)
    assert f"--hf_model_path {model}: its tokenizer cannot be loaded" in error


def test_a_tokenizer_that_knows_more_than_its_model(
    refused: Callable[..., str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Such as one that a token was added to: its row, its number and its text are named."""
    from tokenizers import Tokenizer

    model = write_shape_only_model(tmp_path_factory.mktemp("model") / "larger")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens([f"<new-{number}>" for number in range(60)])
    tokenizer.save(str(model / "tokenizer.json"))
    rows = [{"prompt": "Q", "completion": f" A{number}"} for number in range(9)]
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    new = tokenizer.token_to_id("<new-59>")
    assert new >= size
    file = write(tmp_path / "a.jsonl", *rows, {"prompt": "Q", "completion": "<new-59>"})
    error = refused("--dataset", file, model=model)
    assert f"{file} line 10: token {new} ('<new-59>') is beyond the model's embedding of {size} rows" in error


def test_too_few_rows_for_a_batch(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    file = write(tmp_path / "a.jsonl", *[GOOD] * 8)
    words = ["--hf_model_path", model, "--dataset", file, "--storage_path", tmp_path, "--validation_split", 0]
    assert main(["finetune", "--dry_run", *map(str, words), "--packing", "--backend", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "the 1 packed training rows do not fill one global batch of 8" in error and "leave --packing out" in error


def test_storage_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", GOOD)
    assert "--storage_path" in refused("--dataset", file, "--storage_path", file)


def test_unknown_part(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None) -> None:
    file = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "prompt": "another"})
    words = ["--hf_model_path", model, "--dataset", file, "--storage_path", tmp_path, "--part", "test"]
    assert main(["data", "inspect", *map(str, words)]) == 2
    assert "--part test: there are no such rows\n  there are rows for train, validation" in capsys.readouterr().err

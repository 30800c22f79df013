"""Bad shapes, keys, weights and sources: each exits 2 with exactly this message, and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from tests.conftest import write_shape_only_model

from raymb.cli import main
from raymb.data.locate import WAYS_OUT
from raymb.data.shapes import ROW_RULE

ROWS = [{"prompt": f"p{number}", "completion": f" c{number}"} for number in range(40)]
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
BOTH = "both must be texts, or both lists of messages"

BAD_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an instruction without an output": (
        {"instruction": "Sort.", "input": "2 1"},
        "",
        "'output' is missing; found the columns 'instruction', 'input'",
    ),
    "an instruction with an empty output": (
        {"instruction": "Sort.", "output": "\n"},
        "",
        "the output is empty; there is nothing to train on",
    ),
    "an input that is no text": (
        {"instruction": "Sort.", "input": [2, 1], "output": "1 2"},
        "",
        "input is [2, 1]; it must be a string",
    ),
    "history that is no pairs": (
        {"instruction": "Sort.", "output": "1", "history": [["Hi", "Hello."], "Ready?"]},
        "",
        'history[1] is "Ready?"; it must be a pair [question, answer]',
    ),
    "history of messages": (
        {"instruction": "Sort.", "output": "1", "history": [HI, HELLO]},
        "",
        'history[0] is {"role": "user", "content": "Hi"}; it must be a pair [question, answer]',
    ),
    "history with an empty answer": (
        {"instruction": "Sort.", "output": "1", "history": [["Hi", ""]]},
        "",
        "history[0][1] is empty; an answer is what is trained on",
    ),
    "a question without an answer": (
        {"question": "1+1?", "answer": None},
        "",
        "'prompt' is missing; found the columns 'question'",
    ),
    "a question about a text": (
        {"context": "C.", "question": "1+1?", "answer": "2"},
        "",
        "found 'context' beside question and answer; a prompt may need it: say what is asked with "
        "--prompt_template and --completion_template",
    ),
    "an answer that is a number": ({"question": "1+1?", "answer": 2}, "", "answer is 2; it must be a string"),
    "a document without words": ({"text": " \n"}, "", "the text is empty; there is nothing to train on"),
    "a document that is a list": ({"text": ["a"]}, "", 'text is ["a"]; it must be a string'),
    "a column of documents that is not there": (
        {"text": "a"},
        "--text_column content",
        "'content' is missing; found the columns 'text'",
    ),
    "a prompt of messages and a completion of text": (
        {"prompt": [HI], "completion": "Hello."},
        "",
        f"one of prompt and completion is a list; {BOTH}",
    ),
    "a completion that asks": (
        {"prompt": [HI, HELLO], "completion": [HI]},
        "",
        "the completion has no message with the role assistant; there is nothing to train on",
    ),
    "a question in two columns": (
        {"prompt": [HI], "completion": [HI, HELLO]},
        "",
        "completion[0] and the message before it both have the role user; roles must alternate",
    ),
    "a prompt without messages": (
        {"prompt": [], "completion": [HELLO]},
        "",
        "prompt is []; it must be a list with at least one message",
    ),
    "two system messages": (
        {"messages": [{"role": "system", "content": "A."}, HI, HELLO], "system": "B."},
        "",
        "found the column system together with a system message; use one of them",
    ),
    "a system column that is a list": (
        {"messages": [HI, HELLO], "system": ["B."]},
        "",
        'system is ["B."]; it must be a string',
    ),
    "messages with other keys": (
        {"messages": [{"role": "user", "content": "Hi"}]},
        "--message_keys role=speaker",
        "messages[0] has no 'speaker', its role; found the keys 'role', 'content' (--message_keys)",
    ),
    "messages with other roles": (
        {"messages": [{"role": "asker", "content": "Hi"}, {"role": "helper", "content": "Hello."}]},
        "--role_names user=asker",
        'messages[1].role is "helper"; it must be one of system, developer, user, assistant, tool',
    ),
}


FLAGS: dict[str, tuple[str, str]] = {
    "a name that is no key of a message": (
        "--message_keys speaker=role",
        "--message_keys speaker=role: must be NAME=VALUE with commas between them, each NAME once and one of role, "
        "content",
    ),
    "a role twice": (
        "--role_names user=a,user=b",
        "--role_names user=a,user=b: must be NAME=VALUE with commas between them, each NAME once and one of system, "
        "developer, user, assistant, tool",
    ),
    "a role without a name": (
        "--role_names user=",
        "--role_names user=: must be NAME=VALUE with commas between them, each NAME once and one of system, developer, "
        "user, assistant, tool",
    ),
    "keys of messages for documents": (
        "--message_keys role=speaker --text_column text",
        "--message_keys is of messages, and with --text_column rows have none; give one of them",
    ),
    "documents with prompts": (
        "--text_column text --prompt_column prompt",
        "--text_column and --prompt_column are two kinds of rows; give one of them",
    ),
    "no samples": ("--max_samples 0", "--max_samples 0: must be greater than or equal to 1"),
    "a data seed that is none": ("--data_seed -1", "--data_seed -1: must be greater than or equal to 1"),
    "streaming by halves": ("--streaming some", "--streaming some: must be true or false or 'auto'"),
    "the first no rows": (
        "--dataset {rows}#0",
        "--dataset {rows}#0: #0 asks for no rows\n  leave a data set out that is not wanted",
    ),
    "a share of nothing else": (
        "--dataset {rows}:0.5",
        "--dataset {rows}:0.5: a share of a mix, and this is the only data set\n"
        "  leave it out, or take the first rows: {rows}#500",
    ),
    "a data set without a share": (
        "--dataset {rows}:0.7 --dataset {other}",
        "--dataset {other} has no weight, and {rows} has 0.7, its share of the mix\n"
        "  give {other} a share, too, for example {other}:0.3",
    ),
    "a share that is no row": (
        "--dataset {rows}:0.99 --dataset {other}:0.01",
        "--dataset {other}:0.01 uses none of its 39 rows: no row is repeated, and {rows} has 39\n"
        "  raise the weight of {other}; weights above 1 repeat rows, for example {rows}:10 and {other} without a "
        "weight",
    ),
    "times that are no row": (
        "--dataset {rows}:2 --dataset {other}:0.01",
        "--dataset {other}:0.01 uses none of its 39 rows\n  raise its weight",
    ),
    "a weight of validation rows": (
        "--dataset {rows} --validation_dataset {other}:0.5",
        "--validation_dataset {other}:0.5: a weight says how training rows are mixed\n  leave it out",
    ),
    "a column twice": (
        "--dataset {twice}",
        "--dataset {twice}: 2 columns of its first line are called 'prompt'\n  give each column a name of its own",
    ),
    "a glob with a question mark": (
        "--dataset part?.jsonl",
        "--dataset part?.jsonl: no file matches\n  {ways}",
    ),
    "splits of save_to_disk without train": (
        "--dataset {saved}",
        "--dataset {saved}: no split is called train; there are one, two\n  give the directory of one of them",
    ),
    "an address of a directory without rows": (
        "--dataset file://{empty}",
        "--dataset file://{empty}: this directory has no rows to train on (train.jsonl)\n  {ways}",
    ),
}


@pytest.fixture(scope="session")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape_only_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def message(
    tmp_path: Path, bare_model: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> Callable[..., str]:
    """Of `raymb data prepare`, which must leave nothing behind."""

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()  # datasets shows how it saves
        given = ["--hf_model_path", str(bare_model), "--storage_path", str(tmp_path / "storage")]
        code = main(["data", "prepare", *given, *words])
        captured = capsys.readouterr()
        assert (code, captured.out, sorted(tmp_path.rglob("*"))) == (2, "", before)
        return captured.err

    return run


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(("row", "flags", "said"), [pytest.param(*case, id=name) for name, case in BAD_ROWS.items()])
def test_a_bad_row(row: dict[str, Any], flags: str, said: str, message: Callable[..., str], tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row])
    wrong = f"--dataset {file}: 1 row is wrong\n  {file} line 1: {said}\n  {ROW_RULE}; --bad_rows drop leaves them out"
    assert message("--dataset", str(file), *flags.split()) == f"error: {wrong}\n"


@pytest.mark.parametrize(("line", "said"), [pytest.param(*case, id=name) for name, case in FLAGS.items()])
def test_a_bad_flag(line: str, said: str, message: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("prompt,completion,prompt\na,b,c\n")
    (tmp_path / "empty").mkdir()
    splits = {name: Dataset.from_list(ROWS[:2]) for name in ("one", "two")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    places = {
        "rows": write(tmp_path / "rows.jsonl", ROWS),
        "other": write(tmp_path / "other.jsonl", ROWS),
        "twice": tmp_path / "twice.csv",
        "saved": tmp_path / "saved",
        "empty": tmp_path / "empty",
        "ways": WAYS_OUT,
    }
    words = line.format(**places).split()
    if "--dataset" not in words:
        words += ["--dataset", str(places["rows"])]
    assert message(*words) == f"error: {said.format(**places)}\n"

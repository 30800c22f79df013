"""What counts as secret, and what an address looks like without what is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymb.cli import main
from raymb.credentials import has_credentials, is_harmless, redacted
from raymb.driver.environment import given_variables, without_secrets_of
from raymb.errors import SpecError
from raymb.spec import load_spec, spec_as_yaml, spec_to_json

HIDDEN = "swordfish"
ADDRESSES = {
    f"https://me:{HIDDEN}@host/rows.jsonl": "https://***@host/rows.jsonl",
    f"https://{HIDDEN}@github.com/a/b": "https://***@github.com/a/b",
    f"https://me:{HIDDEN}@{HIDDEN}@host/x": "https://***@host/x",
    f"s3://KEY:{HIDDEN}/with+slash@bucket/x#100:2": "s3://***@bucket/x#100:2",
    f"https://host/x?token={HIDDEN}&split=train#100": "https://host/x?token=***&split=train#100",
    f"https://host/x?X-Amz-Date=1&X-Amz-Signature={HIDDEN}": "https://host/x?X-Amz-Date=1&X-Amz-Signature=***",
    f"https://account.blob.core.windows.net/x?se=1&sig={HIDDEN}": "https://account.blob.core.windows.net/x?se=1&sig=***",
    f"https://host/x?api_key={HIDDEN}": "https://host/x?api_key=***",
    f"postgresql+psycopg2://me:{HIDDEN}@host/db": "postgresql+psycopg2://***@host/db",
}
INNOCENT = (
    *("s3://bucket/a@b", "http://host:8080/a@b", "abfss://data@account.dfs.core.windows.net/x", "sftp://me@host/x"),
    *(
        "hf://datasets/a/b@main/x",
        "owner/name?config=x",
        "https://host/x?split=train&design=2",
        "/data/a:b@c",
        "C:/x@y",
    ),
)


@pytest.mark.parametrize(("address", "shown"), ADDRESSES.items())
def test_an_address_without_its_password(address: str, shown: str) -> None:
    assert redacted(f"cannot read '{address}', or {address}") == f"cannot read '{shown}', or {shown}"
    assert has_credentials(address) and not has_credentials(shown)


@pytest.mark.parametrize("address", INNOCENT)
def test_an_address_that_has_none_stays(address: str) -> None:
    assert redacted(address) == address


@given(st.text(min_size=1), st.text(min_size=12))
def test_no_quoted_password_is_left(user: str, password: str) -> None:
    written = quote(password, safe="")
    assert written not in redacted(f"see ftp://{quote(user, safe='')}:{written}@host/x and so on")


@pytest.mark.parametrize(
    "flag", ["dataset", "validation_dataset", "hf_model_path", "storage_path", "output_dir", "resume", "chat_template"]
)
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_flag_takes_an_address_with_a_password(flag: str, address: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec({"hf_model_path": "some/model", flag: address})
    assert f"--{flag}: a password or token in the URI would be stored" in str(refused.value)
    assert HIDDEN not in str(refused.value) + repr(refused.value)


def test_nor_does_an_override_or_a_command_that_reads_a_uri(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["plan", "--hf_model_path", "sample"]
    for words in (
        [*model, f"dataset.path=https://me:{HIDDEN}@host"],
        [*model, "--num_workers", f"https://me:{HIDDEN}@host"],
        ["finetune", f"--unknown=https://me:{HIDDEN}@host"],
        ["runs", f"s3://key:{HIDDEN}@bucket/runs"],
        ["report", f"s3://key:{HIDDEN}@bucket/runs/run"],
        ["submit", "ray", *model[1:], "--address", f"http://me:{HIDDEN}@host:8265"],
    ):
        assert main(words) == 2
        assert HIDDEN not in (said := capsys.readouterr().err) and said.startswith("error: ")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *((name, "x", True) for name in ("NCCL_DEBUG", "PYTHONPATH", "LD_PRELOAD", "HF_HOME", "AWS_REGION", "OMP_X")),
        *((name, "x", False) for name in ("HF_TOKEN", "HF_NEW", "MINE", "NVIDIA_API_KEY", "WANDB_API_KEY", "NCCL_KEY")),
        ("HF_ENDPOINT", "https://hub", True),
        ("HF_ENDPOINT", "https://me:swordfish@hub", False),
    ],
)
def test_only_what_is_known_is_harmless(name: str, value: str, expected: bool) -> None:
    assert is_harmless(name, value) == expected


def test_a_spec_is_stored_with_what_is_harmless() -> None:
    spec = load_spec({"hf_model_path": "some/model", "env": {"NCCL_DEBUG": "INFO", "MINE": HIDDEN}})
    assert spec.cluster.env["MINE"] == HIDDEN
    for text in (spec_to_json(spec), spec_as_yaml(spec)):
        assert HIDDEN not in text and "INFO" in text


@pytest.mark.parametrize(
    "word", [f"MINE={HIDDEN}", f"HF_TOKEN={HIDDEN}", f"HF_ENDPOINT=https://me:{HIDDEN}@hub", "MINE"]
)
def test_a_variable_of_any_name_is_taken_and_not_shown(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINE", HIDDEN)
    assert main(["plan", "--hf_model_path", "sample", "--env", word, "--env", "NCCL_DEBUG=INFO"]) == 0
    assert HIDDEN not in "".join(capsys.readouterr())


@pytest.mark.parametrize("word", ["MINE", HIDDEN, f"A-B={HIDDEN}", f"={HIDDEN}", f"1A={HIDDEN}", f"{HIDDEN}-=="])
def test_a_variable_without_a_name_or_a_value_is_refused_without_its_value(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MINE", raising=False)
    assert main(["plan", "--hf_model_path", "sample", "--env", word]) == 2
    said = capsys.readouterr().err
    assert "NAME=VALUE is expected" in said and HIDDEN not in said


SHOWN = """
import os, sys
from pathlib import Path
from raymb.cli.own_words import own_words
words, seen = own_words(), Path("/proc/self/cmdline").read_text().split(chr(0))[:-1]
print(words, sys.argv[1:], seen[len(seen) - len(words):], "swordfish" in str(os.environ), sep=chr(10))
"""
PAIRS = {
    "--env": "--env",
    f"MINE={HIDDEN}": "MINE=***",
    f"--env=HF_TOKEN={HIDDEN}=x": "--env=HF_TOKEN=***",
    "--env=NCCL_DEBUG=INFO": "--env=NCCL_DEBUG=INFO",
    "a b": "a b",
    "section.field=value": "section.field=value",
}
"""A command line's words, and what is seen of them."""


@pytest.mark.parametrize("program", [["{file}"], ["-c", SHOWN], ["-X", "dev", "{file}"]], ids=["file", "text", "flags"])
def test_a_value_leaves_the_command_line_before_anybody_keeps_it(program: list[str], tmp_path: Path) -> None:
    """Ray would keep the driver's, in its list of jobs and in its logs."""
    (tmp_path / "program.py").write_text(SHOWN)
    begin = [sys.executable, *(word.replace("{file}", str(tmp_path / "program.py")) for word in program)]
    for words in (list(PAIRS), ["a b", "MINE=1"]):
        shown = [PAIRS.get(word, word) for word in words]
        done = subprocess.run(
            [*begin, *words], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "src"}
        )
        assert done.stdout.splitlines() == [str(words), str(shown), str(shown), "False"]


def test_what_reaches_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = ("AWS_REGION", "AZURE_CLIENT_ID", "GOOGLE_CLOUD_PROJECT", "FSSPEC_S3_KEY", "S3_ENDPOINT", "X_ENDPOINT_URL")
    for name in (*stores, "HF_TOKEN", "OTHER"):
        monkeypatch.setenv(name, name.lower())
    found = given_variables({"MINE": "1", "HF_TOKEN": "2"})
    assert {*stores, "HF_TOKEN", "MINE"} <= found.keys() and "OTHER" not in found
    assert found["HF_TOKEN"] == "2" and found["S3_ENDPOINT"] == "s3_endpoint"
    with without_secrets_of(load_spec({"hf_model_path": "some/model", "env": {"OTHER": "given"}})):
        assert "HF_TOKEN" not in os.environ and "OTHER" not in os.environ and "AWS_REGION" in os.environ
    assert os.environ["HF_TOKEN"] == "hf_token" and os.environ["OTHER"] == "other"

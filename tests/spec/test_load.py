"""Merging defaults, YAML, flags and overrides; mistakes in flag names, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymb.errors import SpecError
from raymb.spec import (
    FLAG_THAT_OWNS,
    SECTION_OF_FLAG,
    SECTIONS,
    load_spec,
    spec_as_yaml,
    spec_from_json,
    spec_to_json,
    worker_range,
)

MODEL = {"hf_model_path": "some/model"}


def yaml_file(directory: Path, text: str, name: str = "run.yaml") -> Path:
    file = directory / name
    file.write_text(text)
    return file


def problems_of(flags: dict, files: list[Path] | None = None, overrides: list[str] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(flags, files or [], overrides or [])
    return str(caught.value)


def test_flags_win_over_later_files_over_earlier_files_over_defaults(tmp_path):
    first = yaml_file(
        tmp_path, "model: {hf_model_path: a/b}\ntrain: {train_iters: 7, global_batch_size: 4}\n", "1.yaml"
    )
    second = yaml_file(tmp_path, "train: {global_batch_size: 16}\noptimizer: {learning_rate: 2e-4}\n", "2.yaml")
    spec = load_spec({"train_iters": "9", "seed": None}, [first, second])
    assert (spec.train.train_iters, spec.train.global_batch_size, spec.optimizer.learning_rate) == (9, 16, 2e-4)
    assert (spec.model.hf_model_path, spec.train.seed) == ("a/b", 1234)


def test_env_flags_are_added_to_those_of_the_file(tmp_path):
    file = yaml_file(tmp_path, "cluster: {env: {NCCL_DEBUG: WARN, A: one}}\n")
    spec = load_spec(MODEL | {"env": {"NCCL_DEBUG": "INFO"}}, [file])
    assert spec.cluster.env == {"NCCL_DEBUG": "INFO", "A": "one"}


def test_strings_from_the_command_line_become_typed_values():
    spec = load_spec(
        MODEL | {"num_workers": "8", "tensor_parallel_size": "2", "sequence_parallel": "false", "learning_rate": "1e-6"}
    )
    assert (spec.parallel.num_workers, spec.parallel.tensor_parallel_size) == (8, 2)
    assert (spec.parallel.sequence_parallel, spec.optimizer.learning_rate) == (False, 1e-6)
    assert spec.parallel.pipeline_parallel_size == "auto"


def test_a_stored_spec_repeats_the_run(tmp_path):
    spec = load_spec(MODEL | {"learning_rate": "3e-5", "output_dir": "/x"}, [], ["ddp.bucket_size=100"])
    stored = yaml_file(tmp_path, spec_to_json(spec), "spec.json")
    assert load_spec({}, [stored]) == spec
    assert spec_from_json(stored.read_text()) == spec


@pytest.mark.parametrize(
    ("asked", "expected"), [("8", (8, 8)), ("4:16", (4, 16)), ("4:4", (4, 4)), ("1:100", (1, 100))]
)
def test_a_range_of_workers_is_stored_as_it_was_written(tmp_path, asked, expected):
    spec = load_spec(MODEL | {"num_workers": asked})
    assert str(spec.parallel.num_workers) == asked
    assert worker_range(spec.parallel) == expected
    stored = yaml_file(tmp_path, spec_to_json(spec), "spec.json")
    assert load_spec({}, [stored]) == spec == spec_from_json(stored.read_text())
    assert load_spec({}, [yaml_file(tmp_path, spec_as_yaml(spec))]) == spec


@pytest.mark.parametrize("text", ["4:16", "'4:16'", "4:16  # elastic", "4:64"])
def test_yaml_reads_a_range_of_workers_as_text_and_not_in_base_60(tmp_path, text):
    spec = load_spec(
        MODEL, [yaml_file(tmp_path, f"resilience: {{max_time: 1:30:00}}\nparallel:\n  num_workers: {text}\n")]
    )
    assert worker_range(spec.parallel) in ((4, 16), (4, 64))
    assert spec.resilience.max_time == "1:30:00"


@pytest.mark.parametrize("value", ["4:", ":4", "0:4", "4:0", "04:8", "4-16", "4:8:16", " 4:8", "0", "-4:8", "1.5:4"])
def test_what_is_no_range_of_workers(value):
    text = problems_of(MODEL | {"num_workers": value})
    assert f"--num_workers {value}: must be " in text
    assert "or MIN:MAX, two whole numbers from 1 up such as 4:16" in text


def test_a_number_that_is_no_size_is_told_the_same_from_yaml(tmp_path):
    text = problems_of(MODEL, [yaml_file(tmp_path, "parallel: {num_workers: -1}\n")])
    assert "--num_workers -1: must be greater than or equal to 1 or MIN:MAX" in text


def test_a_range_of_workers_has_its_least_first():
    text = problems_of(MODEL | {"num_workers": "16:4"})
    assert "--num_workers 16:4 is MIN:MAX, and 16 is more than 4; write --num_workers 4:16" in text


def test_overrides_are_typed_and_a_later_one_wins():
    words = ["optimizer.decoupled_lr=1e-4", "ddp.bucket_size=5", "ddp.bucket_size=6", "a.b=true", "a.c=[1, x]", "a.d="]
    spec = load_spec(MODEL, [], words)
    assert spec.overrides == {
        "optimizer.decoupled_lr": 1e-4,
        "ddp.bucket_size": 6,
        "a.b": True,
        "a.c": [1, "x"],
        "a.d": None,
    }


def test_every_mistake_is_reported_at_once(tmp_path):
    file = yaml_file(tmp_path, "train: {train_itres: 5, micro_batch_size: 0}\ntrian: {}\n")
    text = problems_of({"num_workers": "-1", "adam_beta1": "one"}, [file], ["optimizer.lr=1", "nonsense"])
    for part in (
        "--hf_model_path is needed",
        "unknown key train.train_itres; did you mean 'train_iters'?",
        "unknown section 'trian'; did you mean 'train'?",
        "--micro_batch_size 0: must be greater than or equal to 1 or 'auto'",
        "--num_workers -1: must be greater than or equal to 1",
        "--adam_beta1 one: must be a number",
        "override optimizer.lr: this field belongs to the flag --learning_rate",
        "override 'nonsense': section.field=value is expected",
    ):
        assert part in text


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(tmp_path):
    file = yaml_file(tmp_path, "train: {num_workers: 2}\nseq_length: 5\n")
    text = problems_of(MODEL, [file])
    assert "unknown key train.num_workers (it belongs into section parallel)" in text
    assert "unknown section 'seq_length' (it belongs into section data)" in text


@pytest.mark.parametrize("content", ["- a\n- b\n", "1: {a: 2}\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content):
    assert "a mapping of sections is expected" in problems_of(MODEL, [yaml_file(tmp_path, content)])


def test_an_empty_file_changes_nothing(tmp_path):
    assert load_spec(MODEL, [yaml_file(tmp_path, "")]) == load_spec(MODEL)


def test_flag_names_are_unique_and_every_flag_is_documented():
    fields = [(flag, field) for section in SECTIONS.values() for flag, field in section.model_fields.items()]
    assert len(fields) == len(SECTION_OF_FLAG)
    assert [flag for flag, field in fields if not field.description] == []


def test_no_container_field_has_two_owners():
    paths = [
        path
        for section in SECTIONS.values()
        for field in section.model_fields.values()
        for path in (field.json_schema_extra or {}).get("bridge", [])
    ]
    assert len(paths) == len(set(paths)) == len(FLAG_THAT_OWNS)

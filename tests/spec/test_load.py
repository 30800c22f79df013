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


def test_keys_and_roles_of_messages_are_pairs_in_every_spelling(tmp_path):
    file = tmp_path / "run.yaml"
    expected = {"role": "speaker", "content": "what is said"}
    for text in ("{role: speaker, content: what is said}", "'role=speaker,content=what is said'"):
        file.write_text(f"model: {{hf_model_path: m}}\ndata: {{message_keys: {text}}}\n")
        assert load_spec({}, [file]).data.message_keys == expected
    for words in (["role=speaker,content=what is said"], ["role=speaker", "content=what is said"]):
        spec = load_spec({"hf_model_path": "m", "message_keys": words})
        assert spec.data.message_keys == expected
    assert spec_from_json(spec_to_json(spec)) == spec


def test_the_data_seed_is_the_seed_unless_it_is_given():
    seeds = [
        load_spec({"hf_model_path": "m", **flags}).data_seed
        for flags in ({}, {"seed": "5"}, {"seed": "5", "data_seed": "7"})
    ]
    assert seeds == [1234, 5, 7]


def test_a_stored_spec_repeats_the_run(tmp_path):
    spec = load_spec(MODEL | {"learning_rate": "3e-5", "output_dir": "/x"}, [], ["ddp.bucket_size=100"])
    stored = yaml_file(tmp_path, spec_to_json(spec), "spec.json")
    assert load_spec({}, [stored]) == spec
    assert spec_from_json(stored.read_text()) == spec


@pytest.mark.parametrize("flag", ["num_workers", "data_parallel_size"])
@pytest.mark.parametrize(
    ("asked", "expected"), [("8", (8, 8)), ("4:16", (4, 16)), ("4:4", (4, 4)), ("1:100", (1, 100)), ("auto", (1, 1))]
)
def test_a_range_is_stored_as_it_was_written(tmp_path, flag, asked, expected):
    spec = load_spec(MODEL | {flag: asked})
    assert str(getattr(spec.parallel, flag)) == asked
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


def test_yaml_has_the_data_parallel_size_and_a_later_flag_wins(tmp_path):
    file = yaml_file(tmp_path, "parallel: {data_parallel_size: 1:4, tensor_parallel_size: 2}")
    assert worker_range(load_spec(MODEL, [file]).parallel) == (2, 8)
    assert load_spec(MODEL | {"data_parallel_size": "3"}, [file]).parallel.data_parallel_size == 3
    workers = yaml_file(tmp_path, "parallel: {num_workers: 8}", "workers.yaml")
    spec = load_spec(MODEL | {"num_workers": "auto", "pipeline_parallel_size": "2"}, [workers, file])
    assert worker_range(spec.parallel) == (4, 16)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (1, 1)),
        ({"tensor_parallel_size": "2"}, (2, 2)),
        ({"tensor_parallel_size": "2", "pipeline_parallel_size": "3", "context_parallel_size": "5"}, (30, 30)),
        ({"tensor_parallel_size": "2", "data_parallel_size": "7"}, (14, 14)),
        ({"tensor_parallel_size": "2", "data_parallel_size": "1:7"}, (2, 14)),
        ({"expert_parallel_size": "4", "virtual_pipeline_parallel_size": "3"}, (1, 1)),  # experts share the workers
        ({"num_workers": "8", "tensor_parallel_size": "2", "data_parallel_size": "7"}, (8, 8)),  # the plan refuses it
        ({"num_workers": "4:16", "data_parallel_size": "1:7"}, (4, 16)),
    ],
)
def test_the_number_of_workers(flags, expected):
    assert worker_range(load_spec(MODEL | flags).parallel) == expected


@pytest.mark.parametrize("flag", ["num_workers", "data_parallel_size"])
@pytest.mark.parametrize("value", ["4:", ":4", "0:4", "4:0", "04:8", "4-16", "4:8:16", " 4:8", "0", "-4:8", "1.5:4"])
def test_what_is_no_range(flag, value):
    text = problems_of(MODEL | {flag: value})
    assert f"--{flag} {value}: must be " in text
    assert "or MIN:MAX, two whole numbers from 1 up such as 4:16 or 'auto'" in text


def test_a_number_that_is_no_size_is_told_the_same_from_yaml(tmp_path):
    text = problems_of(MODEL, [yaml_file(tmp_path, "parallel: {num_workers: -1}\n")])
    assert "--num_workers -1: must be greater than or equal to 1 or MIN:MAX" in text


@pytest.mark.parametrize("flag", ["num_workers", "data_parallel_size"])
def test_a_range_has_its_least_first(flag):
    text = problems_of(MODEL | {flag: "16:4"})
    assert f"--{flag} 16:4 is MIN:MAX, and 16 is more than 4; write --{flag} 4:16" in text


@pytest.mark.parametrize(
    ("workers", "copies", "elastic", "fixed"),
    [
        ("4:16", "2", "--num_workers 4:16", "--data_parallel_size 2"),
        ("8", "1:4", "--data_parallel_size 1:4", "--num_workers 8"),
    ],
)
def test_workers_and_copies_are_both_a_range_or_both_a_number(workers, copies, elastic, fixed):
    text = problems_of(MODEL | {"num_workers": workers, "data_parallel_size": copies})
    flag = fixed.partition(" ")[0]
    assert f"{elastic} is MIN:MAX and {fixed} is one number" in text
    assert f"write {flag} as MIN:MAX, too, or leave one of them out" in text
    for one in ({"num_workers": workers}, {"data_parallel_size": copies}):
        assert load_spec(MODEL | one)


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
    text = problems_of({"num_workers": "-1", "adam_beta1": "one"}, [file], ["model.bf16=true", "nonsense"])
    for part in (
        "--hf_model_path is needed",
        "unknown key train.train_itres; did you mean 'train_iters'?",
        "unknown section 'trian'; did you mean 'train'?",
        "--micro_batch_size 0: must be greater than or equal to 1 or 'auto'",
        "--num_workers -1: must be greater than or equal to 1",
        "--adam_beta1 one: must be a number",
        "override model.bf16: this field belongs to the flag --precision",
        "override 'nonsense': section.field=value is expected",
    ):
        assert part in text


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(tmp_path):
    file = yaml_file(tmp_path, "train: {num_workers: 2}\nseq_length: 5\n")
    text = problems_of(MODEL, [file])
    assert "unknown key train.num_workers (it belongs into section parallel)" in text
    assert "unknown section 'seq_length' (it belongs into section data)" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("parallel: {tp: 2}", "unknown key parallel.tp; did you mean 'tensor_parallel_size'?"),
        ("parallel: {dp: 2}", "unknown key parallel.dp; did you mean 'data_parallel_size'?"),
        ("train: {tp: 2}", "unknown key train.tp; did you mean 'tensor_parallel_size' in section parallel?"),
        ("tp: 2", "unknown section 'tp'; did you mean 'tensor_parallel_size' in section parallel?"),
        ("train: {lr: 1}", "unknown key train.lr; did you mean 'learning_rate' in section optimizer?"),
        ("data: {hf_dataset_name: squad}", "unknown key data.hf_dataset_name; did you mean 'dataset'?"),
    ],
)
def test_yaml_has_the_long_names_only_and_says_which(tmp_path, content, expected):
    assert expected in problems_of(MODEL, [yaml_file(tmp_path, content)])


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

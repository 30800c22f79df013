"""The flag that a name means: names of other tools, of Megatron, short spellings, slips."""

from __future__ import annotations

import pytest

from raymb.spec import FLAG_THAT_OWNS, SECTION_OF_FLAG
from raymb.spec.names import _OTHERS, FLAG_OF_SHORT, flag_meant

KNOWN = ["config", "dry_run", "json", *SECTION_OF_FLAG, *FLAG_OF_SHORT]
MEANT = {
    "hf_dataset_name": "dataset",
    "hf_dataset_config": "dataset",
    "hf_dataset_subset": "dataset",
    "hf_dataset_split": "dataset",
    "hf_dataset_revision": "dataset",
    "dataset_name": "dataset",
    "dataset_config_name": "dataset",
    "train_dataset": "dataset",
    "eval_dataset": "validation_dataset",
    "validation_dataset_name": "validation_dataset",
    "tensor_model_parallel_size": "tensor_parallel_size",
    "virtual_pipeline_model_parallel_size": "virtual_pipeline_parallel_size",
    "data_parallel": "data_parallel_size",
    "dp_size": "dp",
    "lr": "learning_rate",
    "min_lr": "min_learning_rate",
    "model_name_or_path": "hf_model_path",
    "max_seq_length": "seq_length",
    "per_device_train_batch_size": "micro_batch_size",
    "num_train_epochs": "num_epochs",
    "max_steps": "train_iters",
    "warmup_steps": "lr_warmup_iters",
    "target_modules": "lora_target_modules",
    "decoder_first_pipeline_num_layers": "num_layers_in_first_stage",
    "bf16": "precision",
    "world_size": "num_workers",
    "run_name": "experiment_name",
    "train_itres": "train_iters",
    "num_worker": "num_workers",
}


@pytest.mark.parametrize(("name", "flag"), MEANT.items())
def test_what_a_name_means(name: str, flag: str) -> None:
    assert flag_meant(name, KNOWN) == flag


@pytest.mark.parametrize("name", ["xyzzy", "fsdp", "top_p", "mbs", ""])
def test_what_means_none(name: str) -> None:
    assert flag_meant(name, KNOWN) is None


@pytest.mark.parametrize("name", KNOWN)
def test_a_flag_means_itself(name: str) -> None:
    assert flag_meant(name, KNOWN) == FLAG_OF_SHORT.get(name, name)


def test_only_known_flags_are_named() -> None:
    assert flag_meant("lr", ["seed", "min_learning_rate"]) is None
    assert flag_meant("tp", ["seed"]) is None and flag_meant("tp", SECTION_OF_FLAG) == "tensor_parallel_size"
    assert flag_meant("lr", []) is None


@pytest.mark.parametrize("path", FLAG_THAT_OWNS)
def test_megatrons_own_names_lead_to_a_flag_that_owns_one_of_them(path: str) -> None:
    name = path.rpartition(".")[2]
    owners = {flag for other, flag in FLAG_THAT_OWNS.items() if other.rpartition(".")[2] == name}
    assert flag_meant(name, KNOWN) in owners


def test_the_names_that_are_listed_lead_to_flags_and_need_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*_OTHERS.values()} <= SECTION_OF_FLAG.keys()
    listed = dict(_OTHERS)
    monkeypatch.setattr("raymb.spec.names._OTHERS", {})
    assert [name for name, flag in listed.items() if flag_meant(name, KNOWN) == flag] == []


def test_short_spellings_are_no_flags() -> None:
    assert FLAG_OF_SHORT.keys() == {"tp", "pp", "vpp", "cp", "dp", "ep", "etp"}
    assert not FLAG_OF_SHORT.keys() & SECTION_OF_FLAG.keys()
    assert {*FLAG_OF_SHORT.values()} <= SECTION_OF_FLAG.keys() and len({*FLAG_OF_SHORT.values()}) == 7

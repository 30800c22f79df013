"""The flag that a name means: names of other tools, of Megatron, short spellings, slips."""

from __future__ import annotations

import pytest

from raymb.spec import FLAG_THAT_OWNS, SECTION_OF_FLAG
from raymb.spec.names import FLAG_OF_SHORT, flag_meant, suggestion
from raymb.spec.other_tools import FILES, meaning_of

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


SAID = {
    "cutoff_len": "; LLaMA-Factory's cutoff_len is --seq_length here",
    "per_device_train_batch_size": "; TRL's per_device_train_batch_size is --micro_batch_size here",
    "gradient_accumulation_steps": "is --global_batch_size here: these steps x micro batch x data parallel size",
    "report_to": "--wandb_project and --mlflow_experiment here: each takes the name of a project or experiment",
    "model": "; ms-swift's model is --hf_model_path here",
    "warmup_ratio": "is --lr_warmup_iters here: in steps: the ratio times the steps of the run",
    "deepspeed": "has no flag here: --megatron_fsdp shares weights, gradients, optimizer state",
    "lr": "; did you mean --learning_rate?",
    "train_itres": "; did you mean --train_iters?",
    "tp_size": "; did you mean --tp?",
    "xyzzy": "",
}


@pytest.mark.parametrize(("name", "said"), SAID.items())
def test_what_is_said_of_an_unknown_flag(name: str, said: str) -> None:
    assert suggestion(name, KNOWN).endswith(said) and bool(said) == bool(suggestion(name, KNOWN))


@pytest.mark.parametrize("name", ["cutoff_len", "report_to", "deepspeed"])
def test_no_flag_is_named_that_the_command_does_not_have(name: str) -> None:
    assert suggestion(name, ["prompt", "engine"]) == ""


def test_every_word_of_a_table_leads_to_a_flag_of_its_row_or_is_megatrons() -> None:
    megatrons = {path.rpartition(".")[2] for path in FLAG_THAT_OWNS}
    for tool in FILES.values():
        for name, row in tool.names():
            word = name.rpartition(".")[2]
            meaning = meaning_of(word)
            if word not in megatrons and word not in KNOWN and meaning and meaning.flags:
                assert flag_meant(word, KNOWN) == meaning.flags[0], word
            assert tool.name == "bridge" or (meaning is not None and (meaning.flags or not row.flags))


def test_short_spellings_are_no_flags() -> None:
    assert FLAG_OF_SHORT.keys() == {"tp", "pp", "vpp", "cp", "dp", "ep", "etp"}
    assert not FLAG_OF_SHORT.keys() & SECTION_OF_FLAG.keys()
    assert {*FLAG_OF_SHORT.values()} <= SECTION_OF_FLAG.keys() and len({*FLAG_OF_SHORT.values()}) == 7

"""Bad command lines: each exits 2 with one readable message that names value, rule and flag, and leaves nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, write_shape_only_model

from raymb.cli import main

ROW = '{"prompt": "a", "completion": "b"}\n'

# name: (command line, what the message must contain). {model}, {moe}, {storage} and {tmp} are filled in; a word that
# starts with @ is a file that is made of the text in FILES.
LAYOUT = {
    "world size": ("--num_workers 7 --tensor_parallel_size 2", ["--num_workers 7", "multiple of", "6 or 8"]),
    "world size of three": (
        "--num_workers 4 --tensor_parallel_size 2 --pipeline_parallel_size 2 --context_parallel_size 2 --backend cuda",
        ["--num_workers 4", "2 x 2 x 2 = 8", "set --num_workers to 8"],
    ),
    "copies beside workers": (
        "--num_workers 16 --tp 2 --pp 2 --cp 1 --dp 2",
        ["--num_workers 16 is not", "2 x 2 x 1 x 2 = 8; set --num_workers 8, or --data_parallel_size 4"],
    ),
    "copies beside workers, with sizes that are auto": (
        "--num_workers 6 --tp 2 --dp 2 --backend cpu",
        ["--num_workers 6 is not", "2 x 1 x 1 x 2 = 4 (sizes that are auto are 1 on CPU workers)", "size 3"],
    ),
    "copies that no GPUs make up": (
        "--num_workers 16 --dp 3 --backend cuda",
        ["--num_workers 16 must be a multiple of", "1 x 1 x 1 x 3 = 3", "15 or 18", "to one of 1, 2, 4, 8, 16"],
    ),
    "copies that the global batch does not fill": (
        "--dp 3 --tp 2",
        ["--global_batch_size 8 must be a multiple of micro batch x data parallel = 1 x 3 = 3", "6 or 9"],
    ),
    "range of copies that the global batch does not fill": (
        "--dp 3:3 --tp 2",
        ["no size of --data_parallel_size 3:3", "at size 3 --global_batch_size 8", "the nearest are 2 and 4"],
    ),
    "range of copies upside down": ("--dp 4:2", ["--data_parallel_size 4:2", "4 is more than 2", "2:4"]),
    "range of copies for a number of workers": (
        "--dp 1:4 --num_workers 8",
        ["--data_parallel_size 1:4 is MIN:MAX and --num_workers 8 is one number", "leave one of them out"],
    ),
    "number of copies for a range of workers": (
        "--dp 2 --num_workers 4:16",
        ["--num_workers 4:16 is MIN:MAX and --data_parallel_size 2 is one number", "leave one of them out"],
    ),
    "ranges that do not meet": (
        "--dp 1:3 --num_workers 4:16 --backend cpu",
        ["no size of --num_workers 4:16", "--data_parallel_size is 1:3", "nearest is 2", "that holds 4 or 8"],
    ),
    "range of workers upside down": ("--num_workers 16:4", ["--num_workers 16:4", "16 is more than 4", "4:16"]),
    "range of workers between multiples": (
        "--num_workers 5:7 --tensor_parallel_size 4",
        ["--num_workers 5:7", "4 x 1 x 1 = 4", "nearest are 4 and 8"],
    ),
    "range of workers with heads that do not divide": (
        "--num_workers 4:16 --tensor_parallel_size 3",
        ["--tensor_parallel_size 3", "8 attention heads", "one of"],
    ),
    "range of workers above the global batch": (
        "--num_workers 9:64",
        ["--num_workers 9:64", "--global_batch_size 8", "micro batch x data parallel = 1 x 9 = 9", "nearest is 8"],
    ),
    "range of workers and a micro batch for none": (
        "--num_workers 1:4 --global_batch_size 10 --micro_batch_size 4",
        ["--num_workers 1:4", "4 x 1 = 4", "--global_batch_size to 8 or 12", "--micro_batch_size"],
    ),
    "global batch": ("--num_workers 4 --global_batch_size 10", ["--global_batch_size 10", "multiple of", "8 or 12"]),
    "global batch below micro batch": (
        "--global_batch_size 2 --micro_batch_size 4",
        ["--global_batch_size 2", "4 x 1 = 4", "set --global_batch_size to 4"],
    ),
    "heads": ("--num_workers 3 --tensor_parallel_size 3", ["--tensor_parallel_size 3", "8 attention heads", "one of"]),
    "key-value groups": (
        "--num_workers 3 --tensor_parallel_size 3",
        ["--tensor_parallel_size 3", "divisor or a multiple", "4 key/value groups"],
    ),
    "feed-forward size": (
        "--num_workers 5 --tensor_parallel_size 5",
        ["--tensor_parallel_size 5", "must divide", "96"],
    ),
    "layers": ("--num_workers 3 --pipeline_parallel_size 3", ["--pipeline_parallel_size 3", "must divide", "4 layers"]),
    "more stages than layers": (
        "--num_workers 8 --pipeline_parallel_size 8",
        ["--pipeline_parallel_size 8", "not be more than", "4 layers"],
    ),
    "uneven without pipeline": (
        "--num_layers_in_first_stage 2",
        ["--num_layers_in_first_stage 2", "needs --pipeline_parallel_size"],
    ),
    "uneven middle": (
        "--num_workers 3 --pipeline_parallel_size 3 --num_layers_in_last_stage 1",
        ["--num_layers_in_last_stage 1", "leave 3", "evenly"],
    ),
    "virtual without pipeline": (
        "--virtual_pipeline_parallel_size 2",
        ["--virtual_pipeline_parallel_size 2", "needs --pipeline_parallel_size"],
    ),
    "virtual chunks": (
        "--num_workers 2 --pipeline_parallel_size 2 --virtual_pipeline_parallel_size 3",
        ["--virtual_pipeline_parallel_size 3", "must divide", "2 layers"],
    ),
    "virtual micro-batches": (
        "--num_workers 2 --pipeline_parallel_size 2 --virtual_pipeline_parallel_size 2 --global_batch_size 3",
        ["--virtual_pipeline_parallel_size 2", "3 micro-batches", "--global_batch_size to 2 or 4"],
    ),
    "sequence too long": ("--seq_length 2048", ["--seq_length 2048", "1024 positions", "at most 1024"]),
    "sequence over context": (
        "--num_workers 2 --context_parallel_size 2 --seq_length 510 --backend cuda",
        ["--seq_length 510", "multiple of 2 x --context_parallel_size 2", "508 or 512"],
    ),
    "sequence over tensor": (
        "--num_workers 4 --tensor_parallel_size 4 --seq_length 510 --backend cuda",
        ["--seq_length 510", "sequence parallel", "508 or 512"],
    ),
    "sequence parallel without tensor": (
        "--sequence_parallel true --backend cuda",
        ["--sequence_parallel true", "needs --tensor_parallel_size"],
    ),
    "experts of a dense model": (
        "--num_workers 2 --expert_parallel_size 2",
        ["--expert_parallel_size 2", "no experts", "leave it out"],
    ),
    "expert tensor of a dense model": (
        "--expert_tensor_parallel_size 2",
        ["--expert_tensor_parallel_size 2", "no experts", "leave it out"],
    ),
}
EXPERTS = {
    "experts": (
        "--num_workers 3 --expert_parallel_size 3 --backend cuda",
        ["--expert_parallel_size 3", "must divide", "8 experts"],
    ),
    "expert grid": (
        "--num_workers 4 --expert_parallel_size 8 --backend cuda",
        ["--num_workers 4", "1 x 8 x 1 = 8", "--expert_parallel_size"],
    ),
    "experts without sequence parallel": (
        "--num_workers 2 --tensor_parallel_size 2 --sequence_parallel false --backend cuda",
        ["--tensor_parallel_size 2", "needs --sequence_parallel true"],
    ),
}
SPEC = {
    "adapters on random weights": (
        "--init random --peft lora",
        ["--init random makes weights", "--peft lora trains adapters beside frozen weights"],
    ),
    "no file of tokens": ("--add_tokens {tmp}/none.txt", ["--add_tokens", "none.txt: cannot be read (No such file"]),
    "unknown flag": ("--num_worker 2", ["unknown flag --num_worker;", "did you mean --num_workers?"]),
    "unknown flag, dashed": ("--train-iter=2", ["unknown flag --train_iter;", "did you mean --train_iters?"]),
    "unknown flag, Megatron's name": ("--lr 1", ["unknown flag --lr", "did you mean --learning_rate?"]),
    "unknown flag, Megatron's size": (
        "--tensor_model_parallel_size 2",
        ["unknown flag --tensor_model_parallel_size", "did you mean --tensor_parallel_size?"],
    ),
    "unknown flag, a data set's name": ("--hf_dataset_name x", ["--hf_dataset_name; did you mean --dataset?"]),
    "unknown flag, a data set's subset": ("--hf-dataset-subset x", ["--hf_dataset_subset; did you mean --dataset?"]),
    "unknown flag, a data set's config": ("--hf_dataset_config=x", ["--hf_dataset_config; did you mean --dataset?"]),
    "unknown flag, another data set's name": ("--dataset_name x", ["TRL's dataset_name is --dataset here"]),
    "unknown flag, another tool's": ("--cutoff_len 9", ["LLaMA-Factory's cutoff_len is --seq_length here"]),
    "unknown flag, another tool's alone": ("--load_in_4bit", ["load_in_4bit has no flag here: adapters lie on bf16"]),
    "unknown flag, nothing like it": ("--xyzzy 1", ["unknown flag --xyzzy"]),
    "flag without value": ("--num_workers", ["--num_workers", "requires an argument"]),
    "range from 0": ("--num_workers 0:4", ["--num_workers 0:4", "MIN:MAX", "from 1 up"]),
    "copies that are no number": ("--dp two", ["--data_parallel_size two", "whole number or MIN:MAX", "'auto'"]),
    "range without an end": ("--num_workers 4:", ["--num_workers 4:", "whole number or MIN:MAX"]),
    "range of three": ("--num_workers 4:8:16", ["--num_workers 4:8:16", "whole number or MIN:MAX"]),
    "time of no unit": ("--max_time 90x", ["--max_time 90x", "90m, 2h, 1d or [DAYS-]HH:MM[:SS]"]),
    "text for a number": ("--num_workers two", ["--num_workers two", "whole number"]),
    "fraction for a number": ("--train_iters 1.5", ["--train_iters 1.5", "whole number"]),
    "zero": ("--global_batch_size 0", ["--global_batch_size 0", "greater than or equal to 1"]),
    "negative": ("--seq_length -5", ["--seq_length -5", "greater than or equal to 1"]),
    "negative size or auto": ("--tensor_parallel_size -2", ["--tensor_parallel_size -2", "equal to 1 or 'auto'"]),
    "misspelt auto": ("--micro_batch_size atuo", ["--micro_batch_size atuo", "whole number or 'auto'"]),
    "zero learning rate": ("--learning_rate 0", ["--learning_rate 0", "greater than 0"]),
    "not a number": ("--learning_rate nan", ["--learning_rate nan", "finite number"]),
    "share over 1": ("--validation_split 1.5", ["--validation_split 1.5", "less than 1"]),
    "beta of 1": ("--adam_beta1 1", ["--adam_beta1 1", "less than 1"]),
    "negative interval": ("--save_interval -1", ["--save_interval -1", "greater than or equal to 0"]),
    "unknown backend": ("--backend tpu", ["--backend tpu", "'auto', 'cuda' or 'cpu'"]),
    "unknown precision": ("--precision fp16", ["--precision fp16", "'fp8', 'fp8_blockwise' or 'mxfp8'"]),
    "profiler without steps": ("--profiler nsys", ["--profiler nsys", "add --profile_steps FIRST:LAST"]),
    "steps the wrong way round": ("--profile_steps 9:3", ["--profile_steps 9:3", "write 3:9"]),
    "gathered before reduced": ("--overlap_param_gather", ["--overlap_param_gather needs --overlap_grad_reduce"]),
    "unknown decay": ("--lr_decay_style step", ["--lr_decay_style step", "'constant', 'linear' or 'cosine'"]),
    "neither true nor false": ("--sequence_parallel maybe", ["--sequence_parallel maybe", "true or false or 'auto'"]),
    "name with a slash": ("--experiment_name a/b", ["--experiment_name a/b", "letters, digits"]),
    "name that climbs": ("--experiment_name ..", ["--experiment_name ..", "letters, digits"]),
    "env without value": ("--env NCCL_DEBUG", ["--env", "NAME=VALUE is expected"]),
    "env with a bad name": ("--env A-B=1", ["--env A-B", "NAME=VALUE is expected"]),
    "override without value": ("optimizer.foo", ["override 'optimizer.foo'", "section.field=value is expected"]),
    "override without section": ("foo=1", ["override 'foo=1'", "section.field=value is expected"]),
    "override that is no YAML": ("ddp.bucket_size=[1", ["override 'ddp.bucket_size=[1'", "not a YAML value"]),
    "override of what is not trained": ("model.mtp_num_layers=1", ["override model.mtp_num_layers", "leave it out"]),
    "override that a flag owns": ("model.bf16=true", ["override model.bf16", "belongs to the flag --precision"]),
    "override beside its flag": (
        "optimizer.lr=1e-4 --learning_rate 2e-4",
        ["override optimizer.lr=0.0001 is --learning_rate, which is given as 2e-4, too; give one"],
    ),
    "override of no section": ("optimiser.eps=1", ["override optimiser.eps", "no section", "optimizer"]),
    "override of no field": ("ddp.bucket_sizes=1", ["override ddp.bucket_sizes", "no field", "ddp.bucket_size"]),
    "config that is not there": ("--config {tmp}/none.yaml", ["--config", "none.yaml", "no such file"]),
    "no shipped config": ("--config quickstart", ["quickstart: no such file", "quickstart-cpu", "qwen2.5-0.5b"]),
    "config that is a directory": ("--config {tmp}", ["--config", "cannot be read"]),
    "config of broken YAML": ("--config @broken.yaml", ["--config", "broken.yaml", "not valid YAML"]),
    "config with an open reference": ("--config @reference.yaml", ["--config", "reference.yaml", "nowhere"]),
    "config of a list": ("--config @list.yaml", ["--config", "list.yaml", "mapping of sections"]),
    "config with an unknown section": ("--config @section.yaml", ["unknown section 'trian'", "did you mean 'train'?"]),
    "config with an unknown key": ("--config @key.yaml", ["train.train_itres", "did you mean 'train_iters'?"]),
    "config with a short spelling": ("--config @short.yaml", ["parallel.dp", "did you mean 'data_parallel_size'?"]),
    "config with a key elsewhere": ("--config @elsewhere.yaml", ["train.num_workers", "belongs into section parallel"]),
    "config with a range upside down": ("--config @range.yaml", ["--num_workers 16:4", "16 is more than 4"]),
    "config with a wrong type": ("--config @type.yaml", ["--train_iters many", "whole number"]),
    "config with a list for a number": ("--config @nested.yaml", ["--train_iters [1, 2]", "whole number"]),
    "config with a section that is none": ("--config @scalar.yaml", ["section 'train' must be a mapping", "5"]),
    "config with an owned override": ("--config @owned.yaml", ["model.bf16", "belongs to the flag --precision"]),
}
FILES = {
    "broken.yaml": "train: {train_iters: 5\nmodel: [",
    "reference.yaml": "train: {train_iters: '${nowhere}'}\n",
    "list.yaml": "- train\n",
    "section.yaml": "trian: {train_iters: 5}\n",
    "key.yaml": "train: {train_itres: 5}\n",
    "short.yaml": "parallel: {dp: 5}\n",
    "elsewhere.yaml": "train: {num_workers: 5}\n",
    "range.yaml": "parallel: {num_workers: 16:4}\n",
    "type.yaml": "train: {train_iters: many}\n",
    "nested.yaml": "train: {train_iters: [1, 2]}\n",
    "scalar.yaml": "train: 5\n",
    "owned.yaml": "overrides: {model.bf16: true}\n",
    "rows.jsonl": ROW,
}


def cases(table: dict[str, tuple[str, list[str]]]) -> Any:
    return [pytest.param(line, expected, id=name) for name, (line, expected) in table.items()]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `raymb COMMAND --hf_model_path MODEL LINE`, expect exit code 2 and nothing written; give the message back."""
    storage = tmp_path / "storage"

    def run(command: str, model: Path | str, line: str) -> str:
        words = []
        for word in line.format(tmp=tmp_path).split():
            if word.startswith("@"):
                (tmp_path / word[1:]).write_text(FILES[word[1:]])
                word = str(tmp_path / word[1:])
            words.append(word)
        before = sorted(tmp_path.iterdir())
        code = main([command, "--hf_model_path", str(model), "--storage_path", str(storage), *words])
        captured = capsys.readouterr()
        assert (code, captured.out) == (2, "")
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        assert sorted(tmp_path.iterdir()) == before
        return captured.err

    return run


@pytest.mark.parametrize(("line", "expected"), cases(LAYOUT))
@pytest.mark.parametrize("command", ["plan", "finetune"])
def test_layout(command, line, expected, refused, shape_only_model_dir):
    message = refused(command, shape_only_model_dir, line)
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize(("line", "expected"), cases(EXPERTS))
def test_experts(line, expected, refused, shape_only_moe_dir):
    message = refused("plan", shape_only_moe_dir, line)
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize(("line", "expected"), cases(SPEC))
def test_spec(line, expected, refused, shape_only_model_dir):
    message = refused("finetune", shape_only_model_dir, line)
    assert [part for part in expected if part not in message] == []


def test_dry_run_of_a_resume_that_cannot_be(tmp_path, shape_only_model_dir, capsys):
    (tmp_path / "rows.jsonl").write_text(ROW)
    words = f"--dataset {tmp_path}/rows.jsonl --validation_split 0 --global_batch_size 1 --backend cpu"
    words += f" --resume {tmp_path}/none --hf_model_path {shape_only_model_dir} --storage_path {tmp_path}"
    assert main(["finetune", "--dry_run", *words.split()]) == 2
    assert "no checkpoint there" in capsys.readouterr().err


def test_no_model_at_all(capsys):
    assert main(["finetune", "--num_workers", "2"]) == 2
    assert "--hf_model_path is needed" in capsys.readouterr().err


def test_unknown_command(capsys):
    assert main(["finetun"]) == 2
    error = capsys.readouterr().err
    assert "finetun" in error
    assert "Did you mean 'finetune'?" in error


def safetensors(*shapes: tuple[str, list[int]], cut: int = 0) -> bytes:
    """A file of zeros; `cut`: bytes that it lacks at its end."""
    header, place = {}, 0
    for name, shape in shapes:
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(place - cut)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
INDEX = "model.safetensors.index.json"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.layers.{}.input_layernorm.weight"
OTHER = QWEN2_4_LAYERS | {"model_type": "new_family", "auto_map": {"AutoModel": "m.M"}}

# name: (what is other than in a good directory: a file's content, or None where it is not there; the message's parts).
MODELS: dict[str, tuple[dict[str, str | bytes | None] | None, list[str]]] = {
    "directory that is not there": (None, ["no such directory"]),
    "empty directory": (
        dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")),
        ["an empty directory", "save_pretrained"],
    ),
    "directory without config": ({"config.json": None}, ["no config.json"]),
    "GGUF alone": ({"config.json": None, "model-q4.gguf": b"GGUF"}, ["no config.json", "model-q4.gguf", "(GGUF)"]),
    "adapter": (
        {"config.json": None, "adapter_config.json": "{}", "adapter_model.safetensors": safetensors(("a", [1]))},
        ["an adapter (PEFT), not a model"],
    ),
    "broken config": ({"config.json": "{"}, ["config.json", "not valid JSON"]),
    "config of bytes": ({"config.json": b"\xff\xfe"}, ["config.json", "cannot be read"]),
    "config that is a list": ({"config.json": "[]"}, ["config.json", "a JSON object is expected"]),
    "config that is a git-lfs pointer": ({"config.json": POINTER}, ["config.json", "not valid JSON"]),
    "config without layers": ({"config.json": '{"hidden_size": 64}'}, ["no num_hidden_layers", "no vocab_size"]),
    "config with a size that is none": (
        {"config.json": json.dumps(QWEN2_4_LAYERS | {"hidden_size": "64"})},
        ["hidden_size is '64', a positive integer is expected"],
    ),
    "config alone": (
        dict.fromkeys(("model.safetensors", "tokenizer.json", "tokenizer_config.json")),
        ["no weights", "--init random needs none"],
    ),
    "no weights": ({"model.safetensors": None}, ["no weights", ".safetensors"]),
    "GGUF beside a config": ({"model.safetensors": None, "model-q4.gguf": b"GGUF"}, ["no weights"]),
    "Mistral's own format alone": (
        {"model.safetensors": None, "consolidated.safetensors": safetensors(("layers.0.wq", [1]))},
        ["neither model.safetensors nor", "there is consolidated.safetensors"],
    ),
    "shards without their index": (
        {"model.safetensors": None, "model-00001-of-00002.safetensors": safetensors(("a", [1]))},
        ["neither model.safetensors nor", "there is model-00001-of-00002.safetensors"],
    ),
    "optimizer's state alone": ({"model.safetensors": None, "training_args.bin": b"x"}, ["no weights"]),
    "git-lfs pointer": ({"model.safetensors": POINTER}, ["model.safetensors is a git-lfs pointer", "git lfs pull"]),
    "git-lfs pointer of a pickle": (
        {"model.safetensors": None, "pytorch_model.bin": POINTER},
        ["pytorch_model.bin is a git-lfs pointer", "git lfs pull"],
    ),
    "weights truncated": (
        {"model.safetensors": safetensors((EMBEDDING, [305, 64]), cut=1000)},
        ["model.safetensors is damaged: 77,", "of 78,", "fetch this file again"],
    ),
    "weights of no bytes": ({"model.safetensors": b""}, ["model.safetensors is damaged: 0 bytes without a header"]),
    "a page of HTML for weights": (
        {"model.safetensors": "<html>404 not found, try again later</html>"},
        ["model.safetensors is damaged", "without a header of safetensors"],
    ),
    "embedding of another size": (
        {"model.safetensors": safetensors((EMBEDDING, [400, 64]))},
        ["vocab_size 305 and hidden_size 64", f"{EMBEDDING} in the weights is 400 x 64"],
    ),
    "fewer layers than the config": (
        {"model.safetensors": safetensors((NORM.format(0), [64]), (NORM.format(1), [64]))},
        ["config.json has 4 layers, and the weights 2"],
    ),
    "a shard is missing": (
        {"model.safetensors": None, INDEX: json.dumps({"weight_map": {"a": "model-2.safetensors"}})},
        ["1 weight files", "are missing, first model-2.safetensors"],
    ),
    "broken index": ({INDEX: "{"}, [f"{INDEX} is not a weight index"]),
    "index without a map": ({INDEX: "[]"}, [f"{INDEX} is not a weight index"]),
    "index of other files": (
        {INDEX: json.dumps({"weight_map": {"a": "b.safetensors"}}), "b.safetensors": safetensors(("a", [1]))},
        ["both model.safetensors and an index of other files", "delete model.safetensors, or"],
    ),
    "no tokenizer": ({"tokenizer.json": None}, ["no tokenizer", "tokenizer.json"]),
    "tokenizer that is a git-lfs pointer": ({"tokenizer.json": POINTER}, ["tokenizer.json is a git-lfs pointer"]),
    "broken tokenizer": ({"tokenizer.json": "{"}, ["tokenizer.json is not valid JSON"]),
    "family that Bridge does not have": (
        {"config.json": json.dumps(QWEN2_4_LAYERS | {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})},
        ["has no GPT2LMHeadModel", "the nearest name that it has", "raymb models"],
    ),
    "config without architectures": (
        {"config.json": json.dumps({name: it for name, it in QWEN2_4_LAYERS.items() if name != "architectures"})},
        ["config.json names no architecture", "raymb models"],
    ),
    "remote code": ({"config.json": json.dumps(OTHER)}, ["Python code", "--trust_remote_code"]),
}


def change(directory: Path, changes: dict[str, str | bytes | None]) -> Path:
    """write_shape_only_model's directory with other files."""
    write_shape_only_model(directory)
    for name, content in changes.items():
        if content is None:
            (directory / name).unlink()
        else:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


@pytest.mark.parametrize(("changes", "expected"), [pytest.param(*case, id=name) for name, case in MODELS.items()])
def test_model_directory(changes, expected, refused, tmp_path_factory):
    directory = tmp_path_factory.mktemp("broken") / "model"
    if changes is not None:
        change(directory, changes)
    message = refused("finetune", directory, "")
    assert [part for part in ["--hf_model_path", *expected] if part not in message] == []
    assert message.count("error: ") == 1


ODD: dict[str, dict[str, str | bytes | None]] = {
    "code of a family that transformers knows": {
        "config.json": json.dumps(QWEN2_4_LAYERS | {"auto_map": {"AutoModelForCausalLM": "modeling_qwen.Qwen2"}}),
        "modeling_qwen.py": "raise SystemExit",
    },
    "Mistral's own format beside it": {"consolidated.safetensors": safetensors((EMBEDDING, [1, 1]))},
    "a variant of the same tensors": {"model.fp16.safetensors": POINTER},
    "pickles beside safetensors": {"pytorch_model.bin": POINTER},
    "the original's folder": {"original/consolidated.safetensors": POINTER, "original/params.json": "{}"},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_odd_model_directory(changes, tmp_path, capsys):
    model = change(tmp_path / "model", changes)
    (tmp_path / "rows.jsonl").write_text(ROW)
    words = f"--dataset {tmp_path}/rows.jsonl --validation_split 0 --global_batch_size 1 --backend cpu --num_workers 1"
    words += f" --hf_model_path {model} --storage_path {tmp_path}"
    assert main(["finetune", "--dry_run", *words.split()]) == 0, capsys.readouterr().err


def test_plan_of_a_config_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(QWEN2_4_LAYERS))
    words = f"plan --backend cpu --num_workers 2 --hf_model_path {tmp_path} --storage_path {tmp_path}"
    for more in ("", " --init random"):
        assert main((words + more).split()) == 0, capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_revision_of_a_directory(refused, shape_only_model_dir):
    message = refused("finetune", shape_only_model_dir, "--hf_revision v2")
    assert "--hf_revision v2: --hf_model_path" in message and "only models of a hub have revisions" in message


@pytest.mark.parametrize("command", ["plan", "finetune"])
@pytest.mark.parametrize(
    ("path", "message"),
    [("model/config.json", "a file, not a directory"), ("./none", "no such directory"), ("a/b/c", "no such directory")],
)
def test_path_of_no_directory(command, path, message, refused, shape_only_model_dir, monkeypatch):
    (home := shape_only_model_dir.parent / "home").mkdir(exist_ok=True)
    write_shape_only_model(home / "model")
    monkeypatch.chdir(home)
    assert f"--hf_model_path {path}: {message}" in refused(command, path, "")


def test_model_path_that_is_neither_directory_nor_hub_id(refused):
    assert "neither a directory nor a hub id" in refused("plan", "two words", "")


def hub_error(name: str) -> Exception:
    import httpx
    from huggingface_hub import errors

    if name == "ConnectError":
        return httpx.ConnectError("Name or service not known")
    response = httpx.Response(403, request=httpx.Request("HEAD", "https://huggingface.co"))
    return getattr(errors, name)("refused by the test", response=response)


HUB = {
    "ConnectError": ["the hub cannot be reached", "local model directory"],
    "GatedRepoError": ["gated", "HF_TOKEN", "licence"],
    "RepositoryNotFoundError": ["no such model on the hub", "spelling"],
    "RevisionNotFoundError": ["no such revision", "--hf_revision"],
    "RemoteEntryNotFoundError": ["has no config.json", "GGUF"],
    "HfHubHTTPError": ["the hub cannot be reached", "refused by the test"],
}


@pytest.mark.parametrize(("error", "expected"), HUB.items())
def test_hub_model(error, expected, refused, monkeypatch):
    def ask(*args: Any, **kwargs: Any) -> None:
        raise hub_error(error)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    message = refused("plan", "some/model-that-nobody-has", "--hf_revision v1")
    assert [part for part in ["--hf_model_path some/model-that-nobody-has", *expected] if part not in message] == []


def test_hub_switched_off(refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the hub cannot be reached" in refused("plan", "some/model-that-nobody-has", "")

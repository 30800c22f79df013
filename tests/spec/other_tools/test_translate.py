"""Configs of other tools, as these publish them, become YAML that plans; no key of theirs is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from raymb.cli import main
from raymb.cli.translate import KINDS
from raymb.spec import load_spec
from raymb.spec.other_tools import FILES, TABLES
from raymb.spec.other_tools.reading import flattened, read_file, tool_of
from raymb.spec.other_tools.record import NOTHING
from raymb.spec.other_tools.translating import translate
from raymb.spec.sections import SECTION_OF_FLAG

ROOT = Path(__file__).parents[3]
EXAMPLES = {
    "axolotl.yml": "axolotl",
    "llama_factory.yaml": "llama-factory",
    "ms_swift.sh": "ms-swift",
    "nemo_rl.yaml": "nemo-rl",
    "oumi.yaml": "oumi",
    "run_config.yaml": "bridge",
    "trl.sh": "trl",
    "trl.yaml": "trl",
}


def example(name: str) -> Path:
    return Path(__file__).with_name("files") / name


def translated(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["translate", str(example(name)), *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_published_config_becomes_yaml_that_plans(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = translated(name, capsys, "--num_workers", "8")
    assert "to be changed" not in text and max(map(len, text.splitlines())) <= 180
    file = tmp_path / "run.yaml"
    file.write_text(text)
    spec = load_spec({}, [file])
    model = tmp_path / "model"
    model.mkdir()
    shape = ROOT / "tests" / "shapes" / f"{spec.model.hf_model_path.replace('/', '--')}.json"
    (model / "config.json").write_text(shape.read_text())
    words = ["plan", "--config", str(file), "--hf_model_path", str(model), "--backend", "cuda", "--gpu", "h100-80gb"]
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["num_workers"] == 8 and plan["global_batch_size"] == spec.train.global_batch_size


@pytest.mark.parametrize(("name", "tool"), EXAMPLES.items())
def test_every_key_is_taken_over_or_a_comment(name: str, tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that is neither asks for what raymb does anyway, or its flag has the value of another key."""
    kind, content = FILES[tool], read_file(example(name))
    text = translated(name, capsys)
    assert f", of {kind.title}, " in text.splitlines()[0]
    translation, rows = translate(kind, content), kind.by_name()
    given = {key: value for key, value in flattened(content, rows).items() if value is not None}
    reported = {*translation.origins.values(), *(key for key, _, _ in translation.left_out)}
    assert [key for key, _, why in translation.left_out if f"{key}: " not in text or not why] == []
    silent = [key for key in kind.prepare(given) if key not in reported and key != "workers"]
    assert len(silent) <= len(given) // 4
    for key in silent:
        row = rows.get(key)
        assert row and row.flags, key
        no_effect = callable(row.value) and row.value(given[key]) is NOTHING
        assert no_effect or not given[key] or {*row.flags} & translation.flags.keys(), key


@pytest.mark.parametrize(("name", "tool"), EXAMPLES.items())
def test_whose_file_it_is_is_found_by_its_keys(name: str, tool: str) -> None:
    given = read_file(example(name))
    assert tool_of(given, example(name), None).name == tool


def test_values_are_what_the_tool_means(capsys: pytest.CaptureFixture[str]) -> None:
    def sections(name: str, *words: str) -> dict:
        return yaml.safe_load(translated(name, capsys, *words))

    axolotl = sections("axolotl.yml", "--num_workers", "4")
    assert axolotl["train"]["global_batch_size"] == 2 * 4 * 4 and axolotl["train"]["recompute"] == "full"
    assert axolotl["peft"]["lora_target_modules"] == ["all-linear"] and axolotl["run"]["experiment_name"] == "lora-out"
    assert sections("trl.yaml")["optimizer"]["lr_warmup_iters"] == 50  # 0.1 of 500
    swift = sections("ms_swift.sh")
    assert swift["parallel"] == {"num_workers": 2, "tensor_parallel_size": 2, "sequence_parallel": True}
    nemo = sections("nemo_rl.yaml")
    assert nemo["optimizer"]["learning_rate"] == 2e-5  # Megatron's, not the one of the back end that is off
    assert nemo["run"]["experiment_name"] == "sft-dev-squad" and nemo["parallel"]["num_workers"] == 8
    bridge = sections("run_config.yaml")
    assert bridge["optimizer"]["weight_decay"] == 0.033  # the scheduler's, which Bridge sets at every step
    assert bridge["resilience"]["nccl_timeout"] == 600 and bridge["checkpoint"]["keep_last"] == 0
    assert "moe" not in bridge and bridge["model"]["hf_model_path"] == "Qwen/Qwen2.5-0.5B"
    assert sections("oumi.yaml")["peft"]["lora_target_modules"] == ["q_proj", "v_proj"]


def test_remote_code_and_deleting_are_never_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    text = translated("llama_factory.yaml", capsys)
    assert "trust_remote_code: true --" in text and "overwrite_output_dir: true --" in text
    sections = yaml.safe_load(text)
    assert "trust_remote_code" not in sections["model"] and "overwrite" not in sections["checkpoint"]


def test_a_batch_of_one_copy_says_so_where_the_workers_are_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    text = translated("axolotl.yml", capsys)
    assert "to be said: parallel.num_workers" in text
    assert "global_batch_size: 8 # 2 x 4 accumulation steps, of one copy: multiply by the copies" in text


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ("a: 1\nb: 2\n", [], "no tool's keys are in it"),
        ("learning_rate: 1.0e-5\nseed: 1\n", [], "its keys are those of"),
        ("learning_rate: 1.0e-5\n", ["--from", "unsloth"], "--from unsloth: oumi, ms-swift"),
        ("[1, 2]\n", [], "a mapping of keys to values is expected"),
        ("a: [1\n", [], "not valid YAML"),
        ("", [], "a mapping of keys to values is expected"),
    ],
)
def test_a_file_that_is_nobodys_is_one_clear_message(
    content: str, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text(content)
    assert main(["translate", str(file), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_file_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["translate", str(example("trl.yaml")), "--output", str(tmp_path / "run.yaml")]
    assert main(words) == 0 and capsys.readouterr().out.strip() == str(tmp_path / "run.yaml")
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_a_value_that_raymb_does_not_have_is_a_comment_with_its_own() -> None:
    given = {"model_name_or_path": "m", "lr_scheduler_type": "polynomial", "lora_r": 0, "use_peft": True}
    translation = translate(FILES["trl"], given)
    why = {name: reason for name, _, reason in translation.left_out}
    assert why == {
        "lr_scheduler_type": "--lr_decay_style has cosine, linear, constant",
        "lora_r": "--lora_rank has no such value",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_steps", "many"), ("lr_scheduler_type", ["cosine"]), ("learning_rate", "high"), ("bf16", ["a"])],
)
def test_a_value_of_another_kind_is_a_comment(key: str, value: object) -> None:
    translation = translate(FILES["trl"], {"model_name_or_path": "m", key: value})
    assert [name for name, _, _ in translation.left_out] == [key]


def test_a_batch_that_is_no_number_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text("base_model: m\nmicro_batch_size: 1\ngradient_accumulation_steps: auto\n")
    assert main(["translate", str(file)]) == 2
    assert "axolotl: a value is not of the kind that it should be" in capsys.readouterr().err


def test_a_file_without_a_model_says_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text("cutoff_len: 512\nlora_target: all\nfinetuning_type: lora\n")
    assert main(["translate", str(file)]) == 0
    assert "# to be changed: --hf_model_path is needed" in capsys.readouterr().out


@pytest.mark.parametrize("tool", TABLES.values(), ids=lambda tool: tool.name)
def test_a_table_names_each_key_once_and_flags_that_there_are(tool) -> None:
    names = [name for row in tool.keys for name in row.theirs]
    assert sorted(names) == sorted(set(names)) and len(tool.keys) > 15
    assert [flag for row in tool.keys for flag in row.flags if flag not in SECTION_OF_FLAG] == []
    assert [row.theirs for row in tool.keys if not row.flags and not row.note] == []


def test_the_command_names_every_kind() -> None:
    assert KINDS.split("|") == list(FILES)

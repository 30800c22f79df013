"""The command line is light: what it imports, what its first answers cost, and that every flag is there."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from raymb import __version__
from raymb.cli import app, main
from raymb.spec import SECTION_OF_FLAG, SECTIONS, load_spec
from raymb.spec.names import FLAG_OF_SHORT
from raymb.spec.values import is_common

HEAVY = ("ray", "torch", "transformers", "megatron", "datasets", "omegaconf", "numpy")
SOURCE = Path(__file__).parents[2] / "src"
# A bound that a machine busy with other work still keeps; the measured value is printed.
SLACK = 2.0


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def cpu_seconds(*words: str) -> float:
    """User and system time of `python -m raymb WORDS`; the lesser of two runs, so that caches are warm."""
    costs = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("-m", "raymb", *words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"raymb {' '.join(words)}: {min(costs):.2f} s of CPU")
    return min(costs)


@pytest.mark.parametrize("words", [["--help"], ["finetune", "--help"], ["plan", "--hf_model_path", "MODEL"]])
def test_no_framework_is_imported(words, shape_only_model_dir):
    words = [str(shape_only_model_dir) if word == "MODEL" else word for word in words]
    code = (
        "import sys; from raymb.cli import main; "
        f"code = main({words!r}); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    result = run("-c", code)
    assert (result.returncode, result.stderr.strip()) == (0, "[]")


def test_help_costs_at_most_0_6_cpu_seconds():
    assert cpu_seconds("--help") <= 0.6 * SLACK
    assert cpu_seconds("finetune", "--help") <= 0.6 * SLACK


def test_plan_costs_at_most_1_5_cpu_seconds(shape_only_model_dir):
    assert cpu_seconds("plan", "--hf_model_path", str(shape_only_model_dir)) <= 1.5 * SLACK


def test_help_is_never_cut_short_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["finetune", "--help_all"]) == 0
    text = capsys.readouterr().out
    assert [flag for flag in SECTION_OF_FLAG if f"--{flag}" not in text] == []
    for part in ("--config", "--dry_run", "--no_overwrite", "Parallel:", "Cluster:", "INT|auto"):
        assert part in text


def test_an_option_of_a_commands_own_has_its_kind_and_its_default(capsys):
    assert main(["data", "inspect", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--samples INT Samples to show. (default: 3)" in text
    assert "--part train|validation|test Which rows. (default: train)" in text
    assert "--plot FILE.png Write the lengths as a picture." in text and "picture. (default" not in text
    assert " None" not in text and "--config FILE YAML of sections" in text


def commands(group=None, words=()):
    """(words, command) of every command."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, [*words, name])
        else:
            yield [*words, name], command


def takes_all_flags(command):
    return {param.name for param in command.params} >= SECTION_OF_FLAG.keys()


ALL_FLAGS = [words for words, command in commands() if takes_all_flags(command)]
FIELDS = [(section, flag, field) for section, model in SECTIONS.items() for flag, field in model.model_fields.items()]


@pytest.mark.parametrize("words", ALL_FLAGS, ids=" ".join)
def test_help_shows_what_most_runs_need_on_two_screens_and_complete_examples(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    options = lines[lines.index("Options:") :]
    flags = [line.split()[0].rstrip(",") for line in options if line.startswith("  --")]
    assert [flag for _, flag, field in FIELDS if is_common(field) != (f"--{flag}" in flags)] == []
    assert 20 <= sum(is_common(field) for _, _, field in FIELDS) <= 30
    assert max(map(len, lines)) <= 100 and len(lines) <= ({"finetune": 90, "submit": 140}.get(words[0], 100))
    assert text.index("\nExamples:") < text.index("\nOptions:") < text.index("\nModel:")
    assert "more flags: --help SECTION" in text and "--help_all" in text


@pytest.mark.parametrize("words", ALL_FLAGS, ids=" ".join)
def test_its_examples_are_commands_that_can_be_given(words, capsys):
    assert main([*words, "--help"]) == 0
    block = capsys.readouterr().out.partition("Examples:\n")[2].partition("\n\n")[0]
    examples = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert len(examples) == 2
    for example in examples:
        assert example[: len(words) + 1] == ["raymb", *words]
        command = next(command for names, command in commands() if names == words)
        values = command.make_context(words[-1], example[len(words) + 1 :]).params
        given = {flag: values[flag] for flag in SECTION_OF_FLAG if values[flag] not in (None, [], ())}
        assert load_spec({"hf_model_path": "MODEL"} | given).model.hf_model_path


@pytest.mark.parametrize("section", SECTIONS)
def test_help_of_a_section_says_all_of_its_flags_and_of_no_other(section, capsys):
    assert main(["finetune", "--num_workers", "8", "--help", section]) == 0
    text = capsys.readouterr().out
    assert main(["plan", f"--help={section}"]) == 0 and capsys.readouterr().out == text
    assert text.startswith(f"{section.capitalize()}:\n")
    flat = " ".join(text.split())
    for of, flag, field in FIELDS:
        assert (f"\n  --{flag}" in text) == (of == section)
        assert of != section or " ".join(field.description.split()) in flat


def test_the_target_of_a_job_is_a_section_too(capsys):
    assert main(["submit", "slurm", "--help", "target"]) == 0
    text = capsys.readouterr().out
    assert "--partition TEXT" in text and "--job_name" not in text and "--dataset" not in text
    assert main(["submit", "slurm", "--help"]) == 0
    assert {"Target:", "Job:"} <= set(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimiser", "--help optimiser: optimiser is no section"),
        ("train_iters", "train_iters is a flag of the section train: --help train"),
    ],
)
def test_help_of_what_is_no_section_lists_the_sections(word, said, capsys):
    assert main(["finetune", "--help", word]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and ", ".join(SECTIONS) in captured.err and captured.out == ""
    assert len(captured.err.splitlines()) == 2


def test_help_before_another_flag_or_an_override_is_the_short_one(capsys):
    texts = []
    for rest in ([], ["--train_iters", "5"], ["train.exit_interval=3"]):
        assert main(["finetune", "--help", *rest]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_all_commands_have_one_look(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help_all" if words in ALL_FLAGS else "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: raymb {' '.join(words)} ") and "\nOptions:\n" in text
    # typer's own: <str>, [default: 1; x>=1], [required]
    assert not re.search(r"<\w+>|x>=|\[default|\[required|\{[A-Z]|/ --", text)
    examples = text.partition("Examples:\n")[2].partition("\n\n")[0]
    lines = text.replace(examples, "").splitlines()
    assert [line for line in lines if len(line) > 80 and not re.fullmatch(r"  --\S+ \S+", line)] == []


@pytest.mark.parametrize(("section", "flag", "field"), FIELDS, ids=[flag for _, flag, _ in FIELDS])
def test_help_shows_choices_and_the_defaults_of_switches(section, flag, field, capsys):
    assert main(["finetune", "--help", section]) == 0
    page = capsys.readouterr().out
    text = " ".join(page.split())
    if field.annotation is bool:
        entry = text.partition(f"--{flag}, --no_{flag} ")[2]
        assert re.match(
            rf"{re.escape(' '.join(field.description.split()))} \(default: {'on' if field.default else 'off'}\)", entry
        )
    words = [word for part in re.findall(r"Literal\[([^]]+)\]", str(field.annotation)) for word in part.split(", ")]
    shown = re.search(rf"  --{flag}(?:, --\w+)? (\S+)", page)
    assert not words or (shown and [word for word in words if word.strip("'") not in shown[1]] == [])


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(words, capsys):
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "finetune" in text
    assert "plan" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_plan_json_is_one_object_on_standard_output(shape_only_model_dir, capsys):
    words = ["plan", "--json", "--hf-model-path", str(shape_only_model_dir), "--num-workers", "8", "--backend", "cuda"]
    assert main([*words, "--tensor_parallel_size=2", "--pipeline-parallel-size=2", "ddp.bucket_size=10"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    sizes = [plan[f"{name}_parallel_size"] for name in ("tensor", "pipeline", "data")]
    assert (sizes, plan["num_workers"], captured.err) == ([2, 2, 2], 8, "")


def test_plan_of_a_range_of_workers_is_that_of_the_largest_and_names_the_others(shape_only_model_dir, capsys):
    words = ["plan", "--hf_model_path", str(shape_only_model_dir), "--tensor_parallel_size", "2"]
    words += ["--micro_batch_size", "1", "--num_workers"]
    assert main([*words, "3:16", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["num_workers"], plan["elastic"]) == (16, [4, 8, 16])
    assert main([*words, "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == plan | {"elastic": None}
    assert main([*words, "3:16"]) == 0
    assert "4, 8, 16 workers (shown: 16)" in capsys.readouterr().out


SHORT = "--tp 2 --pp 4 --vpp 1 --cp 2 --dp 3 --ep 2 --etp 1"


def test_short_spellings_are_the_long_flags(shape_only_moe_dir, capsys):
    words = ["plan", "--json", "--hf_model_path", str(shape_only_moe_dir), "--backend", "cpu"]
    words += ["--global_batch_size", "12"]
    assert main([*words, *SHORT.split()]) == 0
    short = json.loads(capsys.readouterr().out)
    long = [FLAG_OF_SHORT.get(word.lstrip("-"), word) for word in SHORT.split()]
    assert main([*words, *(f"--{word}" if word in SECTION_OF_FLAG else word for word in long)]) == 0
    assert json.loads(capsys.readouterr().out) == short
    sizes = ("tensor", "pipeline", "context", "data", "expert", "expert_tensor")
    assert [short[f"{size}_parallel_size"] for size in sizes] == [2, 4, 2, 3, 2, 1]
    assert main([*words, "--TP=2"]) == 2


ALONE = [
    ("", None),
    ("--cuda_graphs", True),
    ("--cuda-graphs --tp 2", True),
    ("--cuda_graphs train.exit_interval=3", True),
    ("--cuda_graphs true --tp 2", True),
    ("--cuda_graphs=true", True),
    ("--no_cuda_graphs", False),
    ("--no-cuda-graphs --tp 2", False),
    ("--cuda_graphs false", False),
    ("--cuda_graphs auto", None),
    ("--cuda_graphs --no_cuda_graphs", False),
]


@pytest.mark.parametrize(("words", "on"), ALONE)
def test_a_flag_of_true_false_and_auto_may_stand_alone(words, on, shape_only_model_dir, capsys):
    """None: the flag is auto, and says why."""
    command = ["plan", "--json", "--hf_model_path", str(shape_only_model_dir), "--num_workers", "2", "--gpu", "h200"]
    assert main([*command, "--backend", "cuda", *words.split()]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["cuda_graphs"] if "cuda_graphs" not in plan["chosen"] else None) == on
    assert main([*command, "--backend", "cuda", "--tp", "2", "--no-sequence-parallel"]) == 0
    assert json.loads(capsys.readouterr().out)["sequence_parallel"] is False


def test_its_value_is_one_of_the_three(shape_only_model_dir, capsys):
    assert main(["plan", "--hf_model_path", str(shape_only_model_dir), "--cuda_graphs", "maybe"]) == 2
    assert "--cuda_graphs maybe: must be true or false or 'auto'" in capsys.readouterr().err


def test_every_command_that_has_the_long_flag_has_the_short_one_and_shows_it(capsys):
    for words in ALL_FLAGS:
        assert main([*words, "--help_all"]) == 0
        text = capsys.readouterr().out
        assert [short for short, flag in FLAG_OF_SHORT.items() if f"  --{flag}, --{short} " not in text] == []
    assert {"finetune", "plan", "data prepare", "submit slurm"} <= {" ".join(words) for words in ALL_FLAGS}
    assert len(ALL_FLAGS) == 10


def test_the_missions_command_plans(shape_only_model_dir, tmp_path, capsys):
    words = (
        "--num_workers 8 --tensor_parallel_size 2 --pipeline_parallel_size 2 --train_iters 100 --global_batch_size 8 "
        f"--micro_batch_size 1 --seq_length 512 --storage_path {tmp_path} --learning_rate 1e-5 --eval_interval 10 "
        "--save_interval 50 --experiment_name first --backend cpu"
    )
    assert main(["plan", "--hf_model_path", str(shape_only_model_dir), *words.split()]) == 0
    assert "8 = 2 x 2 x 1 x 2" in capsys.readouterr().out


def rows_file(directory: Path) -> Path:
    file = directory / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "a {number}", "completion": "b"}}\n' for number in range(20)))
    return file


def test_dry_run_prints_a_spec_that_repeats_it_and_makes_rows_only(shape_only_model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "sesame")
    storage = tmp_path / "runs"
    words = ["--hf_model_path", str(shape_only_model_dir), "--dataset", str(rows_file(tmp_path)), "--backend", "cpu"]
    words += ["--storage_path", str(storage), "--env", "HF_TOKEN", "--env", "NCCL_DEBUG=INFO", "--num_workers=2"]
    assert main(["finetune", "--dry_run", *words]) == 0
    text = capsys.readouterr().out
    assert "19 rows to train on, 1 for validation" in text
    assert "sesame" not in text
    printed = tmp_path / "printed.yaml"
    printed.write_text(text.partition("# the resolved spec")[2].partition("\n")[2])
    spec = load_spec({}, [printed])
    assert (spec.parallel.num_workers, spec.run.storage_path) == (2, str(storage))
    assert spec.cluster.env == {"NCCL_DEBUG": "INFO"}  # a secret is given again, never stored
    assert [place.name for place in storage.iterdir()] == ["_prepared"]


def test_dry_run_imports_no_ray(shape_only_model_dir, tmp_path):
    words = ["finetune", "--dry_run", "--hf_model_path", str(shape_only_model_dir)]
    words += ["--dataset", str(rows_file(tmp_path))]
    code = f"import sys; from raymb.cli import main; main({words!r}); print('ray' in sys.modules, file=sys.stderr)"
    assert run("-c", code).stderr.strip() == "False"


def test_an_unexpected_exception_keeps_its_traceback(shape_only_model_dir, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("raymb.plan.make_plan", broken)
    with pytest.raises(ZeroDivisionError):
        main(["plan", "--hf_model_path", str(shape_only_model_dir)])


def test_ctrl_c_exits_130(shape_only_model_dir, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("raymb.plan.make_plan", interrupted)
    assert main(["plan", "--hf_model_path", str(shape_only_model_dir)]) == 130
    assert "Traceback" not in capsys.readouterr().err

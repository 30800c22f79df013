"""docs/coming-from.md: what other tools' users bring, translated; every key is one of raymb's, every example plans."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raymb.plan import make_plan
from raymb.plan.gpus import GIB, gpu_named
from raymb.recipes.fields import check_overrides
from raymb.spec import FLAG_THAT_OWNS, RunSpec, load_spec
from raymb.spec.other_tools import TABLES
from raymb.spec.other_tools.page import tables_of, with_tables
from raymb.spec.other_tools.record import Tool
from tests.test_configs import plan_for_its_gpu, shape_of

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
TOOLS = re.split(r"^## ", PAGE, flags=re.M)[1:]
EXAMPLES = [
    (tool.splitlines()[0].partition(":")[0], text)
    for tool in TOOLS
    for text in re.findall(r"```yaml\n(.*?)```", tool, re.S)
]


MEAN_OTHERS = {"load", "save"}
"""Keys that are more than the field of the same name: ms-swift's --load is the model."""


def spec_of(text: str, directory: Path) -> RunSpec:
    file = directory / "run.yaml"
    file.write_text(text)
    return load_spec({}, [file])


@pytest.mark.parametrize(("tool", "text"), EXAMPLES, ids=[f"{tool}-{at}" for at, (tool, _) in enumerate(EXAMPLES)])
def test_a_translation_plans_and_fits(tool: str, text: str, tmp_path: Path) -> None:
    spec = spec_of(text, tmp_path)
    check_overrides(spec.overrides)
    plan = plan_for_its_gpu(spec)
    assert plan.layout.num_workers == plan.layout.model_parallel_size * plan.layout.data_parallel_size


def test_all_four_tools_are_there() -> None:
    assert {tool for tool, _ in EXAMPLES} == {"Oumi", "ms-swift", "LLaMA-Factory", "Ray Train"}
    examples = dict(EXAMPLES)
    assert "tensor_parallel_size: 8" in examples["Oumi"] and "expert_parallel_size: 2" in examples["LLaMA-Factory"]


def test_the_tables_are_those_that_translate() -> None:
    assert with_tables(PAGE) == PAGE, "run scripts/generate-reference"
    assert sorted(tables_of(PAGE)) == sorted(TABLES) and len(PAGE.split("## ")) == len(TABLES) + 1
    assert "| `cutoff_len` | `data.seq_length` |  |" in PAGE
    stale = PAGE.replace("| `cutoff_len` | `data.seq_length` |", "| `cutoff_len` | `data.packing` |")
    assert with_tables(stale) == PAGE


@pytest.mark.parametrize("tool", TABLES.values(), ids=lambda tool: tool.name)
def test_megatrons_own_names_lead_to_the_flag_that_owns_them(tool: Tool) -> None:
    """Where a tool has Megatron's name for a field, the row names the flag that owns it."""
    names = {path.rpartition(".")[2]: flag for path, flag in FLAG_THAT_OWNS.items()}
    for row in tool.keys:
        for name in row.theirs:
            flag = names.get(name.rpartition(".")[2])
            assert flag is None or not row.flags or flag in row.flags or name in MEAN_OTHERS, (name, row.flags)


def test_why_one_translation_differs(tmp_path: Path) -> None:
    spec = spec_of(dict(EXAMPLES)["Oumi"].replace("optimizer_offload: 1.0", "optimizer_offload: 0.0"), tmp_path)
    plan = make_plan(spec, shape_of(spec.model.hf_model_path), backend="cuda", gpu=gpu_named(spec.cluster.gpu))
    assert plan.memory is not None and round(plan.memory["total"] / GIB) == 86

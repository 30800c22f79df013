"""Every patch of upstream is still needed. One process asks the probes, before any patch but the imports' is applied,
as Megatron cannot be imported on a CPU without them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from raymb.bridge.patches import SUBJECTS

SOURCES = Path(__file__).parents[2] / "src"
ROOM = SOURCES / "raymb" / "bridge" / "patches"

SCRIPT = """
import json, traceback
from raymb import cpu
from raymb.bridge.patches import all_patches, imports
from raymb.bridge.patches.patch import upstream

imports.install()
cpu.activate()
for architecture in (
    "LlamaForCausalLM",
    "Gemma3ForCausalLM",
    "NemotronHForCausalLM",
    "FalconH1ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
):
    imports.load_family(architecture)

def asked(patch):
    try:
        upstream(patch.symbol)
        return patch.probe()
    except Exception:
        return traceback.format_exc()

answers = [
    dict(
        name=patch.name,
        package=patch.package,
        version=patch.version,
        symbol=patch.symbol,
        what_breaks=patch.what_breaks,
        module=patch.probe.__module__,
        needed=asked(patch),
    )
    for patch in all_patches()
]

from raymb.bridge.patches import adapters, attention, checkpoint_writing, low_rank

for twice in range(2):
    checkpoint_writing.keep_write_results_in_process()
    checkpoint_writing.build_config_text_once()
    attention.record_layers_without_masks()
mended = dict(
    results=checkpoint_writing._results_need_a_process(),
    configuration=checkpoint_writing._builds_the_text_anew(),
    masks=attention._layers_have_masks(),
    parts=low_rank._calls_absent_adapters(adapters.mended),
    bias=adapters._scales_bias(adapters._DoRALinear),
)
print("\\n" + json.dumps([answers, mended]))
"""


@pytest.fixture(scope="module")
def answers() -> list[Any]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def patches(answers: list[Any]) -> list[dict[str, Any]]:
    return answers[0]


def test_upstream_still_has_every_defect(patches: list[dict[str, Any]]) -> None:
    for patch in patches:
        print(f"{patch['package']} {patch['version']}, {patch['symbol']}: {patch['name']}: {patch['needed']}")
    gone = [patch for patch in patches if patch["needed"] is not True]
    assert not gone, "upstream has mended, moved or renamed: " + "; ".join(
        f"{patch['name']} ({patch['symbol']}): {patch['needed']}" for patch in gone
    )


def test_probes_see_no_defect_where_it_is_mended(answers: list[Any]) -> None:
    """Those that try the code itself, in the same process after the patches were applied."""
    assert answers[1] == dict.fromkeys(("results", "configuration", "masks", "parts", "bias"), False)


def test_each_patch_says_what_it_is_for(patches: list[dict[str, Any]]) -> None:
    names = [patch["name"] for patch in patches]
    assert len(names) == len(set(names)) >= 24
    for patch in patches:
        assert version(patch["package"]) == patch["version"], patch["name"]
        assert len(patch["what_breaks"]) > 30, patch["name"]


def test_each_subject_has_patches_and_each_file_is_a_subject(patches: list[dict[str, Any]]) -> None:
    files = {file.stem for file in ROOM.glob("*.py")} - {"__init__", "patch"}
    assert files == set(SUBJECTS) == {patch["module"].rpartition(".")[2] for patch in patches}


def test_no_line_of_upstream_is_given_by_its_number() -> None:
    for file in (SOURCES / "raymb" / "bridge").rglob("*.py"):
        assert not re.search(r"\blines? \d", file.read_text(encoding="utf-8")), file.name


def test_no_other_file_of_the_room_assigns_to_upstream() -> None:
    """By the ways in which patches do it: to an attribute of an imported class or module."""
    for file in (SOURCES / "raymb" / "bridge").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron")
            for alias in node.names
        }
        targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
        owners = [target.value for target in targets if isinstance(target, ast.Attribute)]
        assert not imported & {owner.id for owner in owners if isinstance(owner, ast.Name)}, file.name

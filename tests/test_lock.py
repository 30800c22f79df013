"""The pinned lists are those of pyproject.toml; no network."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import lock  # noqa: E402

TEXTS = {name: (lock.DIRECTORY / f"{name}.txt").read_text(encoding="utf-8") for name in lock.LISTS}
VERSIONS = {
    name: {package: pin.split()[0].partition("==")[2] for package, pin in lock.pins(text).items()}
    for name, text in TEXTS.items()
}


@pytest.mark.parametrize("name", lock.LISTS)
def test_a_list_is_fresh(name: str) -> None:
    assert TEXTS[name].startswith(lock.header(name)), "run scripts/lock"


@pytest.mark.parametrize("name", lock.LISTS)
def test_a_list_has_hashes_and_no_index(name: str) -> None:
    assert VERSIONS[name]
    for pin in lock.pins(TEXTS[name]).values():
        assert re.fullmatch(r"\S+==\S+( \\\n +--hash=sha256:[0-9a-f]{64})+", pin), pin
    assert lock.header(name) + "".join(f"{pin}\n" for pin in lock.pins(TEXTS[name]).values()) == TEXTS[name]
    assert "://" not in TEXTS[name]


@pytest.mark.parametrize("name", lock.LISTS)
def test_a_list_has_what_raymb_asks_for(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in lock.LISTS[name].extras)]
    pinned = VERSIONS["cpu"] | VERSIONS[name]
    for requirement in (Requirement(text) for texts in asked for text in texts):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)], True), requirement


def test_lists_do_not_contradict_each_other() -> None:
    for name in ("dev", "cuda"):
        assert not VERSIONS[name].keys() & VERSIONS["cpu"].keys()
    both = VERSIONS["dev"].keys() & VERSIONS["cuda"].keys()
    assert {package: VERSIONS["dev"][package] for package in both} == {
        package: VERSIONS["cuda"][package] for package in both
    }


def test_the_input_is_what_the_lists_are_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(lock, "ROOT", tmp_path)

    def hash_with(old: str, new: str) -> str:
        assert text.count(old) == 1
        (tmp_path / "pyproject.toml").write_text(text.replace(old, new), encoding="utf-8")
        return lock.input_hash()

    same = hash_with("line-length = 120", "line-length = 121")
    assert lock.header("cpu") == TEXTS["cpu"][: len(lock.header("cpu"))]
    changed = {hash_with('"ray[train]==2.60.0"', '"ray[train]==2.61.0"'), hash_with("onnxscript ;", "onnx ;")}
    changed.add(hash_with('"pytest-split>=0.11,<0.12"', '"pytest-split"'))
    assert len(changed) == 3 and same not in changed

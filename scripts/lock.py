"""The pinned lists in requirements/, made from pyproject.toml. Run by scripts/lock; the tests ask it for the input."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIRECTORY = ROOT / "requirements"


@dataclass(frozen=True)
class PinnedList:
    """One file of requirements/.

    Args:
        extras: of raymb, that it has besides what raymb always needs.
        glibc: the oldest that its wheels have to run with.
        comment: what stands above it.
    """

    extras: tuple[str, ...]
    glibc: str
    comment: str


LISTS = {
    "cpu": PinnedList(
        ("sample",),
        "2_28",
        """\
Everything that raymb imports on a CPU worker, complete and pinned: Python 3.12, Linux x86-64. scripts/setup installs
it. Install with dependency resolution off (uv pip install --no-deps -r ..., or pip install --no-deps -r ...): by its
own metadata megatron-bridge 0.6.2 asks for megatron-core[dev,mlm], which has parts that do not install. pyproject.toml
says in [tool.uv] what is left out.""",
    ),
    "dev": PinnedList(
        ("sample", "dev", "score", "benchmarks"),
        "2_28",
        """\
What scripts/test needs on top of cpu.txt. Install with dependency resolution off, too.""",
    ),
    "cuda": PinnedList(
        ("sample", "cuda"),
        "2_39",
        """\
What a CUDA host needs on top of cpu.txt; scripts/install-cuda installs it. Needs glibc 2.39 (nvidia-resiliency-ext has
no older wheel) and CUDA 13.0's nvcc: transformer-engine-torch has no wheel, and is built against the installed torch,
with the headers of nvidia-mathdx.""",
    ),
}
"""In the order in which they are made: each keeps to the versions of those before it, and has nothing that is in the
first."""
_PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==[^\\\n]*(?:\\\n[^\\\n]*)*", re.M)
"""A pin with its hashes, on lines of their own."""


def input_hash() -> str:
    """Of all that the lists are made from."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, extras = file["project"], {extra: None for one in LISTS.values() for extra in one.extras}
    given = {
        "python": project["requires-python"],
        "dependencies": project["dependencies"],
        "extras": {name: project["optional-dependencies"][name] for name in extras},
        "uv": file["tool"]["uv"],
        "lists": {name: (one.extras, one.glibc) for name, one in LISTS.items()},
    }
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


def pins(text: str) -> dict[str, str]:
    """Package to its pin with hashes."""
    return {match[1]: match[0] for match in _PIN.finditer(text)}


def header(name: str) -> str:
    lines = [*LISTS[name].comment.splitlines(), f"Made by scripts/lock from pyproject.toml, input {input_hash()}."]
    return "".join(f"# {line}\n" for line in lines)


def resolved(name: str, former: str, flags: Sequence[str]) -> dict[str, str]:
    """What uv resolves raymb with the extras of a list to: the former versions where they fit."""
    wanted = LISTS[name]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "pinned.txt")
        out.write_text(former, encoding="utf-8")
        command = ["uv", "pip", "compile", "--quiet", "pyproject.toml", "--output-file", str(out), *flags]
        command += ["--python-version", "3.12", "--python-platform", f"x86_64-manylinux_{wanted.glibc}"]
        command += ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate"]
        command += [word for extra in wanted.extras for word in ("--extra", extra)]
        for earlier in list(LISTS)[: list(LISTS).index(name)]:
            command += ["--constraints", str(DIRECTORY / f"{earlier}.txt")]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            sys.exit(code)
        return pins(out.read_text(encoding="utf-8"))


def main(flags: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in LISTS:
        file = DIRECTORY / f"{name}.txt"
        former = "".join(f"{pin}\n" for pin in (first | pins(file.read_text(encoding="utf-8"))).values())
        found = resolved(name, former, flags)
        first = first or found
        own = found if name == "cpu" else {package: pin for package, pin in found.items() if package not in first}
        file.write_text(header(name) + "".join(f"{pin}\n" for pin in own.values()), encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {len(own)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])

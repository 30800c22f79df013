"""Shell completion as the shell asks for it: by environment variables, and once in bash itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("ray", "torch", "transformers", "megatron", "datasets", "omegaconf", "numpy", "wandb", "mlflow")
_MAIN = "import sys; from raymb.cli import main; main([])"


def completed(line: str, code: str = _MAIN) -> tuple[list[str], str]:
    """What may stand where a command line ends, as bash is told; and standard error."""
    words = line.split()
    at = len(words) - (0 if line.endswith(" ") else 1)
    asked = {"_RAYMB_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(at)}
    environment = os.environ | asked | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raymb fin", {"finetune"}),
        ("raymb data ", {"prepare", "inspect"}),
        ("raymb rec", {"recipes"}),
        ("raymb r", {"runs", "report", "recipes"}),
        ("raymb report --com", {"--compare"}),
        ("raymb finetune --mlflow", {"--mlflow_experiment", "--mlflow_tracking_uri"}),
        ("raymb finetune --backend ", {"auto", "cuda", "cpu"}),
        ("raymb finetune --train_iters 5 --bad_loss r", {"rollback"}),
        ("raymb plan --recompute s", {"selective"}),
    ],
)
def test_commands_flags_and_words_are_completed(line: str, expected: set[str]) -> None:
    assert set(completed(line)[0]) == expected


def test_no_framework_is_imported_for_it() -> None:
    code = (
        "import atexit, sys; from raymb.cli import main; "
        f"atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)); "
        "main([])"
    )
    assert completed("raymb finetune --learning", code) == (["--learning_rate"], "[]\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_it_is_installed_for_bash(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "raymb"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom raymb.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PYTHONPATH": str(SOURCE),
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
    }

    def bash(script: str) -> str:
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    bash("raymb --install-completion; exit $?")  # a shell that stays: it is found by being the parent
    asked = 'COMP_WORDS=(raymb finetune --packi); COMP_CWORD=2; _raymb_completion raymb; echo "${COMPREPLY[@]}"'
    assert bash(f"source ~/.bashrc && {asked}").split() == ["--packing"]

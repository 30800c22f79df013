"""Handing a job's directory over to a login node: rsync takes it there, and the command is run there by ssh.

Values of variables go through ssh's standard input: a command line is for every user of a machine to read.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from raymb.errors import SubmitError

_SHELL = ("bash", "-l", "-s")
"""A login shell, whose PATH has the scheduler."""


def hand_over(host: str, source: Path, to: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Copy a directory to a host and run a command in the copy.

    Args:
        to: the directory there, absolute or in the home directory; a shell's word.
        variables: the command's environment, beside the user's own there.

    Raises:
        SubmitError: ssh or rsync is not here, or fails.
    """
    if missing := [program for program in ("rsync", "ssh") if shutil.which(program) is None]:
        raise SubmitError(
            f"there is no {missing[0]} on PATH, which --ssh_host needs",
            "apt-get install rsync openssh-client; or run raymb submit on the login node",
        )
    _run(host, copying(host, source, to), None)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    _run(host, ["ssh", host, *_SHELL], _script(to, command, exports))


def shown(host: str, source: Path, to: str, command: Sequence[str], variables: Sequence[str]) -> str:
    """The same for a user to copy; the shell fills in the values."""
    exports = [f"export {name}='${name}'" for name in variables]
    end = "END" if variables else "'END'"
    script = _script(to, command, exports)
    return f"{shlex.join(copying(host, source, to))} &&\n  {shlex.join(['ssh', host, *_SHELL])} << {end}\n{script}END"


def copying(host: str, source: Path, to: str) -> list[str]:
    """`rsync --mkpath` is younger than what many clusters have."""
    return ["rsync", "--archive", "--compress", f"--rsync-path=mkdir -p {to} && rsync", f"{source}/", f"{host}:{to}/"]


def _script(to: str, command: Sequence[str], exports: Sequence[str]) -> str:
    return "\n".join([f"cd {to} || exit 1", *exports, f"exec {shlex.join(command)} < /dev/null", ""])


def _run(host: str, command: Sequence[str], text: str | None) -> None:
    code = subprocess.run(command, input=text, text=True).returncode
    if code:
        raise SubmitError(
            f"{command[0]} to {host} ended with exit code {code}: {shlex.join(command)}",
            f"`ssh {host} rsync --version` and `ssh {host} {shlex.join(_SHELL)}` must work",
        )

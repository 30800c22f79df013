"""Programs that stand in for a cluster's on PATH. They run: an ssh whose host is another home directory, an rsync that
copies, an sbatch that notes how it was called, an srun that runs its command once a node."""

from __future__ import annotations

from pathlib import Path

HOST = "me@login"
SSH = """#!/bin/bash
# As sshd does: a shell gets the words as one line, in the user's home directory.
host=$1; shift
if [ "$host" = -l ]; then host=$1@$2; shift 2; fi # rsync's way to name a user
printf '%s\\n' "$host $*" >> "{called}/ssh"
[ "$host" = {host} ] || {{ echo "ssh: Could not resolve hostname $host" >&2; exit 255; }}
cd "{there}" || exit 1
exec env -i HOME="{there}" PATH=/usr/bin:/bin bash -c "$*"
"""
RSYNC = """#!/bin/bash
# rsync --archive --compress '--rsync-path=mkdir -p DIRECTORY && rsync' SOURCE/ HOST:DIRECTORY/
printf '%s\\n' "$*" >> "{called}/rsync"
from=${{@: -2:1}} to=${{@: -1}}
ssh "${{to%%:*}}" "mkdir -p ${{to#*:}}" || exit 255
tar -C "$from" -cf - . | ssh "${{to%%:*}}" "tar -C ${{to#*:}} -xf -"
"""
SBATCH = """#!/bin/bash
{{ echo "$PWD"; printf '%s\\n' "$@"; }} > "{called}/sbatch"
env > "{called}/environment"
echo "Submitted batch job 42"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
code=0
for node in 0 1; do SLURM_NODEID=$node "$@" || code=$?; done
exit "$code"
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "{called}/scontrol"
"""
PYTHON = """#!/bin/bash
# In place of the Python that starts Ray and the driver: what it is given, and leaves in Ray's directory.
echo "node $SLURM_NODEID in $PWD, $(stat -c %a "$RAY_TMPDIR"), $PYTHONPATH" >> "{called}/python"
printf '  %s\\n' "$@" >> "{called}/python"
touch "$RAY_TMPDIR/session"
exit "$(cat "{called}/code" 2> /dev/null || echo 0)"
"""


def install(place: Path, **programs: str) -> Path:
    """Write the programs by name; returns the directory for PATH. Where they note their calls: place/called; the home
    directory on the other side of ssh: place/there."""
    names = {name: place / name for name in ("programs", "called", "there")}
    for directory in names.values():
        directory.mkdir(parents=True, exist_ok=True)
    # Where the scheduler is, a login shell knows: a command that ssh runs does not.
    (names["there"] / ".bash_profile").write_text(f'export PATH="{names["programs"]}:$PATH"\n')
    for name, text in programs.items():
        file = names["programs"] / name
        file.write_text(text.format(host=HOST, **names))
        file.chmod(0o755)
    return names["programs"]

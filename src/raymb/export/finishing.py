"""What an export has written, until it is verified: then it takes its place, or is marked and left beside it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from raymb.errors import RunFailed, last_line
from raymb.model.merge import merge
from raymb.run.unverified import UnverifiedExport, or_nothing
from raymb.runtime.child import Child
from raymb.telemetry.records import Findings

FAILED = "VERIFICATION_FAILED.txt"


def finish(written: UnverifiedExport, beat: Callable[[], None]) -> Findings:
    """Merge what is to be merged, verify in a fresh process, and put the directories into their places, where they
    replace older ones.

    Args:
        beat: called while it runs.

    Returns:
        raymb.export.verify.check's findings, with `seconds` and the `directories`.

    Raises:
        RunFailed: they are not what they should be, and are left, marked, as DIRECTORY-failed; or the merged model
            cannot be written, and nothing is left.
    """
    began = time.monotonic()
    if written.merge is not None:
        with or_nothing([*written.directories.values(), Path(written.request.reference)]):
            merge(Path(written.request.base), Path(written.request.adapter), Path(written.request.model), written.merge)
    verifying = Child("raymb.export.verify", {"OMP_NUM_THREADS": str(written.threads)})
    findings, errors = verifying.result(written.request.to_json(), beat)
    problems = findings["problems"] if findings else [f"it cannot be loaded: {last_line(errors)}"]
    Path(written.request.reference).unlink(missing_ok=True)
    if findings is None or problems:
        raise RunFailed(
            f"the export is not what it should be: {'; '.join(problems)}",
            f"it is left in {', '.join(_mark(written, problems))}",
        )
    for target, partial in written.directories.items():
        _move(partial, target)
    seconds = round(time.monotonic() - began, 1)
    return Findings(**findings, seconds=seconds, directories=list(map(str, written.directories)))


def _mark(written: UnverifiedExport, problems: list[str]) -> list[str]:
    """Where the directories are left, each with a file that says why."""
    places = []
    for target, partial in written.directories.items():
        failed = target.with_name(f"{target.name}-failed")
        (partial / FAILED).write_text("".join(f"- {problem}\n" for problem in problems), encoding="utf-8")
        _move(partial, failed)
        places.append(str(failed))
    return places


def _move(partial: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)

"""Where Bridge's checkpoints lie and which ones count. No framework is imported: the driver reads them, too.

A checkpoint is whole when its manifest is there, which is written last, and every file that it names has the size and
the SHA-256 that it says. `latest` and `best` are for people and other programs; a run looks for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raymb.run.directory import ITERATION, LEFT_OUT, MANIFEST, POINTERS, REJECTED, is_iteration
from raymb.storage.files import write_atomically

LATEST, BEST = POINTERS[:2]
_BACKEND = re.compile(r"^  distributed_backend: (\w+)$", re.MULTILINE)
_THREADS = 4


def iteration_dir(checkpoint_dir: str | Path, step: int) -> str:
    return str(Path(checkpoint_dir) / f"iter_{step:07d}")


def point(checkpoint_dir: str | Path, name: str, step: int) -> None:
    """Move a pointer, a text file with the iteration directory's name: it works on every file system."""
    write_atomically(Path(checkpoint_dir, name), Path(iteration_dir(checkpoint_dir, step)).name + "\n")


def write_manifest(directory: str | Path, files: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
    """Make a checkpoint count.

    Args:
        files: name to {"bytes", "sha256"}.
        state: what else belongs to it: step, validation losses.
    """
    write_atomically(Path(directory, MANIFEST), json.dumps({**state, "files": files}, indent=1) + "\n")


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """None when there is none, or none that says what files there are."""
    try:
        manifest = json.loads(Path(directory, MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    entries = files.values() if isinstance(files, dict) else [None]
    sound = all(isinstance(entry, dict) and entry.keys() >= {"bytes", "sha256"} for entry in entries)
    return manifest if sound else None


def describe_files(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Name to size in bytes and SHA-256 of each file."""
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(_sha256, paths := list(paths))
        return {
            path.name: {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(paths, digests, strict=True)
        }


def steps_of(checkpoint_dir: str | Path) -> list[int]:
    """The steps of all iteration directories, whole or not, newest first."""
    try:
        return steps_in(path.name for path in Path(checkpoint_dir).iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def steps_in(names: Iterable[str]) -> list[int]:
    """The steps of the iteration directories among some names, newest first."""
    matches = [ITERATION.fullmatch(name) for name in names]
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def why_not_whole(directory: str | Path) -> str:
    """What is wrong with a checkpoint as far as names and sizes tell, which takes no time; "" if nothing is."""
    manifest = read_manifest(directory)
    if manifest is None:
        return f"no {MANIFEST}, which is written last"
    for name, entry in manifest["files"].items():
        file = Path(directory, name)
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            return f"{name} is missing" if size is None else f"{name} has {size} bytes, should have {entry['bytes']}"
    return ""


def is_by_others(directory: str | Path) -> bool:
    """Whether Bridge wrote a checkpoint without raymb: it has no manifest, and needs none to be loaded."""
    config = Path(directory, "run_config.yaml")
    finished = Path(directory, "train_state.pt").is_file() and config.is_file()
    return finished and read_manifest(directory) is None and "raymb.bridge" not in config.read_text(encoding="utf-8")


def wrong_content(directory: str | Path, share: int = 0, shares: int = 1) -> str:
    """The first file whose checksum is not the manifest's, of this share of the files; "" if there is none."""
    files = (read_manifest(directory) or {"files": {}})["files"]

    def problem(name: str) -> str:
        try:
            return "" if _sha256(Path(directory, name)) == files[name]["sha256"] else f"{name} has another checksum"
        except OSError as error:  # a bad block; other ranks wait for the answer
            return f"{name} cannot be read: {error.strerror}"

    with ThreadPoolExecutor(_THREADS) as pool:
        return next(filter(None, pool.map(problem, sorted(files)[share::shares])), "")


def reject(directory: str | Path, problem: str) -> None:
    """Have a damaged checkpoint count for nothing from now on, and no start look at it again. Its files stay until it
    would be deleted as an old one; the former name of its manifest brings it back."""
    manifest, rejected = Path(directory, MANIFEST), Path(directory, REJECTED)
    with contextlib.suppress(OSError):  # where nothing can be written it is found damaged again
        if manifest.exists():
            os.replace(manifest, rejected)
        else:
            write_atomically(rejected, json.dumps({"problem": problem}) + "\n")


def reshaped(checkpoint_dir: str | Path) -> Path:
    """Where checkpoints lie that were resharded for another layout (raymb.driver.resharding)."""
    return Path(checkpoint_dir, "reshaped")


def candidates(checkpoint_dir: str | Path, resume: str) -> list[str]:
    """Iteration directories that a run may resume from: newest first, its own before those of --resume PATH, and a
    resharded one before its original."""
    directories = [one for one in own_candidates(checkpoint_dir, steps_of) if not Path(one, REJECTED).exists()]
    if resume in ("auto", "never"):
        return directories
    other = Path(resume).expanduser()
    steps = [] if is_iteration(other) else steps_of(other)
    return [*directories, *([iteration_dir(other, step) for step in steps] or [str(other)])]


def own_candidates(checkpoint_dir: str | Path, steps_at: Callable[[Path], list[int]]) -> list[str]:
    """The run's own candidates.

    Args:
        steps_at: the steps of the iteration directories in a directory.
    """
    homes = [reshaped(checkpoint_dir), Path(checkpoint_dir)]
    own = [(-step, place, iteration_dir(home, step)) for place, home in enumerate(homes) for step in steps_at(home)]
    return [directory for *_, directory in sorted(own)]


def latest_step(checkpoint_dir: str | Path) -> int | None:
    """The step of the newest checkpoint that looks whole, None when there is none."""
    steps = steps_of(checkpoint_dir)
    return next((step for step in steps if not why_not_whole(iteration_dir(checkpoint_dir, step))), None)


def written_with(directory: str | Path) -> str | None:
    """torch.distributed's back end in the run that wrote an iteration directory, nccl or gloo; None if it does not
    say. CUDA's random state means nothing to a CPU, nor the other way round, and Bridge would stop at it."""
    file = Path(directory, "run_config.yaml")
    match = _BACKEND.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return match.group(1) if match else None


def losses_so_far(directory: str | Path) -> list[list[float]]:
    """[step, loss] of every validation up to a checkpoint."""
    return (read_manifest(directory) or {}).get("validation_losses", [])


def left_out(checkpoint_dir: str | Path) -> list[int]:
    """The steps whose batches --bad_loss rollback leaves out."""
    try:
        return json.loads(Path(checkpoint_dir, LEFT_OUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def leave_out(checkpoint_dir: str | Path, step: int) -> None:
    """Leave a step's batch out from the next start on."""
    write_atomically(Path(checkpoint_dir, LEFT_OUT), json.dumps(sorted({*left_out(checkpoint_dir), step})) + "\n")


def best_step(checkpoint_dir: str | Path) -> int | None:
    """The whole checkpoint with the lowest metric; the later one of two that are equal."""
    ranked = _by_metric(checkpoint_dir)
    return ranked[0] if ranked else None


def delete_old(
    checkpoint_dir: str | Path, keep_last: int | None, keep_best: int | None, in_use: Iterable[int] = ()
) -> list[int]:
    """Delete all checkpoints but the newest, the best ones and those in use, and return the steps that are gone. A
    directory that is not whole and older than the newest whole one goes, too: nobody will finish it."""
    newest = latest_step(checkpoint_dir)
    if newest is not None and all(step < newest for step in steps_of(reshaped(checkpoint_dir))):
        shutil.rmtree(reshaped(checkpoint_dir), ignore_errors=True)  # it has done its work
    if keep_last is None:
        return []
    steps = steps_of(checkpoint_dir)
    whole = [step for step in steps if not why_not_whole(iteration_dir(checkpoint_dir, step))]
    kept = {*in_use, *whole[:keep_last], *_by_metric(checkpoint_dir)[: keep_best or 0]}
    gone = [step for step in steps if whole and step < whole[0] and step not in kept]
    for step in gone:
        directory = Path(iteration_dir(checkpoint_dir, step))
        (directory / MANIFEST).unlink(missing_ok=True)  # first: what is half deleted must not count
        shutil.rmtree(directory, ignore_errors=True)
    return gone


def _by_metric(checkpoint_dir: str | Path) -> list[int]:
    """Steps of the whole checkpoints that have a metric, best first; NaN is none."""
    manifests = {step: read_manifest(iteration_dir(checkpoint_dir, step)) or {} for step in steps_of(checkpoint_dir)}
    metrics = {step: found["metric"] for step, found in manifests.items() if _is_finite(found.get("metric"))}
    whole = [step for step in metrics if not why_not_whole(iteration_dir(checkpoint_dir, step))]
    return sorted(whole, key=lambda step: (metrics[step], -step))


def _is_finite(metric: Any) -> bool:
    return isinstance(metric, int | float) and math.isfinite(metric)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

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

from raymb.run.directory import ITERATION, LEFT_OUT, MANIFEST, POINTERS, REJECTED, RESHAPED, is_iteration
from raymb.storage.files import write_atomically

LATEST, BEST = POINTERS[:2]
_BACKEND = re.compile(r"^  distributed_backend: (\w+)$", re.MULTILINE)
_THREADS = 4
KEEP_LAST, KEEP_BEST = 3, 1
"""Defaults: should the newest be damaged there is the one before, with one more to go back to by hand, and the best."""

type Manifests = dict[int, dict[str, Any]]
"""Of checkpoints, by step."""


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
        return parse_manifest(Path(directory, MANIFEST).read_bytes())
    except OSError:
        return None


def parse_manifest(content: bytes | None) -> dict[str, Any] | None:
    """A manifest's content; None if it does not say what files there are."""
    try:
        manifest = json.loads(content or b"")
    except ValueError:
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
    mine = {name: files[name] for name in sorted(files)[share::shares]}
    return next(iter(wrong_files(directory, mine).values()), "")


def wrong_files(directory: str | Path, files: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What is wrong with the content of those files that do not have the manifest's entries that are given."""

    def problem(name: str) -> str:
        try:
            same = _sha256(Path(directory, name)) == files[name]["sha256"]
            return "" if same else f"{name} has another checksum"
        except OSError as error:  # a bad block; other ranks wait for the answer
            return f"{name} cannot be read: {error.strerror}"

    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(files, pool.map(problem, files), strict=True))
    return {name: text for name, text in found.items() if text}


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
    return Path(checkpoint_dir, RESHAPED)


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


def whole(checkpoint_dir: str | Path, known: Manifests | None = None) -> Manifests:
    """The manifests of the checkpoints that look whole.

    Args:
        known: what an earlier look has found; its files, two a rank, are not looked at again.
    """
    known, there = known or {}, steps_of(checkpoint_dir)
    directories = {step: iteration_dir(checkpoint_dir, step) for step in there if step not in known}
    found = {step: read_manifest(one) for step, one in directories.items() if not why_not_whole(one)}
    found |= {step: manifest for step, manifest in known.items() if step in there}
    return {step: manifest for step, manifest in found.items() if manifest is not None}


def latest_of(manifests: Manifests) -> int | None:
    """The newest step, None when there is none."""
    return max(manifests, default=None)


def best_of(manifests: Manifests) -> int | None:
    """The step with the lowest metric; the later one of two that are equal."""
    return next(iter(_by_metric(manifests)), None)


def latest_step(checkpoint_dir: str | Path) -> int | None:
    """The step of the newest checkpoint that looks whole, None when there is none."""
    return latest_of(whole(checkpoint_dir))


def best_step(checkpoint_dir: str | Path) -> int | None:
    """The step of the best checkpoint that looks whole, None when none has a metric."""
    return best_of(whole(checkpoint_dir))


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


def old_steps(
    steps: Iterable[int], manifests: Manifests, keep_last: int | None, keep_best: int | None, in_use: Iterable[int]
) -> list[int]:
    """The steps to delete: all but the newest, the best ones and those in use. One that is not whole and older than the
    newest whole one goes, too: nobody will finish it.

    Args:
        steps: of all iteration directories, newest first.
        manifests: of the whole ones.
        keep_last: 0 to delete nothing; None for the default, which deletes nothing that is older than a checkpoint
            written while all were kept: by an older raymb, or with --keep_last 0.
    """
    if keep_last == 0 or not manifests:
        return []
    newest, spared = sorted(manifests, reverse=True), -1
    if keep_last is None:
        keep_last, keep_best = KEEP_LAST, KEEP_BEST if keep_best is None else keep_best
        spared = next((step for step in newest if not manifests[step].get("deletable")), -1)
    kept = {*in_use, *newest[:keep_last], *_by_metric(manifests)[: keep_best or 0]}
    return [step for step in steps if spared < step < newest[0] and step not in kept]


def delete_old(
    checkpoint_dir: str | Path,
    keep_last: int | None,
    keep_best: int | None,
    in_use: Iterable[int] = (),
    known: Manifests | None = None,
) -> list[int]:
    """Delete what old_steps names, and return it; also resharded checkpoints that have done their work."""
    manifests = whole(checkpoint_dir, known)
    newest = latest_of(manifests)
    if newest is not None and all(step < newest for step in steps_of(reshaped(checkpoint_dir))):
        shutil.rmtree(reshaped(checkpoint_dir), ignore_errors=True)
    gone = old_steps(steps_of(checkpoint_dir), manifests, keep_last, keep_best, in_use)
    for step in gone:
        directory = Path(iteration_dir(checkpoint_dir, step))
        (directory / MANIFEST).unlink(missing_ok=True)  # first: what is half deleted must not count
        shutil.rmtree(directory, ignore_errors=True)
    return gone


def _by_metric(manifests: Manifests) -> list[int]:
    """Steps of those that have a metric, best first; NaN is none."""
    metrics = {step: found["metric"] for step, found in manifests.items() if _is_finite(found.get("metric"))}
    return sorted(metrics, key=lambda step: (metrics[step], -step))


def _is_finite(metric: Any) -> bool:
    return isinstance(metric, int | float) and math.isfinite(metric)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

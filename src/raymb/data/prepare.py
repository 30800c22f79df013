"""From sources to prepared rows, once: read, tokenize, mix, split, pack, write.

The directory's name is a hash of everything that decides its content. It is built beside its place and moved there
when it is whole; whoever comes second takes what the first one made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from raymb.data.locate import PARTS, Located, located_data
from raymb.data.packing import mixed_rows
from raymb.data.parallel import Encoders
from raymb.data.pool import Pool, check_problems
from raymb.data.settings import Settings
from raymb.data.shapes import Shape
from raymb.data.sharing import fetch_rows
from raymb.data.splitting import leaks, split, used
from raymb.data.statistics import part_statistics
from raymb.data.store import IMAGES, MANIFEST, read_manifest, write_images, write_rows
from raymb.errors import DataError, RunDirError, StorageError
from raymb.model.files import ModelFiles, base_directory
from raymb.spec import RunSpec
from raymb.storage.files import write_atomically
from raymb.storage.lock import process_lives
from raymb.storage.remote import is_uri, storage_root

HOME = "_prepared"  # no run can have this name
FORMAT = 2  # of the files; another one is prepared anew
MakeEncoders = Callable[..., Encoders]  # from settings and a console
_NAMED = 100  # samples of a part whose rows the manifest names


@dataclass(frozen=True)
class Prepared:
    """Rows ready to be trained on.

    Args:
        path: the directory of store.py.
        manifest: what manifest.json says.
        reused: an earlier run prepared them.
        located: what they were made of.
    """

    path: Path
    manifest: dict[str, Any]
    reused: bool
    located: Sequence[Located] = ()

    def rows(self, part: str) -> int:
        """Rows that a batch is made of: packed ones, if they are packed."""
        return self.manifest["parts"].get(part, {}).get("packed_rows", 0)

    @property
    def content_hash(self) -> str:
        """Equal for equal rows in an equal order, whatever they were made of."""
        return self.manifest.get("content", self.manifest["hash"])

    def summary(self) -> str:
        """Two lines for people."""
        train, images = self.manifest["parts"]["train"], self.manifest.get("images", 0)
        held_out = [f"{self.manifest['parts'][part]['rows']:,} for {part}" for part in PARTS[1:] if self.rows(part)]
        packed = (
            f", packed into {train['packed_rows']:,} ({train['packing_efficiency']:.1%} full)"
            if self.manifest["packing"]
            else ""
        )
        lines = [
            f"{train['rows']:,} rows to train on{packed}, {', '.join(held_out) or 'none for validation'}",
            f"{train['tokens']:,} tokens, {train['trained_tokens']:,} of them trained; "
            f"{f'{images:,} images; ' if images else ''}"
            f"{'reused from' if self.reused else 'prepared in'} {self.path}",
        ]
        return "\n".join(lines + [f"warning: {note}" for note in self.manifest["notes"]])


def prepare(
    spec: RunSpec,
    model_path: str,
    *,
    chat: bool,
    sample_multiple: int,
    architecture: str = "",
    vocab_size: int | None = None,
    console: Console | None = None,
    encoders: MakeEncoders | None = None,
) -> Prepared:
    """Prepare the rows that a spec asks for, unless an earlier run has.

    Args:
        model_path: hub id or directory of the tokenizer.
        architecture: of a vision-language model; "" for any other.
        chat: whether it has a chat template.
        sample_multiple: each packed sample is padded to a multiple of it.
        vocab_size: rows of the model's embedding, which no token may be beyond; None where nobody knows.
        console: where a progress bar goes; None for none.
        encoders: makes what tokenizes; default: processes of this machine.

    Raises:
        DataError: rows that cannot be had or used.
    """
    located = located_data(spec.data, chat=chat)
    settings = replace(encoder_settings(spec, model_path), architecture=architecture)
    key = _key(spec, located, settings, sample_multiple)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    home = storage_root(spec.run.storage_path) / HOME
    path = home / digest
    if read_manifest(path) is None and is_uri(spec.run.storage_path):
        with contextlib.suppress(StorageError):  # where they are not, they are made
            fetch_rows(digest, spec.run.storage_path)
    manifest = read_manifest(path)
    if manifest is not None:
        _check_tokens(manifest["largest_token"], vocab_size)
        return Prepared(path, manifest, reused=True, located=located)
    with _building(home, digest) as directory:
        make = partial(encoders or Encoders, console=console)
        content = _build(spec, located, settings, sample_multiple, directory, make)
        _check_tokens(content["largest_token"], vocab_size)
        content = {"format": FORMAT, "hash": digest, "key": key, **content}
        write_atomically(directory / MANIFEST, json.dumps(content, indent=2) + "\n")
        _move(directory, path)
    manifest = read_manifest(path)
    assert manifest is not None
    return Prepared(path, manifest, reused=False, located=located)


def _check_tokens(largest: dict[str, Any], vocab_size: int | None) -> None:
    if vocab_size is not None and largest["id"] >= vocab_size:
        raise DataError(
            f"{largest['row']}: token {largest['id']} ({largest['token']!r}) is beyond the model's embedding of "
            f"{vocab_size} rows",
            "its tokenizer knows tokens that the model was never given: take the tokenizer that it was trained with, "
            "or resize the model's embedding before (transformers: resize_token_embeddings)",
        )


def encoder_settings(spec: RunSpec, model_path: str) -> Settings:
    """What decides the tokens of a spec's rows."""
    data = spec.data
    template = None
    if data.chat_template is not None:
        try:
            template = data.chat_template.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--chat_template {data.chat_template}: cannot be read ({error})") from None
    return Settings(
        model_path=base_directory(model_path, spec.model.hf_revision, weights=False),
        trust_remote_code=spec.model.trust_remote_code,
        chat_template=template,
        shape=Shape(
            data.prompt_column,
            data.completion_column,
            data.messages_column,
            _unescaped(data.prompt_template),
            _unescaped(data.completion_template),
            data.text_column,
            tuple(data.message_keys.items()),
            tuple(data.role_names.items()),
            data.apply_chat_template,
        ),
        loss_mode=data.loss_mode,
        max_tokens=data.seq_length + 1,
        long_rows=data.long_rows,
        train_on_roles=tuple(sorted(set(data.train_on_roles))),
        keep_reasoning=data.keep_reasoning,
        system_prompt=data.system_prompt,
        chat_template_kwargs=json.dumps(data.chat_template_kwargs, sort_keys=True),
    )


def _unescaped(template: str | None) -> str | None:
    r"""A shell hands on \n as two characters."""
    plain = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
    return template and re.sub(r"\\[nt\\]", lambda found: plain[found[0]], template)


def _key(spec: RunSpec, located: list[Located], settings: Settings, sample_multiple: int) -> dict[str, Any]:
    """All that decides the prepared rows."""
    tokenizer = ModelFiles(settings.model_path, needs="config").tokenizer_identity()
    sources = [
        [one.weight, {part: [source.fingerprint() for source in one.parts.get(part, ())] for part in PARTS}]
        for one in located
    ]
    if settings.architecture:  # relative paths of images begin there
        names = [source.name for one in located for part in one.parts.values() for source in part]
        sources.append([str(Path(name).absolute().parent) for name in names if Path(name).is_file()])
    data, decisive = spec.data, asdict(settings)
    del decisive["copies"]
    if not decisive["architecture"]:  # rows of text have been prepared under this key before
        del decisive["architecture"]
    return {
        "format": FORMAT,
        "versions": [version(package) for package in ("transformers", "tokenizers")],
        "sources": sources,
        "settings": {**decisive, "model_path": tokenizer, "revision": None},
        "bad_rows": data.bad_rows,
        "validation_split": data.validation_split,
        "test_split": data.test_split,
        "max_validation_samples": spec.evaluation.max_validation_samples,
        "seed": spec.data_seed,
        "packing": [data.seq_length, sample_multiple] if data.packing else None,
    }


@contextlib.contextmanager
def _building(home: Path, digest: str) -> Iterator[Path]:
    """A directory that goes away unless it was moved; what a killed process of this machine left goes away, too."""
    made = [place for place in (home, *home.parents) if not place.exists()]
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(
            f"--storage_path {home.parent}: cannot be written ({error.strerror or error})",
            "give another --storage_path",
        ) from None
    host = socket.gethostname()
    for left in home.glob(f".*@{host}@*"):
        pid = left.name.rpartition("@")[2]
        if pid.isdigit() and int(pid) != os.getpid() and not process_lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    directory = home / f".{digest}@{host}@{os.getpid()}"
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir()
        yield directory
    except OSError as error:
        raise RunDirError(
            f"--storage_path {home.parent}: the rows cannot be written there ({error.strerror or error})",
            "free some space, or give another --storage_path",
        ) from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for place in made:  # empty ones only
            with contextlib.suppress(OSError):
                place.rmdir()


def _move(directory: Path, path: Path) -> None:
    try:
        os.rename(directory, path)
    except OSError:
        if read_manifest(path) is None:  # a directory that somebody damaged
            shutil.rmtree(path, ignore_errors=True)
            os.rename(directory, path)


def _build(
    spec: RunSpec,
    located: list[Located],
    settings: Settings,
    sample_multiple: int,
    directory: Path,
    encoders: Callable[[Settings], Encoders],
) -> dict[str, Any]:
    pool, copies = Pool(directory), directory / "images.tmp"
    if settings.architecture:
        copies.mkdir()
        settings = replace(settings, copies=str(copies))
    with encoders(settings) as encoding:
        for owner, one in enumerate(located):
            for part, sources in one.parts.items():
                for encoded in chain.from_iterable(map(encoding.over, sources)):
                    pool.add(encoded, owner, PARTS.index(part))
                    check_problems(pool, spec.data.bad_rows)
    pool.check(spec)
    samples = pool.samples()
    chosen = split(spec, located, pool.owners, pool.parts, pool.origins)
    files, parts, origins, digest = {}, {}, {}, hashlib.sha256()
    for part, wanted in chosen.items():
        if not len(wanted):
            continue
        order, counts = _arrange(samples.lengths, wanted, spec, sample_multiple)
        digest.update(part.encode() + pool.hashes[order].tobytes() + counts.tobytes())
        origins[part] = [pool.row(int(index)) for index in order[:_NAMED]]
        files[f"{part}.arrow"] = write_rows(directory / f"{part}.arrow", samples, order, counts)
        parts[part] = part_statistics(samples, wanted, len(counts), spec.data.seq_length, pool.hashes)
        parts[part] |= pool.losses(PARTS.index(part), wanted)
    if samples.images:
        files[IMAGES] = write_images(directory / IMAGES, samples, copies)
    shutil.rmtree(copies, ignore_errors=True)
    pool.remove()
    return {
        "content": digest.hexdigest()[:16],
        "packing": spec.data.packing,
        "multiple": sample_multiple,
        "seq_length": spec.data.seq_length,
        "pairs": pool.wordings.total(),
        "wording": max(pool.wordings, key=pool.wordings.__getitem__, default=""),
        "pad_id": pool.batches[0].eos_id,
        "largest_token": pool.largest_token,
        "stop_tokens": pool.stop_tokens(),
        "sources": [
            {"dataset": one.word, "rows": int((pool.owners == owner).sum()), "used": used(chosen, pool.owners, owner)}
            for owner, one in enumerate(located)
        ],
        "parts": parts,
        "origins": origins,
        "files": files,
        "images": len(samples.image_numbers),
        "notes": pool.notes(spec) + leaks(chosen, pool),
    }


def _arrange(
    lengths: np.ndarray, wanted: np.ndarray, spec: RunSpec, sample_multiple: int
) -> tuple[np.ndarray, np.ndarray]:
    """(samples in the order of the rows, samples in each row)."""
    if not spec.data.packing:
        return wanted, np.ones(len(wanted), dtype=np.int64)
    inputs = lengths[wanted].astype(np.int64) - 1  # the last token is only predicted
    order, counts = mixed_rows(-(-inputs // sample_multiple) * sample_multiple, spec.data.seq_length, spec.data_seed)
    return wanted[order], counts

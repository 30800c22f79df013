"""What a run's checkpoints belong to, in groups. A run resumes with what it began with, or with what the user accepts.

Layout and world size, learning rates, lengths of training and the like are no part of it: they may change.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from raymb import __version__
from raymb.model.directory import TOKENIZER_FILES
from raymb.model.files import ModelFiles
from raymb.model.tensor_files import weight_files
from raymb.spec.sections import SECTION_OF_FLAG, Change, RunSpec

Fingerprint = dict[str, dict[str, Any]]
"""Group to what is in it. A key that is a flag's name has the flag's value."""

_EXACT = ("megatron-bridge", "megatron-core")  # raymb mends these by version, and their checkpoints change with it
_LOOSE = ("torch", "transformers")  # and raymb itself


@dataclass(frozen=True)
class Difference:
    """
    Args:
        flag: with its former value; "" where the key belongs to no flag.
    """

    group: str
    key: str
    was: Any
    now: Any
    flag: str


def take_fingerprint(
    spec: RunSpec, model: str, *, rows: str, preparation: str, branch: str | None = None
) -> Fingerprint:
    """The fingerprint of a run.

    A new group is a line here. One that is left out counts as empty on either side.

    Args:
        model: hub id or directory.
        branch: of the hub model, or tag, that its commit was found by.
        rows: digest of the prepared rows.
        preparation: name of their directory.
    """
    files, data = ModelFiles(model, spec.model.hf_revision), spec.data
    elsewhere = {"seq_length", "packing", "chat_template", "data_seed", "streaming"}
    return {
        "model": {**_model(files), **({"branch": branch} if branch else {})},
        "tokenizer": _tokenizer(files, data.chat_template),
        "data": {"rows": rows, "preparation": preparation, **data.model_dump(mode="json", exclude=elsewhere)},
        "batch": {
            "seq_length": data.seq_length,
            "global_batch_size": spec.train.global_batch_size,
            "packing": data.packing,
        },
        "seed": {
            "seed": spec.train.seed,
            **({"data_seed": spec.data_seed} if spec.data_seed != spec.train.seed else {}),
        },
        "peft": {} if spec.peft.peft == "none" else spec.peft.model_dump(mode="json", exclude={"lora_dropout"}),
        "frozen": spec.train.model_dump(mode="json", include={"freeze", "unfreeze"}) if spec.train.freezes else {},
        "versions": {"raymb": __version__, **{name: installed_version(name) for name in (*_EXACT, *_LOOSE)}},
    }


def model_group(model: str, revision: str | None) -> dict[str, Any]:
    """The fingerprint's group of the model's weights.

    Args:
        model: hub id or directory.
    """
    return _model(ModelFiles(model, revision))


def differences(before: dict[str, Any], now: Fingerprint) -> list[Difference]:
    """What has changed, group by group.

    Args:
        before: content of fingerprint.json; also one that has no groups yet.
    """
    former = before if all(isinstance(values, dict) for values in before.values()) else _in_groups(before, now)
    if former.get("peft") and now.get("peft"):  # a run of before there were these flags
        former = {**former, "peft": {"use_rslora": False, "modules_to_save": [], **former["peft"]}}
    found: list[Difference] = []
    for group in {**now, **former}:
        was, present = former.get(group, {}), now.get(group, {})
        for key in _CHANGED.get(group, _changed)(was, present):
            flag = _as_flag(key, was[key]) if key in was and key in SECTION_OF_FLAG else ""
            found.append(Difference(group, key, was.get(key), present.get(key), flag))
    return found


def described(found: Iterable[Difference]) -> str:
    """A line for every group: what was, and what is."""
    groups: dict[str, list[str]] = {}
    for one in found:
        groups.setdefault(one.group, []).append(f"{one.key} was {one.was!r}, is {one.now!r}")
    return "\n".join(f"  - {group}: {'; '.join(texts)}" for group, texts in groups.items())


def ways_to_resume(found: list[Difference]) -> list[str]:
    """As before, with the former values; or changed, where every group may be accepted."""
    back: list[str] = []
    groups = list(dict.fromkeys(one.group for one in found))
    for group in groups:
        flags = [one.flag for one in found if one.group == group and one.flag]
        back += flags or [_WITHOUT_FLAG.get(group, f"the former {group}")]
    ways = [f"resume as before with {', '.join(dict.fromkeys(back))}"]
    if set(groups) <= set(get_args(Change)):
        ways.append(f"accept the changes with {' '.join(f'--accept_changes {group}' for group in groups)}")
    return ways


_WITHOUT_FLAG = {
    "model": "the former files at --hf_model_path",
    "tokenizer": "the former tokenizer at --hf_model_path (or --chat_template)",
    "data": "the former rows (--dataset, and all that makes them)",
    "peft": "no --peft",
    "frozen": "no --freeze or --unfreeze",
    "versions": "the former versions",
}


def _as_flag(flag: str, value: Any) -> str:
    if value is None or value == []:
        return f"no --{flag}"
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no_{flag}"
    if isinstance(value, dict):
        value = ",".join(f"{name}={text}" for name, text in value.items())
    return " ".join(f"--{flag} {shlex.quote(str(item))}" for item in (value if isinstance(value, list) else [value]))


def _changed(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [key for key in {**was, **now} if was.get(key) != now.get(key)]


def _changed_rows(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Other flags that make the same rows are no change. Rows that were prepared before they had a digest go by the
    name of their directory."""
    same = was.get("rows") in (now.get("rows"), now.get("preparation"))
    return [] if same else [key for key in _changed(was, now) if key != "preparation"]


def _changed_versions(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A patch release or another build (2.11.0+cpu, 2.11.0+cu130) resumes from a checkpoint."""

    def essential(name: str, version: Any) -> Any:
        return version if name in _EXACT else str(version).partition("+")[0].split(".")[:2]

    return [name for name in was if name in now and essential(name, was[name]) != essential(name, now[name])]


def _changed_model(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A commit is the same by whichever branch it was found."""
    return [key for key in _changed(was, now) if key != "branch"]


_CHANGED: dict[str, Callable[[dict[str, Any], dict[str, Any]], list[str]]] = {
    "model": _changed_model,
    "data": _changed_rows,
    "versions": _changed_versions,
}


def _in_groups(flat: dict[str, Any], now: Fingerprint) -> Fingerprint:
    """A file of the time before there were groups; what it does not say counts as unchanged."""
    former = {group: dict(values) for group, values in now.items() if group != "run"}
    for key, value in flat.items():
        flag, _, name = key.partition(":")
        if flag == "hf_model_path":
            group = "tokenizer" if name == "tokenizer.json" else "model"
            value = value if name else str(value).rpartition("@")[0]  # a branch's name: nobody knows its commit then
        else:
            group = {"dataset": "data", "seed": "seed", "experiment_name": "run"}.get(flag, "batch")
        former.setdefault(group, {})["rows" if group == "data" else name or flag] = value
    return former


def _model(files: ModelFiles) -> dict[str, Any]:
    if files.directory is None:
        return {"hf_model_path": files.model, "hf_revision": files.commit()}
    config = _digest((files.directory / "config.json").read_bytes())
    return {"config.json": config, **{file.name: _ends_digest(file) for file in weight_files(files.directory)}}


def _tokenizer(files: ModelFiles, chat_template: Path | None) -> dict[str, Any]:
    """Of a hub model the commit: its files may lie in no cache yet."""
    given = None if chat_template is None else chat_template.expanduser().read_text(encoding="utf-8")
    if files.directory is None:
        return {"hf_revision": files.commit(), "template": given and _digest(given.encode())}
    present = [name for name in (*TOKENIZER_FILES, "merges.txt") if (files.directory / name).is_file()]
    names = ["tokenizer.json"] if "tokenizer.json" in present else present
    settings = _json(files, "special_tokens_map.json") | _json(files, "tokenizer_config.json")
    own = files.optional("chat_template.jinja") or settings.get("chat_template")
    template = given or own or _json(files, "chat_template.json").get("chat_template")
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    special = sorted(name for name in settings if name.endswith(("_token", "special_tokens")))
    return {
        **{name: _digest((files.directory / name).read_bytes()) for name in names},
        "template": _digest(text.encode()) if template else None,
        **{name: _content(settings[name]) for name in special},
    }


def _content(token: Any) -> Any:
    """A special token is its text, or an object around it."""
    if isinstance(token, list):
        return [_content(item) for item in token]
    return token.get("content", token) if isinstance(token, dict) else token


def _json(files: ModelFiles, name: str) -> dict[str, Any]:
    try:
        content = json.loads(files.optional(name) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _ends_digest(file: Path) -> str:
    """A digest of a weight file that takes no time: its size, its first and its last 64 KiB."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        first = stream.read(65536)
        stream.seek(max(0, size - 65536))
        return _digest(first + stream.read() + str(size).encode())

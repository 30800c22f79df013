"""Where a model's files are: a local directory, or one commit of a hub model, in the Hugging Face cache or the hub."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from raymb.errors import ModelError, ModelOutOfReach
from raymb.model.directory import TOKENIZER_FILES, Needs, bin_files, local_model_directory
from raymb.model.tensor_files import INDEX, SINGLE, named_by_index, weight_files

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT_SECONDS = 5.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
WEIGHTS = (
    *("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data"),
    *("*.tflite", "*.ot", "*.index.json"),
)
"""Files of a model repository that hold weights, or say where they are."""
_BINS = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")


def is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None


class ModelFiles:
    """Reads a model's small text files, from a local directory or else from the Hugging Face cache and the hub.

    Args:
        model: what the user gave to --hf_model_path.
        revision: branch, tag or commit of a hub model.
        needs: what a directory must have.

    Raises:
        ModelError: from every method: a needed file is missing, gated or out of reach.
    """

    def __init__(self, model: str, revision: str | None = None, needs: Needs = "weights"):
        self.model, self.revision = model, revision
        self.directory = local_model_directory(model, needs)
        self._hub_answered = False

    def needed(self, name: str) -> str:
        """Text of a file that must exist."""
        if self.directory is not None:
            return _read(self.directory / name)
        cached = _cached(self.model, name, self.revision)
        if cached is None:
            cached = _fetch(self.model, name, self.revision)
            self._hub_answered = True
        return _read(cached)

    def optional(self, name: str) -> str | None:
        """Text of a file, or None. The hub is asked only if it answered before: a cached model needs no network."""
        if self.directory is not None:
            file: Path | None = self.directory / name
            return _read(file) if file.is_file() else None
        file = _cached(self.model, name, self.revision)
        if file is None and self._hub_answered:
            try:
                file = _fetch(self.model, name, self.revision)
            except ModelError:
                return None
        return _read(file) if file else None

    def commit(self) -> str:
        """Of a hub model: what its branch or tag is at as far as the cache knows, else the hub."""
        if self.revision is not None and is_commit(self.revision):
            return self.revision
        self.needed("config.json")
        cached = _cached(self.model, "config.json", self.revision)
        return cached.parent.name if cached else "unknown"

    def tokenizer_identity(self) -> dict[str, str]:
        """Equal for equal tokenizers: digests of a directory's files, the commit of a hub model."""
        if self.directory is None:
            return {self.model: self.commit()}
        names = {*TOKENIZER_FILES, *_TOKENIZER_SETTINGS, *(file.name for file in self.directory.glob("*.tiktoken"))}
        return {
            name: hashlib.sha256((self.directory / name).read_bytes()).hexdigest()[:16]
            for name in sorted(names)
            if (self.directory / name).is_file()
        }


def has_weights(directory: Path) -> bool:
    """Whether all of a model's safetensors files are there."""
    return any((directory / name).is_file() for name in (SINGLE, INDEX))


def only_bins(model: str, revision: str | None) -> bool:
    """Whether a model's weights are pytorch_model*.bin alone; of a hub model at a commit."""
    if (directory := Path(model)).is_dir():
        return bool(bin_files(directory)) and not weight_files(directory)
    if revision is None or not is_commit(revision):
        return False
    _snapshot(model, revision, False)
    names = hub_files(model, revision)
    return any(map(is_bin, names)) and SINGLE not in names and INDEX not in names


def is_bin(name: str) -> bool:
    return fnmatch(name, _BINS[0])


def commit_of(model: str, revision: str | None) -> str:
    """The commit that a branch or tag of a hub model is at. The hub is asked once; out of reach, the cache says it.

    Args:
        revision: None is the branch main.

    Raises:
        ModelError: no such model or revision, gated, or neither hub nor cache knows it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if revision is not None and is_commit(revision):
        return revision
    cached = _cached(model, "config.json", revision)
    try:
        url = hf_hub_url(model, "config.json", revision=revision)
        commit = get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS).commit_hash
        if commit and (cached is None or commit != cached.parent.name):
            # Leaves in the cache what the branch is at, for a start without the hub.
            hf_hub_download(model, "config.json", revision=revision, etag_timeout=HUB_TIMEOUT_SECONDS)
    except _errors() as error:
        if cached is None:
            raise _explained(model, "config.json", revision, error) from None
        commit = None
    if not commit and cached is None:
        raise ModelError(f"--hf_model_path {model}: the hub does not say which commit it is at", "give --hf_revision")
    return commit or cached.parent.name  # type: ignore[union-attr]


def base_directory(model: str, revision: str | None = None, *, weights: bool = True) -> str:
    """The model's files as a directory; those of a hub model come into the Hugging Face cache, if they are not there.

    Args:
        model: a directory, or a hub id.
        revision: of a hub model; a commit that is in the cache needs no hub.
        weights: whether its weights are wanted, too.

    Raises:
        ModelError: no such model, or its files are neither in the cache nor to be had from the hub.
    """
    return model if Path(model).is_dir() else _snapshot(model, commit_of(model, revision), weights)


@functools.cache
def _snapshot(model: str, commit: str, weights: bool) -> str:
    small = Path(_download(model, commit, ignore=WEIGHTS))
    if not weights:
        return str(small)
    names = hub_files(model, commit)
    if INDEX in names:
        index = _download(model, commit, allow=[INDEX])
        wanted: Iterable[str] = named_by_index(Path(index, INDEX))
    else:
        wanted = [SINGLE] if SINGLE in names else _BINS
    directory = Path(_download(model, commit, allow=list(wanted)))
    missing = [file.name for file in weight_files(directory) if not file.is_file()]
    if missing or not (weight_files(directory) or list(directory.glob(_BINS[0]))):
        raise ModelError(
            f"--hf_model_path {model}: of commit {commit} the Hugging Face cache lacks "
            f"{missing[0] if missing else 'the weights'}, and the hub cannot be reached or has none",
            "fetch it where the hub can be reached (hf download), or give a local model directory",
        )
    return str(directory)


def hub_files(model: str, commit: str) -> dict[str, int]:
    """Name to size in bytes of every file at a commit that base_directory was asked for; of a cache without a hub those
    that are in it."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {one.path: one.size for one in get_cached_repo_tree(model, revision=commit)}
    except CachedRepoTreeNotFoundError:
        directory = Path(_snapshot(model, commit, False))
        files = [file for file in directory.rglob("*") if file.is_file()]
        return {file.relative_to(directory).as_posix(): file.stat().st_size for file in files}


def _download(model: str, commit: str, allow: list[str] | None = None, ignore: Iterable[str] = ()) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[type-arg]
        """Of small files nobody wants a progress bar."""

        def __init__(self, *given: Any, **settings: Any):
            super().__init__(*given, **{**settings, "disable": True})

    files: dict[str, Any] = {"allow_patterns": allow, "ignore_patterns": list(ignore) or None}
    files["tqdm_class"] = Silent if ignore else None
    try:
        return snapshot_download(model, revision=commit, etag_timeout=HUB_TIMEOUT_SECONDS, **files)
    except _errors() as error:
        try:
            return snapshot_download(model, revision=commit, local_files_only=True, **files)
        except _errors():
            raise _explained(model, "config.json", commit, error) from None


def _errors() -> tuple[type[Exception], ...]:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"--hf_model_path: {file} cannot be read ({error})", "fetch the model again") from None


def _cached(model: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name, revision=revision)
    except HFValidationError as error:
        raise ModelError(
            f"--hf_model_path {model}: neither a directory nor a hub id ({error})", "give a directory or owner/name"
        ) from None
    return Path(found) if isinstance(found, str) else None


def _fetch(model: str, name: str, revision: str | None) -> Path:
    """Download one file. An unreachable hub is found by one short request first: the download retries for 25 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(model, name, revision=revision), timeout=HUB_TIMEOUT_SECONDS)
        return Path(hf_hub_download(model, name, revision=revision, etag_timeout=HUB_TIMEOUT_SECONDS))
    except _errors() as error:
        raise _explained(model, name, revision, error) from None


def _explained(model: str, name: str, revision: str | None, error: Exception) -> ModelError:
    """What a hub error means for the user."""
    from huggingface_hub import errors

    flag = f"--hf_model_path {model}" + (f" --hf_revision {revision}" if revision else "")
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{flag}: this hub model is gated",
            f"accept its licence on https://huggingface.co/{model} and set HF_TOKEN to a token of that account",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{flag}: the hub model has no such revision", "give another --hf_revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{flag}: no such directory, and no such model on the hub",
            "check the spelling; for a private model set HF_TOKEN",
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ModelError(f"{flag}: the hub model has no {name}", "give a model in Hugging Face format, not GGUF")
    reason = " ".join(str(error).split())[:200]
    return ModelOutOfReach(
        f"{flag}: no such directory, not in the local Hugging Face cache, and the hub cannot be reached ({reason})",
        "give a local model directory to --hf_model_path, or fetch the model where the hub can be reached and copy "
        "the cache (HF_HOME)",
    )

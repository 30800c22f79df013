"""Where a model's small files are: a local directory, the Hugging Face cache, or the hub."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from raymb.errors import ModelError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT_SECONDS = 5.0
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
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
_LFS_POINTER = b"version https://git-lfs"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.index.json")
"""Files of a model repository that hold weights, or say where they are."""
MADE_OF = "made_of.json"
"""Of a directory that raymb.model.initial makes: its weights come last."""


def local_model_directory(hf_model_path: str, *, weights: bool = True) -> Path | None:
    """The directory if the path names one, checked for weights and a tokenizer; None for a hub id.

    Args:
        weights: whether it must have them.

    Raises:
        ModelError: the path can only be a directory but is none, or the directory is incomplete.
    """
    path = Path(hf_model_path).expanduser()
    if path.is_dir():
        _check_directory(path, weights and not (path / MADE_OF).is_file())
        return path
    looks_local = hf_model_path.startswith(("/", ".", "~")) or hf_model_path.count("/") > 1
    if path.exists():
        raise ModelError(f"--hf_model_path {hf_model_path}: a file, not a directory", "give the directory it lies in")
    if looks_local:
        raise ModelError(
            f"--hf_model_path {hf_model_path}: no such directory", "give an existing directory or a hub id (owner/name)"
        )
    return None


class ModelFiles:
    """Reads a model's small text files, from a local directory or else from the Hugging Face cache and the hub.

    Args:
        model: what the user gave to --hf_model_path.
        revision: branch, tag or commit of a hub model.
        weights: whether a directory must have them.

    Raises:
        ModelError: from every method: a needed file is missing, gated or out of reach.
    """

    def __init__(self, model: str, revision: str | None = None, *, weights: bool = True):
        self.model, self.revision = model, revision
        self.directory = local_model_directory(model, weights=weights)
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

    def tokenizer_identity(self) -> dict[str, str]:
        """Equal for equal tokenizers: digests of a directory's files, the commit of a hub model."""
        if self.directory is None:
            self.needed("config.json")
            cached = _cached(self.model, "config.json", self.revision)
            return {self.model: cached.parent.name if cached else "unknown"}
        names = {*TOKENIZER_FILES, *_TOKENIZER_SETTINGS, *(file.name for file in self.directory.glob("*.tiktoken"))}
        return {
            name: hashlib.sha256((self.directory / name).read_bytes()).hexdigest()[:16]
            for name in sorted(names)
            if (self.directory / name).is_file()
        }


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: cannot be read ({error})", "fetch the model again") from None


def has_weights(directory: Path) -> bool:
    """Whether all of a model's safetensors files are there."""
    return any((directory / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def _check_directory(path: Path, needs_weights: bool) -> None:
    flag = f"--hf_model_path {path}"
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{flag}: no config.json in this directory", "give a Hugging Face model directory (save_pretrained)"
        )
    weights = [file for pattern in ("*.safetensors", "*.bin") for file in sorted(path.glob(pattern))]
    if needs_weights and not weights:
        raise ModelError(
            f"{flag}: no weights (*.safetensors or *.bin) in this directory",
            "fetch the whole model; --init random needs none",
        )
    missing = _missing_shards(path)
    if missing:
        raise ModelError(
            f"{flag}: {len(missing)} weight files of model.safetensors.index.json are missing, first {missing[0]}",
            "fetch the whole model",
        )
    for file in weights:
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ModelError(f"{flag}: {file.name} is a git-lfs pointer, not weights", "run: git lfs pull")
    if not any((path / name).is_file() for name in TOKENIZER_FILES) and not list(path.glob("*.tiktoken")):
        raise ModelError(
            f"{flag}: no tokenizer in this directory (none of {', '.join(TOKENIZER_FILES)})",
            "save the tokenizer next to the model: AutoTokenizer.from_pretrained(...).save_pretrained(DIR)",
        )


def _missing_shards(path: Path) -> list[str]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{index}: not a weight index", "fetch the model again") from None
    return sorted(name for name in shards if not (path / name).is_file())


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
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        get_hf_file_metadata(hf_hub_url(model, name, revision=revision), timeout=HUB_TIMEOUT_SECONDS)
        return Path(hf_hub_download(model, name, revision=revision, etag_timeout=HUB_TIMEOUT_SECONDS))
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
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
    return ModelError(
        f"{flag}: no such directory, not in the local Hugging Face cache, and the hub cannot be reached ({reason})",
        "give a local model directory to --hf_model_path, or fetch the model where the hub can be reached and copy "
        "the cache (HF_HOME)",
    )


def base_directory(model_path: str, revision: str | None = None, *, weights: bool = True) -> str:
    """The model's files as a directory; a hub model's come into the Hugging Face cache now, if they are not there.

    Args:
        weights: whether its weights are wanted, too.
    """
    if Path(model_path).is_dir():
        return model_path
    from huggingface_hub import snapshot_download

    return snapshot_download(
        model_path, revision=revision, ignore_patterns=["*.bin", "*.pth"] if weights else list(WEIGHTS)
    )

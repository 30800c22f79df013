"""Python code that comes with a model: it runs only where the user says so on the command line, never because a file of
a run directory says that it did before."""

from __future__ import annotations

from raymb.errors import ModelError
from raymb.model.shape import ModelShape

_HINT = "read that code, then add --trust_remote_code to run it"


def check_remote_code(shape: ModelShape, name: str, trusted: bool) -> None:
    """
    Args:
        name: what the user calls the model, with its flag.
        trusted: --trust_remote_code of this command.

    Raises:
        ModelError: the model needs code that may not run.
    """
    if shape.needs_remote_code and not trusted:
        raise ModelError(
            f"{name}: {shape.architecture} needs Python code from the model's repository (auto_map in config.json)",
            _HINT,
        )


def hint_for(error: Exception) -> str:
    """What to do about an error of transformers, where it refused to run a repository's code; "" for other errors."""
    return _HINT if "trust_remote_code" in str(error) else ""

"""The words of this process's own command line, taken out of everybody's sight where they hold secrets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from raymb.credentials import is_harmless

_WORDS = "RAYMB_COMMAND_LINE"


def own_words() -> list[str]:
    """The words after the program's name. A value of --env that is not known to be harmless leaves the command line,
    which everybody on the machine sees and which Ray keeps as a driver's: the process begins anew, once, and takes the
    words from its environment."""
    if (given := os.environ.pop(_WORDS, None)) is not None:
        return json.loads(given)
    words = sys.argv[1:]
    shown = without_secrets(words)
    if shown != words:
        program = sys.orig_argv[: len(sys.orig_argv) - len(words)]
        os.execve(sys.executable, [*program, *shown], {**os.environ, _WORDS: json.dumps(words)})
    return words


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words with *** for what --env NAME=VALUE keeps for itself."""
    shown, before = [], ""
    for word in words:
        start = "--env=" if word.startswith("--env=") else ""
        name, separator, value = word.removeprefix(start).partition("=")
        is_pair = separator and (start or before == "--env")
        shown.append(f"{start}{name}=***" if is_pair and not is_harmless(name, value) else word)
        before = word
    return shown

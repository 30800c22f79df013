"""Imports without collections of garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

from raymb.runtime.importing import importing

COUNTED = """
import gc
from raymb.runtime.importing import importing

begun = []
gc.callbacks.append(lambda phase, about: begun.append(phase))
with importing():
    import torch
    during = len(begun)
assert not during, during
"""


def test_no_collection_happens_during_an_import() -> None:
    subprocess.run([sys.executable, "-c", COUNTED], check=True)


def test_collections_go_on_afterwards_where_they_did_before() -> None:
    with importing(), importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

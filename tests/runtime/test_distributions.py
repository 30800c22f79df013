"""Packages and their distributions, beside what the standard library reads from all of them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions, version

from raymb.runtime.distributions import Distributions

IMPORT = """
import importlib.metadata
from raymb.runtime import distributions

def read_all():
    raise AssertionError("all distributions are read")

distributions._of_all = read_all
distributions.look_up_one_by_one()
from transformers import AutoTokenizer
"""


def test_each_package_has_the_version_that_the_standard_library_says() -> None:
    expected, found = packages_distributions(), Distributions()
    assert {*found} == {*expected} and len(found) == len(expected)
    for package in ("torch", "transformers", "PIL", "yaml", "google", "six"):
        assert {version(name) for name in found[package]} <= {version(name) for name in expected[package]}, package
    assert "raymb_no_such_package" not in found


def test_transformers_is_imported_without_reading_all_distributions() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)

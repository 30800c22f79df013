"""Models as transformers computes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.families import make_model

from raymb.export.hf_model import load_hf_model


@pytest.mark.parametrize(("family", "eager"), [("Gemma 2", True), ("Qwen2", False)])
def test_a_cap_of_attention_is_not_left_out(family: str, eager: bool, tmp_path: Path) -> None:
    """transformers' sdpa does not know Gemma 2's."""
    model = load_hf_model(str(make_model(family, tmp_path / "model")))
    assert (model.config._attn_implementation == "eager") == eager

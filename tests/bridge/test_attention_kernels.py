"""Whose attention kernels a model on GPUs uses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from megatron.core.transformer.enums import AttnBackend

from raymb.bridge.fixes import leave_attention_to_transformer_engine


@pytest.mark.parametrize(("asked", "given"), [("flash", "auto"), ("auto", "auto"), ("fused", "fused")])
def test_no_family_needs_a_package_that_is_not_installed(asked: str, given: str) -> None:
    """Bridge's Gemma and Gemma 3 ask for flash-attn."""
    provider = SimpleNamespace(attention_backend=AttnBackend[asked])
    leave_attention_to_transformer_engine(provider)
    assert provider.attention_backend is AttnBackend[given]

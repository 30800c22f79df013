"""Whose attention kernels a model on GPUs uses."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
from megatron.core.transformer.enums import AttnBackend

from raymb.bridge.patches.attention import check_attention, leave_attention_to_transformer_engine
from raymb.errors import SpecError


@pytest.mark.parametrize(("asked", "given"), [("flash", "auto"), ("auto", "auto"), ("fused", "fused")])
def test_no_family_needs_a_package_that_is_not_installed(asked: str, given: str) -> None:
    """Bridge's Gemma and Gemma 3 ask for flash-attn."""
    provider = SimpleNamespace(attention_backend=AttnBackend[asked])
    leave_attention_to_transformer_engine(provider)
    assert provider.attention_backend is AttnBackend[given]


def test_users_who_ask_for_it_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match="attention_backend=flash needs the package flash-attn"):
        check_attention(SimpleNamespace(attention_backend=AttnBackend.flash))
    check_attention(SimpleNamespace(attention_backend=AttnBackend.fused))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "flash_attn" or None)
    check_attention(SimpleNamespace(attention_backend=AttnBackend.flash))

"""What one family of models cannot have is refused, with the reason."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS

from raymb.errors import ModelError, PlanError
from raymb.model.architectures import check_architecture, support
from raymb.model.families import FAMILIES
from raymb.model.shape import ModelShape
from raymb.plan import make_plan
from raymb.spec import load_spec

_DENSE = {**QWEN2_4_LAYERS, "model_type": "other"}
_SPARSE = {**QWEN3_MOE_4_LAYERS, "model_type": "other"}
_GEMMA4 = {"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text"}


def _plan(config: dict[str, Any], **flags: Any) -> None:
    given = {"hf_model_path": "m", **{name: str(value) for name, value in flags.items()}}
    make_plan(load_spec(given), ModelShape.from_config(config))


CASES = [
    ("GemmaForCausalLM", _DENSE, "attention_bias", False, True),
    ("GemmaForCausalLM", _DENSE, "use_bidirectional_attention", None, True),
    ("Gemma4ForCausalLM", _DENSE, "use_bidirectional_attention", "vision", "all"),
    ("Gemma4ForCausalLM", _SPARSE, "hidden_size_per_layer_input", 0, 64),
    ("Ernie4_5_MoeForCausalLM", _SPARSE, "use_bias", False, True),
    ("HYV3ForCausalLM", _SPARSE, "attention_bias", False, True),
    ("ExaoneMoeForCausalLM", _SPARSE, "norm_topk_prob", True, False),
    ("GlmMoeDsaForCausalLM", _SPARSE, "norm_topk_prob", True, False),
    ("Qwen3NextForCausalLM", _SPARSE, "norm_topk_prob", True, False),
    ("Qwen3_5ForCausalLM", _DENSE, "hidden_act", "silu", "gelu"),
    ("Qwen3_5MoeForCausalLM", _SPARSE, "decoder_sparse_step", 1, 2),
    ("NemotronHForCausalLM", _SPARSE, "conv_kernel", 4, 2),
    ("FalconH1ForCausalLM", _DENSE, "mamba_norm_before_gate", False, True),
]


@pytest.mark.parametrize(("architecture", "config", "name", "usable", "other"), CASES)
def test_a_setting_that_bridge_leaves_out_is_refused(
    architecture: str, config: dict[str, Any], name: str, usable: Any, other: Any
) -> None:
    model = {**config, "architectures": [architecture]}
    _plan(model)
    _plan({**model, name: usable})
    with pytest.raises(PlanError, match=f"config.json's {name} {other!r} is not computed for {architecture}"):
        _plan({**model, name: other})


def test_every_family_with_such_settings_has_a_case() -> None:
    having = {name for one in FAMILIES if one.settings or one.settings_with_experts for name in one.architectures}
    assert having == {architecture for architecture, *_ in CASES}


def test_a_dense_gemma_4_has_one_pipeline_stage() -> None:
    flags = {"num_workers": 2, "pipeline_parallel_size": 2}
    _plan({**_SPARSE, **_GEMMA4}, **flags)
    with pytest.raises(PlanError, match=r"--pipeline_parallel_size 2 must be 1 for Gemma4ForCausalLM: Bridge 0\.6\.2"):
        _plan({**_DENSE, **_GEMMA4}, **flags)
    with pytest.raises(PlanError, match=r"--context_parallel_size 2 must be 1 for Gemma4ForCausalLM"):
        _plan({**_SPARSE, **_GEMMA4}, num_workers=2, context_parallel_size=2)


def test_windows_of_gemma_4_with_experts_repeat() -> None:
    window, full = "sliding_attention", "full_attention"
    config = {**_SPARSE, **_GEMMA4, "sliding_window": 64}
    irregular = {"layer_types": [window, full, full, full]}
    _plan({**config, "layer_types": [window, full, window, full]})
    _plan({**_DENSE, **_GEMMA4, "sliding_window": 64, **irregular})
    with pytest.raises(PlanError, match=r"at \[2, 3, 4\], and Bridge 0.6.2 would have them at 2, 4, \.\.\. of Gemma4"):
        _plan({**config, **irregular})


def test_indexers_of_sparse_attention() -> None:
    config = {**_SPARSE, "architectures": ["GlmMoeDsaForCausalLM"], "kv_lora_rank": 32, "index_topk": 64}
    stages = {"num_workers": 2, "pipeline_parallel_size": 2}
    _plan(config, seq_length=128, **stages)
    _plan({**config, "indexer_rope_interleave": True}, seq_length=64)
    with pytest.raises(PlanError, match=r"--seq_length 128 is longer than config.json's index_topk 64: beyond"):
        _plan({**config, "indexer_rope_interleave": True}, seq_length=128)
    shared = {**config, "index_topk_freq": 2, "indexer_types": ["full", "full", "shared", "full"]}
    _plan(shared)
    with pytest.raises(PlanError, match=r"--pipeline_parallel_size 2 must be 1: layers of GlmMoeDsaForCausalLM"):
        _plan(shared, **stages)
    with pytest.raises(PlanError, match=r"config.json's indexer_types \['full', 'full', 'shared', 'full'\] is not"):
        _plan({**shared, "index_topk_freq": 1})


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.not_trained], ids=lambda one: one.name)
def test_a_family_that_is_not_trained_is_refused(family: Any) -> None:
    (architecture,) = family.architectures
    shape = ModelShape.from_config({**_SPARSE, "architectures": [architecture]})
    with pytest.raises(ModelError) as refused:
        check_architecture(shape, "some/model")
    assert f"--hf_model_path some/model: {architecture} is not trained: {family.not_trained}" in str(refused.value)
    assert support(architecture)["proven"] == "refused"
    assert not family.proven


def test_megatron_core_lacks_what_deepseek_v4_is_built_of() -> None:
    """Else it is to be tried again."""
    spec = find_spec("megatron.core")
    assert spec is not None and spec.origin is not None
    sources = [file.read_text(encoding="utf-8") for file in Path(spec.origin).parent.rglob("*.py")]
    assert any("class TransformerLayer" in text for text in sources)
    assert not any("HyperConnectionModule" in text or "dsv4_hybrid" in text for text in sources)

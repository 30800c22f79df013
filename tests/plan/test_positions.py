"""Windows and rotary scaling that are computed are planned, the others refused. tests/smoke/test_positions.py computes
them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS
from tests.families import FAMILIES, architecture
from tests.positions import LENGTH, SCALINGS, SHORT, TWO_KINDS, WINDOWS, computed, scaled

from raymb.errors import PlanError
from raymb.model.families import FAMILIES as RECORDS
from raymb.model.families import family_of
from raymb.model.shape import ModelShape
from raymb.plan import make_plan
from raymb.spec import load_spec


def _plan(config: dict[str, Any], seq_length: int = LENGTH, **flags: Any) -> None:
    spec = load_spec(
        {name: str(value) for name, value in {"hf_model_path": "m", "seq_length": seq_length, **flags}.items()}
    )
    make_plan(spec, ModelShape.from_config({**QWEN2_4_LAYERS, **config}))


def _of(family: str, **settings: Any) -> dict[str, Any]:
    """config.json of a family, as far as these rules read it."""
    latent = {"kv_lora_rank": 32} if "kv_lora_rank" in FAMILIES[family][1] else {}
    return {"architectures": [architecture(family)], "model_type": "other", **latent, **settings}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_scaling_is_planned_or_refused(family: str, kind: str) -> None:
    config = _of(family, **scaled(family, kind))
    if kind in (family_of(architecture(family)).rope_types or ()):
        return _plan(config)
    field = "rope_parameters.full_attention" if family in TWO_KINDS else "rope_parameters"
    for length in (SHORT // 2, LENGTH):
        with pytest.raises(
            PlanError, match=rf"config.json's {field} of type {kind} is not computed for {architecture(family)} "
        ):
            _plan(config, length)


def test_what_is_planned_is_computed_in_a_test() -> None:
    names = computed().keys()
    for record in RECORDS:
        tested = [family for family in FAMILIES if architecture(family) in record.architectures]
        for kind in record.rope_types or ():
            assert any(f"{family}, {kind}" in names for family in tested), (record.name, kind)
        if record.window_layers or record.full_attention_every:
            assert any(family in tested for family, _ in WINDOWS.values()), record.name
    assert {family_of(architecture(family)).rope_types for family in FAMILIES} - {None}


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_the_batch_are_refused(kind: str) -> None:
    config = _of("Qwen2", **scaled("Qwen2", kind))
    _plan(config, LENGTH)
    with pytest.raises(PlanError) as refused:
        _plan(config, LENGTH + 1)
    assert f"--seq_length {LENGTH + 1} is longer than {LENGTH} tokens" in str(refused.value)
    assert f"rope_parameters of type {kind}" in str(refused.value)
    assert f"set --seq_length to at most {LENGTH}" in str(refused.value)


def test_the_older_way_to_write_a_scaling() -> None:
    """`rope_scaling` with `type`, and a length beside it instead of in it (Phi 3)."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    _plan({"rope_scaling": yarn}, 2048)
    with pytest.raises(
        PlanError, match=r"config.json's rope_scaling of type yarn is not computed for MistralForCausalLM"
    ):
        _plan({"architectures": ["MistralForCausalLM"], "rope_scaling": yarn})
    with pytest.raises(PlanError, match="longer than 64 tokens"):
        _plan({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64})
    vision = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    _plan(vision | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}})
    with pytest.raises(PlanError, match="rope_scaling of type yarn is not computed"):
        _plan(vision | {"rope_scaling": yarn | {"mrope_section": [2, 3, 3]}})


def test_layers_with_a_window_are_not_scaled() -> None:
    both = {"rope_type": "linear", "factor": 8.0}
    with pytest.raises(PlanError, match=r"rope_parameters.sliding_attention of type linear is not computed"):
        _plan(_of("Gemma 3", rope_parameters={"full_attention": both, "sliding_attention": both}))


def test_nothing_is_said_of_a_family_without_a_record() -> None:
    _plan({"architectures": ["NobodysForCausalLM"], "rope_scaling": {"type": "yarn", "factor": 2.0}})


@pytest.mark.parametrize("family", ["Gemma 2", "Gemma 3"])
def test_windows_in_other_layers_than_bridges_are_refused(family: str) -> None:
    usual = "full_attention"
    every = family_of(architecture(family)).full_attention_every
    config = _of(family, sliding_window=16, num_hidden_layers=6)
    kinds = [usual if layer % every == 0 else "sliding_attention" for layer in range(1, 7)]
    _plan(config)
    _plan(config | {"layer_types": kinds})
    with pytest.raises(PlanError, match=rf"at \[3, 6\], and Bridge 0.6.2 has them at {every}, {2 * every}, "):
        _plan(config | {"layer_types": [usual if layer in (3, 6) else "sliding_attention" for layer in range(1, 7)]})
    with pytest.raises(PlanError, match=r"at \[3, 6\]"):
        _plan(config | {"sliding_window_pattern": 3})


def test_windows_of_qwen25_vl_are_refused_where_a_sequence_is_longer() -> None:
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    config |= {"use_sliding_window": True, "sliding_window": 64}
    _plan(config, 64)
    _plan(config | {"use_sliding_window": False}, 65)
    with pytest.raises(PlanError, match=r"--seq_length 65 is longer than config.json's sliding_window 64"):
        _plan(config, 65)


def test_context_parallel_workers_exchange_heads_where_there_is_a_window() -> None:
    """Of 4 key-value heads."""
    config = {"use_sliding_window": True, "sliding_window": 64, "model_type": "qwen2"}
    flags = {"num_workers": 4, "context_parallel_size": 2, "tensor_parallel_size": 2}
    _plan(config, 128, **flags)
    _plan(config, 64, **flags | {"num_workers": 8, "context_parallel_size": 8, "tensor_parallel_size": 1})
    flags |= {"num_workers": 8, "context_parallel_size": 4}
    with pytest.raises(PlanError, match="must divide the model's 4 key-value heads where --seq_length 128 is longer"):
        _plan(config, 128, **flags)
    _plan(config | {"layer_types": ["full_attention"] * 4}, 128, **flags)

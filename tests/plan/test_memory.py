"""Terms of the memory's estimate that no GPU has measured yet, against what Megatron-Core does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.plan.test_published import MODELS

from raymb.model.shape import ModelShape
from raymb.plan.choose import choose_layout
from raymb.plan.gpus import GIB
from raymb.plan.memory import estimate
from raymb.plan.sizes import DetailedLayout
from raymb.spec import load_spec


def layout_of(shape: ModelShape, **flags: object) -> DetailedLayout:
    spec = load_spec({"hf_model_path": "m", "recompute": "none", **{name: str(value) for name, value in flags.items()}})
    return choose_layout(spec, shape, "cuda", int(str(flags["num_workers"])))[0]


@pytest.mark.parametrize(("expert_tensor", "gib"), [(4, 13.7), (1, 4.7)])
def test_routed_tokens_under_tensor_parallel(expert_tensor: int, gib: float) -> None:
    """Workers route a quarter of the tokens each; expert tensor parallel workers gather all of them (Megatron-Core
    0.19.2, moe/token_dispatcher.py), and only the inner size is shared."""
    shape = MODELS["Qwen--Qwen3-30B-A3B"].shape
    layout = layout_of(
        shape,
        num_workers=4,
        tensor_parallel_size=4,
        expert_tensor_parallel_size=expert_tensor,
        seq_length=4096,
        micro_batch_size=1,
        global_batch_size=1,
    )
    unrouted = replace(shape, experts_per_token=0)
    assert round((estimate(layout, shape).activations - estimate(layout, unrouted).activations) / GIB, 1) == gib
    recomputed = replace(layout, recompute="selective", recompute_modules=("moe",))
    assert estimate(recomputed, shape).activations == estimate(recomputed, unrouted).activations


def test_layers_of_multi_token_prediction_take_nothing() -> None:
    named = MODELS["XiaomiMiMo--MiMo-7B-Base"]
    without = ModelShape.from_config({**named.config, "num_nextn_predict_layers": 0})
    assert (named.shape.prediction_parameters, without.prediction_parameters) == (210_790_400, 0)
    layout = layout_of(without, num_workers=2, tensor_parallel_size=1, pipeline_parallel_size=1, micro_batch_size=1)
    assert estimate(layout, named.shape) == estimate(layout, without)


def test_latent_attention_keeps_queries_and_keys_of_one_size_and_values_of_another() -> None:
    shape = MODELS["deepseek-ai--DeepSeek-V3"].shape
    layout = layout_of(shape, num_workers=8, tensor_parallel_size=1, micro_batch_size=1, global_batch_size=8)

    def kept(heads: int) -> int:
        return estimate(layout, replace(shape, num_attention_heads=heads)).activations

    tokens = layout.seq_length * 61
    assert kept(128) - kept(64) == pytest.approx(2 * tokens * 64 * (2 * (192 + 192) + 2 * 128), abs=2)

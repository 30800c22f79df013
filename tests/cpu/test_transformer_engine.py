"""The stand-in for Transformer Engine against plain torch, in one process."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import raymb.cpu

PACKAGES = Path(raymb.cpu.__file__).parent / "packages"


@pytest.fixture(scope="module")
def te() -> Iterator[Any]:
    """transformer_engine.pytorch as a worker on the CPU imports it."""
    sys.path.insert(0, str(PACKAGES))
    import transformer_engine.pytorch

    torch.manual_seed(0)
    yield transformer_engine.pytorch
    sys.path.remove(str(PACKAGES))
    for name in [name for name in sys.modules if name.split(".")[0].startswith("transformer_engine")]:
        del sys.modules[name]


def _keys(module: torch.nn.Module) -> set[str]:
    return set(module.state_dict())


def test_names_in_a_state_dict_are_those_of_transformer_engine(te: Any) -> None:
    assert _keys(te.Linear(4, 6)) == {"weight", "bias", "_extra_state"}
    assert _keys(te.Linear(4, 6, bias=False)) == {"weight", "_extra_state"}
    norm = {"layer_norm_weight", "weight", "bias", "_extra_state"}
    assert _keys(te.LayerNormLinear(4, 6, normalization="RMSNorm")) == norm
    assert _keys(te.LayerNormLinear(4, 6)) == norm | {"layer_norm_bias"}
    assert _keys(te.GroupedLinear(2, 4, 6)) == {"weight0", "weight1", "bias0", "bias1", "_extra_state"}
    assert _keys(te.RMSNorm(4)) == {"weight", "_extra_state"}
    assert _keys(te.LayerNorm(4)) == {"weight", "bias", "_extra_state"}
    assert _keys(te.DotProductAttention(4, 8)) == {"_extra_state"}
    assert _keys(te.DotProductAttention(4, 8, softmax_type="learnable")) == {"softmax_offset", "_extra_state"}


def test_parameters_have_transformer_engines_order(te: Any) -> None:
    """In which Megatron's optimizer keeps its state: runs change between CPUs and GPUs (tests/gpu/test_backends.py)."""

    def order(module: torch.nn.Module) -> list[str]:
        return [name for name, _ in module.named_parameters()]

    assert order(te.LayerNormLinear(4, 6)) == ["layer_norm_weight", "layer_norm_bias", "weight", "bias"]
    assert order(te.GroupedLinear(2, 4, 6)) == ["weight0", "bias0", "weight1", "bias1"]


def test_extra_state_is_empty_and_foreign_state_is_taken(te: Any) -> None:
    linear = te.Linear(4, 6)
    state = linear.state_dict()
    assert state["_extra_state"].numel() == 0 and state["_extra_state"].dtype == torch.uint8
    state["_extra_state"] = torch.ones(9, dtype=torch.uint8)  # the FP8 scales of a run on GPUs
    linear.load_state_dict(state)


def test_layer_norm_linear_is_norm_then_linear(te: Any) -> None:
    x = torch.randn(5, 2, 8)
    for kind, zero_centered in (("RMSNorm", False), ("RMSNorm", True), ("LayerNorm", False)):
        layer = te.LayerNormLinear(8, 6, normalization=kind, zero_centered_gamma=zero_centered, return_bias=True)
        with torch.no_grad():
            layer.layer_norm_weight.normal_()
            layer.bias.normal_()
        scale = layer.layer_norm_weight + zero_centered
        normed = F.rms_norm(x, (8,), scale, 1e-5) if kind == "RMSNorm" else F.layer_norm(x, (8,), scale, None, 1e-5)
        out, bias = layer(x)
        torch.testing.assert_close(out, F.linear(normed, layer.weight))
        assert bias is layer.bias


def test_layer_norm_output_for_adapters(te: Any) -> None:
    layer = te.LayerNormLinear(8, 6, bias=False, return_layernorm_output=True)
    out, normed = layer(torch.randn(5, 2, 8))
    torch.testing.assert_close(out, F.linear(normed, layer.weight))


def test_grouped_linear_is_a_linear_an_expert(te: Any) -> None:
    layer = te.GroupedLinear(3, 4, 6)
    x = torch.randn(5, 4)
    parts = [F.linear(x[:2], layer.weight0, layer.bias0), F.linear(x[2:], layer.weight2, layer.bias2)]
    torch.testing.assert_close(layer(x, torch.tensor([2, 0, 3])), torch.cat(parts))


def _naive_attention(q: Any, k: Any, v: Any, counts: Any, scale: float, softcap: float = 0.0, sink: Any = None) -> Any:
    """[s, b, h, d] with as many key-value heads; counts: [queries, keys]."""
    scores = torch.einsum("sbhd,tbhd->bhst", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~counts, -math.inf)
    if sink is not None:
        scores = torch.cat((scores, sink[None, :, None, None].expand(*scores.shape[:-1], 1)), -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[0]]
    return torch.einsum("bhst,tbhd->sbhd", weights, v).flatten(2)


ATTENTION = {
    "causal": {},
    "window": {"window_size": (3, 0)},
    "softcap": {"softcap": 2.0},
    "softcap and window": {"softcap": 2.0, "window_size": (3, 0)},
    "off by one": {"softmax_type": "off-by-one"},
    "learnable sink": {"softmax_type": "learnable"},
    "learnable sink and window": {"softmax_type": "learnable", "window_size": (3, 0)},
    "no mask": {"attn_mask_type": "no_mask"},
    "scale": {"softmax_scale": 0.3},
}


@pytest.mark.parametrize("settings", ATTENTION.values(), ids=ATTENTION.keys())
def test_attention_and_its_gradients(te: Any, settings: dict[str, Any]) -> None:
    attention = te.DotProductAttention(4, 8, num_gqa_groups=2, **settings)
    if settings.get("softmax_type") == "learnable":
        torch.nn.init.normal_(attention.softmax_offset)
    q = torch.randn(10, 2, 4, 8, requires_grad=True)
    k, v = (torch.randn(10, 2, 2, 8, requires_grad=True) for _ in "kv")
    at = torch.arange(10)
    distance = at[:, None] - at[None]
    counts = distance >= 0 if settings.get("attn_mask_type") != "no_mask" else torch.ones(10, 10, dtype=torch.bool)
    if "window_size" in settings:
        counts = counts & (distance <= 3)
    sink = attention.softmax_offset
    wide = [x.repeat_interleave(2, dim=2) for x in (k, v)]
    expected = _naive_attention(
        q, *wide, counts, settings.get("softmax_scale", 8**-0.5), settings.get("softcap", 0.0), sink
    )
    weight = torch.randn_like(expected)
    inputs = [q, k, v, *(attention.parameters())]
    ours = torch.autograd.grad((attention(q, k, v) * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    torch.testing.assert_close(attention(q, k, v), expected)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_attention_mask_is_true_where_left_out(te: Any) -> None:
    q, k, v = (torch.randn(6, 2, 2, 8) for _ in "qkv")
    left_out = torch.rand(2, 1, 6, 6) > 0.7
    left_out[..., 0] = False
    out = te.DotProductAttention(2, 8)(q, k, v, left_out, attn_mask_type="arbitrary")
    expected = _naive_attention(q, k, v, ~left_out, 8**-0.5)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("window", [None, (2, 0)], ids=["whole", "window"])
def test_packed_sequences_attend_to_themselves_only(te: Any, window: Any) -> None:
    lengths, slots = [5, 1, 7], [6, 4, 8]
    ends, padded = (torch.tensor([0, *sizes]).cumsum(0).int() for sizes in (lengths, slots))
    attention = te.DotProductAttention(4, 8, num_gqa_groups=2, window_size=window)
    q, k, v = torch.randn(18, 4, 8), torch.randn(18, 2, 8), torch.randn(18, 2, 8)
    packed = {
        "cu_seqlens_q": ends,
        "cu_seqlens_kv": ends,
        "cu_seqlens_q_padded": padded,
        "cu_seqlens_kv_padded": padded,
    }
    out = attention(q, k, v, qkv_format="thd", attn_mask_type="padding_causal", **packed)
    assert out.shape == (18, 32)
    for start, length, slot in zip(padded.tolist(), lengths, slots, strict=False):
        alone = (x[start : start + length, None] for x in (q, k, v))
        torch.testing.assert_close(out[start : start + length], attention(*alone)[:, 0])
        assert not out[start + length : start + slot].any(), "padding gives zeros"


def test_rope_rotates_pairs_by_their_angle(te: Any) -> None:
    from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

    freqs = torch.rand(7, 1, 1, 6)
    freqs = torch.cat((freqs[..., :3], freqs[..., :3]), -1)
    t = torch.randn(7, 2, 3, 8)
    out = apply_rotary_pos_emb(t, freqs)
    pairs = torch.complex(t[..., :3], t[..., 3:6]) * torch.polar(torch.ones(7, 1, 1, 3), freqs[..., :3])
    torch.testing.assert_close(out, torch.cat((pairs.real, pairs.imag, t[..., 6:]), -1))
    packed = apply_rotary_pos_emb(t[:, 0], freqs, tensor_format="thd", cu_seqlens=torch.tensor([0, 3, 7]))
    torch.testing.assert_close(packed[3:], apply_rotary_pos_emb(t[3:, :1], freqs)[:, 0])


def test_cross_entropy_and_its_gradient(te: Any) -> None:
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    logits = torch.randn(5, 2, 11, requires_grad=True)
    target = torch.randint(0, 11, (5, 2))
    target[2, 1] = -100
    loss = parallel_cross_entropy(logits, target)
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(5, 2)
    torch.testing.assert_close(loss, expected)
    weight = torch.rand(5, 2)
    mine, other = (torch.autograd.grad((x * weight).sum(), logits)[0] for x in (loss, expected))
    torch.testing.assert_close(mine, other)


def test_tokens_come_back_from_their_experts(te: Any) -> None:
    from transformer_engine.pytorch import permutation

    tokens = torch.randn(6, 4)
    routing = torch.zeros(6, 3, dtype=torch.bool).scatter(1, torch.rand(6, 3).topk(2).indices, True)
    probs = torch.rand(6, 3) * routing
    rows, row_probs, row_map = permutation.moe_permute_with_probs(tokens, probs, routing, 12)
    assert rows.shape == (12, 4) and (row_map[1].diff() >= 0).all(), "sorted by expert"
    torch.testing.assert_close(row_probs, probs.T[routing.T])
    back = permutation.moe_unpermute(rows, row_map, merging_probs=probs, restore_shape=tokens.shape)
    torch.testing.assert_close(back, tokens * probs.sum(1, keepdim=True))
    sizes, order = torch.tensor([3, 4, 5]), torch.tensor([2, 0, 1])
    swapped, _ = permutation.moe_sort_chunks_by_index_with_probs(rows, row_probs, sizes, order)
    torch.testing.assert_close(swapped, torch.cat((rows[7:], rows[:3], rows[3:7])))


@pytest.mark.parametrize("decoupled", [True, False], ids=["AdamW", "Adam"])
def test_adam_is_torchs(te: Any, decoupled: bool) -> None:
    ours, theirs = ([torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))] for _ in "ab")
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    mine = te.optimizers.FusedAdam(ours, adam_w_mode=decoupled, **settings)
    other = (torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs, **settings)
    for step in range(5):
        for params, optimizer in ((ours, mine), (theirs, other)):
            params[0].grad = torch.sin(params[0].detach() * (step + 2))
            optimizer.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7)
    assert mine.param_groups[0]["step"] == 5
    assert set(mine.state[ours[0]]) == {"exp_avg", "exp_avg_sq"}


def test_adam_resumes_exactly_from_its_state(te: Any) -> None:
    def run(optimizer: Any, params: list[Any], steps: range) -> None:
        for step in steps:
            params[0].grad = torch.sin(params[0].detach().float() * (step + 2)).to(params[0].dtype)
            optimizer.step()

    def make(values: torch.Tensor) -> tuple[list[Any], Any]:
        params = [torch.nn.Parameter(values.clone())]
        settings = {"master_weights": True, "exp_avg_dtype": torch.bfloat16}
        return params, te.optimizers.FusedAdam(params, lr=0.01, **settings)

    params, optimizer = make(torch.randn(5, 3, dtype=torch.bfloat16))
    run(optimizer, params, range(3))
    again, resumed = make(params[0].detach())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state[again[0]]["master_param"].dtype == torch.float32
    assert resumed.state[again[0]]["exp_avg"].dtype == torch.bfloat16
    run(optimizer, params, range(3, 6))
    run(resumed, again, range(3, 6))
    assert torch.equal(params[0], again[0])
    assert torch.equal(optimizer.state[params[0]]["master_param"], resumed.state[again[0]]["master_param"])


def test_an_empty_group_counts_its_steps(te: Any) -> None:
    optimizer = te.optimizers.FusedAdam([{"params": []}, {"params": [torch.nn.Parameter(torch.ones(2))]}])
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]


def test_multi_tensor_operations(te: Any) -> None:
    tensors = [torch.randn(3, 4), torch.randn(0), torch.randn(7).bfloat16()]
    flag = torch.zeros(1, dtype=torch.int)
    apply = te.optimizers.multi_tensor_applier
    norm, each = apply(te.optimizers.multi_tensor_l2norm, flag, [tensors], True)
    torch.testing.assert_close(norm, torch.cat([t.float().flatten() for t in tensors]).norm().reshape(1))
    assert each.shape == (2,)
    scaled = [torch.empty_like(tensor) for tensor in tensors]
    apply(te.optimizers.multi_tensor_scale, flag, [tensors, scaled], 0.5)
    torch.testing.assert_close(scaled[0], tensors[0] * 0.5)
    assert flag.item() == 0
    apply(te.optimizers.multi_tensor_scale, flag, [[torch.tensor([math.inf])], [torch.empty(1)]], 1.0)
    assert flag.item() == 1
    assert apply(te.optimizers.multi_tensor_l2norm, flag, [[torch.empty(0)]]) is None


def test_what_needs_a_gpu_is_refused(te: Any) -> None:
    with pytest.raises(RuntimeError, match="computes no FP8"), te.fp8_autocast(enabled=True):
        pass
    with te.fp8_autocast(enabled=False):
        pass
    with pytest.raises(RuntimeError, match="tp_comm_overlap"):
        te.Linear(4, 4, ub_overlap_ag=True)
    with pytest.raises(RuntimeError, match="gradient_accumulation_fusion"):
        te.Linear(4, 4, fuse_wgrad_accumulation=True)
    with pytest.raises(RuntimeError, match="moe_router_fusion"):
        from transformer_engine.pytorch.router import fused_moe_aux_loss

        fused_moe_aux_loss()
    with pytest.raises(RuntimeError, match="belongs to a package left out"):
        te.ops.Sequential()
    with pytest.raises(RuntimeError, match="user buffers"):
        te.initialize_ub()
    with pytest.raises(RuntimeError, match="DelayedScaling"):
        from transformer_engine.common.recipe import DelayedScaling

        DelayedScaling()


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_parameters_are_made_in_transformer_engines_order(te: Any, normalization: str) -> None:
    """Megatron's optimizer keeps its state in this order: in another one a GPU would load each moment into the wrong
    parameter (Transformer Engine 2.20: module/layernorm_linear.py lines 1452, 1461, 1548, 1563)."""
    layer = te.LayerNormLinear(8, 8, normalization=normalization, bias=True)
    norm = ["layer_norm_weight", "layer_norm_bias"] if normalization == "LayerNorm" else ["layer_norm_weight"]
    assert [name for name, _ in layer.named_parameters()] == [*norm, "weight", "bias"]

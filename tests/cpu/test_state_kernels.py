"""The stand-ins for flash-linear-attention, mamba-ssm and causal-conv1d against what transformers computes, and against
the recurrences that they are made for, a token at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import raymb.cpu

PACKAGES = Path(raymb.cpu.__file__).parent / "packages"
NAMES = ("causal_conv1d", "fla", "mamba_ssm")
LENGTHS = (1, 70, 3, 0, 66)
"""Of packed sequences: shorter than a convolution, longer than a chunk, none at all."""


@pytest.fixture(scope="module", autouse=True)
def packages() -> Iterator[None]:
    sys.path.insert(0, str(PACKAGES))
    yield
    sys.path.remove(str(PACKAGES))
    for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        del sys.modules[name]


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def _bounds() -> torch.Tensor:
    return F.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0))


def _sequence_of_tokens() -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]


def _same(ours: Any, theirs: Any, inputs: list[torch.Tensor]) -> None:
    """Results, and the gradients of all inputs of a random sum of them."""
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn(theirs.shape)
    gradients = [torch.autograd.grad((one * weights).sum(), inputs) for one in (ours, theirs)]
    assert_close(*gradients, rtol=1e-4, atol=1e-4)


def _delta_rule_inputs(tokens: int, batch: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    heads, key, value = 3, 8, 5
    inputs = {
        "q": F.normalize(torch.randn(batch, tokens, heads, key), dim=-1),
        "k": F.normalize(torch.randn(batch, tokens, heads, key), dim=-1),
        "v": torch.randn(batch, tokens, heads, value),
        "g": -torch.rand(batch, tokens, heads) * 3,
        "beta": torch.rand(batch, tokens, heads),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def test_gated_delta_rule_is_that_of_transformers() -> None:
    theirs = _named("transformers.models.qwen3_next.modeling_qwen3_next.torch_recurrent_gated_delta_rule")
    ours = _named("fla.ops.gated_delta_rule.chunk_gated_delta_rule")
    inputs, state = _delta_rule_inputs(150, batch=2), torch.randn(2, 3, 8, 5, requires_grad=True)
    out, last = ours(**inputs, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
    positional = (*(inputs[name] for name in ("q", "k", "v", "g", "beta")),)
    expected, expected_last = theirs(
        *positional, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    assert_close(last, expected_last, rtol=1e-5, atol=1e-5)
    _same(out, expected, [*inputs.values(), state])


def test_no_state_of_the_gated_delta_rule_passes_between_packed_sequences() -> None:
    rule = _named("fla.ops.gated_delta_rule.chunk_gated_delta_rule")
    inputs = _delta_rule_inputs(sum(LENGTHS))
    packed, _ = rule(**inputs, cu_seqlens=_bounds())
    pieces = zip(*(tensor.split(LENGTHS, dim=1) for tensor in inputs.values()), strict=True)
    alone = [rule(**dict(zip(inputs, piece, strict=True)))[0] for piece in pieces]
    _same(packed, torch.cat(alone, dim=1), list(inputs.values()))


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("packed", [False, True])
def test_convolutions(activation: str | None, packed: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, sum(LENGTHS), 6, requires_grad=True)
    weight, bias = torch.randn(6, 4, requires_grad=True), torch.randn(6, requires_grad=True)
    of_delta_rule = _named("fla.modules.convolution.causal_conv1d")
    ours, _ = of_delta_rule(x, weight, bias, activation=activation, cu_seqlens=_bounds() if packed else None)
    pieces = x.split(LENGTHS, dim=1) if packed else [x]
    alone = [F.conv1d(F.pad(one.mT, (3, 0)), weight[:, None], bias, groups=6).mT for one in pieces if one.shape[1]]
    expected = torch.cat(alone, dim=1)
    _same(ours, F.silu(expected) if activation else expected, [x, weight, bias])
    of_mamba = _named("causal_conv1d.causal_conv1d_fn")
    sequence = _sequence_of_tokens() if packed else None
    assert_close(of_mamba(x.mT, weight, bias, seq_idx=sequence, activation=activation).mT, ours)


def test_a_convolution_goes_on_from_its_states() -> None:
    convolve = _named("causal_conv1d.causal_conv1d_fn")
    x, weight = torch.randn(2, 6, 20), torch.randn(6, 4)
    whole = convolve(x, weight)
    first, states = convolve(x[..., :7], weight, return_final_states=True)
    second = convolve(x[..., 7:], weight, initial_states=states)
    assert_close(torch.cat([first, second], dim=-1), whole)


def _scan_inputs(tokens: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    heads, channels, groups, states = 4, 5, 2, 6
    inputs = {
        "x": torch.randn(1, tokens, heads, channels),
        "dt": torch.randn(1, tokens, heads),
        "A": -torch.rand(heads) * 4,
        "B": torch.randn(1, tokens, groups, states),
        "C": torch.randn(1, tokens, groups, states),
        "D": torch.randn(heads),
        "z": torch.randn(1, tokens, heads, channels),
        "dt_bias": torch.randn(heads),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def _token_by_token(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, state: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    results = []
    for token in range(x.shape[1]):
        step = F.softplus(dt[:, token] + dt_bias)[..., None, None]
        taken, given = (part[:, token].repeat_interleave(2, dim=1)[:, :, None] for part in (B, C))
        state = (step * A[:, None, None]).exp() * state + step * x[:, token][..., None] * taken
        results.append((state * given).sum(-1) + D[:, None] * x[:, token])
    return torch.stack(results, dim=1) * F.silu(z), state


def test_the_state_space_is_the_recurrence() -> None:
    scan = _named("mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined")
    inputs, state = _scan_inputs(50), torch.randn(1, 4, 5, 6, requires_grad=True)
    settings = {"chunk_size": 16, "dt_softplus": True}
    ours, last = scan(**inputs, **settings, initial_states=state, return_final_states=True)
    expected, expected_last = _token_by_token(**inputs, state=state)
    assert_close(last, expected_last, rtol=1e-5, atol=1e-5)
    _same(ours, expected, [*inputs.values(), state])


def test_no_state_of_the_state_space_passes_between_packed_sequences() -> None:
    scan = _named("mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined")
    inputs, settings = _scan_inputs(sum(LENGTHS)), {"chunk_size": 16, "dt_softplus": True}
    packed = scan(**inputs, **settings, seq_idx=_sequence_of_tokens())
    cut = ("x", "dt", "B", "C", "z")
    pieces = zip(*(inputs[name].split([n for n in LENGTHS if n], dim=1) for name in cut), strict=True)
    alone = [scan(**{**inputs, **dict(zip(cut, piece, strict=True))}, **settings) for piece in pieces]
    _same(packed, torch.cat(alone, dim=1), list(inputs.values()))


@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_a_whole_mamba_2_layer_is_that_of_transformers(norm_before_gate: bool) -> None:
    """Falcon-H1's, which has the norm on either side of its gate."""
    config = _named("transformers.FalconH1Config")(
        hidden_size=16,
        mamba_d_ssm=24,
        mamba_n_heads=4,
        mamba_d_head=6,
        mamba_n_groups=2,
        mamba_d_state=5,
        mamba_chunk_size=8,
        mamba_rms_norm=True,
        mamba_norm_before_gate=norm_before_gate,
        rms_norm_eps=1e-3,
    )
    torch.manual_seed(0)
    layer = _named("transformers.models.falcon_h1.modeling_falcon_h1.FalconH1Mixer")(config, 0)
    layer.mup_vector = torch.ones(1)  # the whole model gives it to its layers
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    hidden = torch.randn(2, 21, 16, requires_grad=True)
    theirs = layer.torch_forward(hidden)
    ours = _named("mamba_ssm.ops.triton.ssd_combined.mamba_split_conv1d_scan_combined")(
        layer.in_proj(hidden),
        layer.conv1d.weight.squeeze(1),
        layer.conv1d.bias,
        layer.dt_bias,
        -layer.A_log.exp(),
        layer.D,
        8,
        rmsnorm_weight=layer.norm.weight,
        rmsnorm_eps=1e-3,
        outproj_weight=layer.out_proj.weight,
        headdim=6,
        ngroups=2,
        norm_before_gate=norm_before_gate,
    )
    _same(ours, theirs, [hidden, *layer.parameters()])


def test_states_of_generation_are_refused() -> None:
    with pytest.raises(RuntimeError, match="left out of this run"):
        _named("causal_conv1d.causal_conv1d_varlen.causal_conv1d_varlen_states")()
    with pytest.raises(NotImplementedError, match="silu"):
        _named("causal_conv1d.causal_conv1d_fn")(torch.zeros(1, 1, 1), torch.zeros(1, 4), activation="gelu")

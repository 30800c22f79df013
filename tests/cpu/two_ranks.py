"""`torchrun two_ranks.py`: prints "NAME: ok" for each check that holds on this rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.testing import assert_close

import raymb.cpu
from raymb.cpu import gloo

sys.path.insert(0, str(Path(raymb.cpu.__file__).parent / "packages"))
import transformer_engine.pytorch as te
from transformer_engine.pytorch.attention.context_parallel import positions_of_rank
from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb
from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

dist.init_process_group("gloo")
gloo.install()
RANK, GROUP = dist.get_rank(), dist.group.WORLD


def all_to_all_of_lists() -> None:
    received = [torch.empty(2), torch.empty(3)] if RANK == 0 else [torch.empty(3), torch.empty(1)]
    sent = (
        [torch.full((2,), 1.0), torch.full((3,), 2.0)] if RANK == 0 else [torch.full((3,), 3.0), torch.full((1,), 4.0)]
    )
    dist.all_to_all(received, sent)
    expected = (
        [torch.full((2,), 1.0), torch.full((3,), 3.0)] if RANK == 0 else [torch.full((3,), 2.0), torch.full((1,), 4.0)]
    )
    assert_close(received, expected)


def all_to_all_with_tensor_splits() -> None:
    sizes = torch.tensor([1, 3]) if RANK == 0 else torch.tensor([3, 2])
    received, sent = torch.empty(int(sizes.sum()), 2), torch.full((int(sizes.sum()), 2), float(RANK))
    dist.all_to_all_single(received, sent, sizes, sizes)
    assert_close(received[: sizes[0]], torch.zeros(int(sizes[0]), 2))
    assert_close(received[sizes[0] :], torch.ones(int(sizes[1]), 2))


def uneven_all_gather() -> None:
    parts = [torch.empty(2, 3), torch.empty(5, 3)]
    dist.all_gather(parts, torch.full(((2, 5)[RANK], 3), float(RANK)))
    assert_close(parts, [torch.zeros(2, 3), torch.ones(5, 3)])


def uneven_reduce_scatter() -> None:
    out = torch.empty((2, 5)[RANK], 3)
    dist.reduce_scatter(out, [torch.full((2, 3), RANK + 1.0), torch.full((5, 3), RANK + 2.0)])
    assert_close(out, torch.full_like(out, (3.0, 5.0)[RANK]))


def _column_then_row(sequence_parallel: bool) -> None:
    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 8))
    x, weight = torch.randn(6, 2, 8, requires_grad=True), torch.randn(6, 2, 8)
    expected = whole(x)
    theirs = torch.autograd.grad((expected * weight).sum(), [x, whole[0].weight, whole[1].weight, whole[1].bias])
    settings: dict[str, Any] = {"tp_group": GROUP, "sequence_parallel": sequence_parallel}
    first, second = (
        te.Linear(8, 12, parallel_mode="column", **settings),
        te.Linear(12, 8, parallel_mode="row", **settings),
    )
    columns, here = slice(6 * RANK, 6 * RANK + 6), slice(3 * RANK, 3 * RANK + 3) if sequence_parallel else slice(None)
    with torch.no_grad():
        first.weight.copy_(whole[0].weight[columns])
        first.bias.copy_(whole[0].bias[columns])
        second.weight.copy_(whole[1].weight[:, columns])
        second.bias.copy_(whole[1].bias)
    part = x.detach()[here].clone().requires_grad_()
    out = second(first(part))
    assert_close(out, expected[here])
    ours = torch.autograd.grad((out * weight[here]).sum(), [part, first.weight, second.weight, second.bias])
    bias = ours[3].clone()
    if sequence_parallel:
        dist.all_reduce(bias)  # Megatron sums what is marked `sequence_parallel`
    assert_close([*ours[:3], bias], [theirs[0][here], theirs[1][columns], theirs[2][:, columns], theirs[3]])
    assert second.bias.sequence_parallel is sequence_parallel and first.weight.partition_dim == 0


def column_then_row() -> None:
    _column_then_row(False)


def column_then_row_with_sequence_parallel() -> None:
    _column_then_row(True)


def cross_entropy() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 2, 12, requires_grad=True), torch.randint(0, 12, (5, 2))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(5, 2)
    columns = slice(6 * RANK, 6 * RANK + 6)
    part = logits.detach()[..., columns].clone().requires_grad_()
    loss = parallel_cross_entropy(part, target, dist_process_group=GROUP)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss.sum(), part)[0], torch.autograd.grad(expected.sum(), logits)[0][..., columns])


def context_parallel_attention() -> None:
    for settings in ({}, {"window_size": (3, 0)}, {"softmax_type": "off-by-one"}, {"attn_mask_type": "no_mask"}):
        torch.manual_seed(0)
        x = [torch.randn(8, 2, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
        weight = torch.randn(8, 2, 32)
        expected = te.DotProductAttention(4, 8, num_gqa_groups=2, **settings)(*x)
        theirs = torch.autograd.grad((expected * weight).sum(), x)
        here = positions_of_rank(8, 2, RANK)
        parts = [tensor.detach()[here].clone().requires_grad_() for tensor in x]
        out = te.DotProductAttention(4, 8, num_gqa_groups=2, cp_group=GROUP, **settings)(*parts)
        assert_close(out, expected[here])
        ours = torch.autograd.grad((out * weight[here]).sum(), parts)
        assert_close(list(ours), [grad[here] for grad in theirs])


def _packed_rows() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    real, slots = torch.tensor([0, 7, 10]).int(), torch.tensor([0, 8, 12]).int()
    names = ("cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded")
    import transformer_engine_torch as tex

    return dict(zip(names, (real, real, slots, slots), strict=True)), tex.thd_get_partitioned_indices(
        slots, 12, 2, RANK
    ).long()


def context_parallel_packed_attention() -> None:
    torch.manual_seed(0)
    x = [torch.randn(12, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    weight = torch.randn(12, 32)
    packed, here = _packed_rows()
    settings: dict[str, Any] = {"qkv_format": "thd", "attn_mask_type": "padding_causal", **packed}
    expected = te.DotProductAttention(4, 8, num_gqa_groups=2)(*x, **settings)
    theirs = torch.autograd.grad((expected * weight).sum(), x)
    parts = [tensor.detach()[here].clone().requires_grad_() for tensor in x]
    out = te.DotProductAttention(4, 8, num_gqa_groups=2, cp_group=GROUP)(*parts, **settings)
    assert_close(out, expected[here])
    ours = torch.autograd.grad((out * weight[here]).sum(), parts)
    assert_close(list(ours), [grad[here] for grad in theirs])


def context_parallel_rope() -> None:
    torch.manual_seed(0)
    t, freqs = torch.randn(12, 4, 8), torch.rand(16, 1, 1, 8)
    packed, here = _packed_rows()
    starts = packed["cu_seqlens_q_padded"]
    whole = apply_rotary_pos_emb(t, freqs, tensor_format="thd", cu_seqlens=starts)
    part = apply_rotary_pos_emb(t[here], freqs, tensor_format="thd", cu_seqlens=starts, cp_size=2, cp_rank=RANK)
    assert_close(part, whole[here])


for check in (
    all_to_all_of_lists,
    all_to_all_with_tensor_splits,
    uneven_all_gather,
    uneven_reduce_scatter,
    column_then_row,
    column_then_row_with_sequence_parallel,
    cross_entropy,
    context_parallel_attention,
    context_parallel_packed_attention,
    context_parallel_rope,
):
    check()
    print(f"{check.__name__}: ok", flush=True)
dist.barrier()
dist.destroy_process_group()

"""MiniMax-M2's norms of queries and keys over the heads of two tensor parallel workers, against one norm over all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymb.bridge.patches.families import norm_over_heads

TOKENS, HEADS, SIZE, EPSILON = 5, 4, 8, 1e-6
WORKERS = 2


def _case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(what is normed, the norm's weight, the gradient of the result)"""
    torch.manual_seed(0)
    x, gradient = (torch.randn(TOKENS, 1, HEADS, SIZE) for _ in range(2))
    return x, torch.randn(HEADS * SIZE), gradient


def _worker(rank: int, directory: str, shards: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=WORKERS)
    x, weight, gradient = _case()
    own = slice(rank * HEADS // WORKERS, (rank + 1) * HEADS // WORKERS) if shards > 1 else slice(None)
    part = x[:, :, own].clone().requires_grad_()
    scale = torch.nn.Parameter(weight.view(HEADS, SIZE)[own].reshape(-1).clone())
    norm = SimpleNamespace(
        weight=scale,
        global_dim=HEADS * SIZE,
        eps=EPSILON,
        shard_world_size=shards,
        _tp_group_getter=lambda: dist.group.WORLD,
    )
    out = norm_over_heads(norm, part)
    out.backward(gradient[:, :, own] / (WORKERS // shards))
    torch.save((out.detach(), part.grad, scale.grad), f"{directory}/{rank}")
    dist.destroy_process_group()  # threads that are still joined to it would abort the process


@pytest.mark.parametrize("shards", [2, 1], ids=["heads of their own", "the same heads"])
def test_two_workers_compute_what_one_does(shards: int, tmp_path: Path) -> None:
    mp.start_processes(_worker, (str(tmp_path), shards), nprocs=WORKERS, start_method="spawn")  # type: ignore[no-untyped-call]
    results = [torch.load(tmp_path / str(rank)) for rank in range(WORKERS)]
    x, weight, gradient = _case()
    x.requires_grad_()
    scale = torch.nn.Parameter(weight)
    out = torch.nn.functional.rms_norm(x.reshape(TOKENS, 1, -1), (HEADS * SIZE,), scale, EPSILON).reshape(x.shape)
    out.backward(gradient)
    assert x.grad is not None and scale.grad is not None
    if shards == WORKERS:
        outs, inputs, weights = (
            torch.cat([result[index] for result in results], dim) for index, dim in ((0, 2), (1, 2), (2, 0))
        )
    else:  # each has a part of the gradient, which Megatron adds up
        outs = results[0][0]
        inputs, weights = (sum(result[index] for result in results) for index in (1, 2))
    for ours, theirs in ((outs, out.detach()), (inputs, x.grad), (weights, scale.grad)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

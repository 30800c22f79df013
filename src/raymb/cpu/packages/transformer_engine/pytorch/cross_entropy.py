"""Cross entropy over a vocabulary that is split over the tensor parallel group."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd import Function

from transformer_engine.pytorch.module import refuse


def parallel_cross_entropy(
    inp: torch.Tensor,
    target: torch.Tensor,
    label_smoothing: float = 0.0,
    reduce_loss: bool = False,
    dist_process_group: Any = None,
    ignore_idx: int = -100,
    is_cg_capturable: bool = False,
) -> torch.Tensor:
    """The loss of each token, fp32, shaped as target; 0 where target is ignore_idx.

    Args:
        inp: [..., vocabulary / n]: this rank's part of the logits.
        target: [...], ids in the whole vocabulary.
    """
    refuse("the CPU backend's fused cross entropy has none", label_smoothing=label_smoothing, reduce_loss=reduce_loss)
    if dist_process_group is None or dist.get_world_size(dist_process_group) == 1:
        scores = inp.float().flatten(0, -2)  # a pass each way, where logits that are split take several
        loss = F.cross_entropy(scores, target.flatten(), reduction="none", ignore_index=ignore_idx)
        return loss.view_as(target)
    return _CrossEntropy.apply(inp, target, dist_process_group, ignore_idx)  # type: ignore[return-value]


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, group: Any, ignore_idx: int) -> torch.Tensor:
        rank, part = dist.get_rank(group), logits.shape[-1]
        scores = logits.float()
        highest = scores.amax(dim=-1)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        scores = scores - highest[..., None]
        local = target - rank * part
        here = (local >= 0) & (local < part)
        local = local.clamp(0, part - 1)
        wanted = torch.where(here, scores.gather(-1, local[..., None])[..., 0], 0.0)
        probabilities = scores.exp()
        total = probabilities.sum(dim=-1)
        sums = torch.stack((wanted, total))
        dist.all_reduce(sums, group=group)
        wanted, total = sums[0], sums[1]
        counts = target != ignore_idx
        ctx.save_for_backward(probabilities / total[..., None], local, here, counts)
        ctx.dtype = logits.dtype
        return torch.where(counts, total.log() - wanted, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probabilities, local, here, counts = ctx.saved_tensors
        grads = probabilities.scatter_add(-1, local[..., None], -here.to(probabilities.dtype)[..., None])
        return (grads * (grad * counts)[..., None]).to(ctx.dtype), None, None, None

"""Fused routers are CUDA kernels; Megatron routes in torch when model.moe_router_fusion is off, as it is here."""

from typing import Any, NoReturn


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError("the CPU backend has no fused router: leave model.moe_router_fusion off")


fused_topk_with_score_function = _refuse
fused_compute_score_for_moe_aux_loss = _refuse
fused_moe_aux_loss = _refuse

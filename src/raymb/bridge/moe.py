"""Mixture-of-experts settings of a provider: what the user said, and nothing else; Bridge knows the model's own."""

from __future__ import annotations

import importlib.util
from typing import Any

from raymb.errors import SpecError
from raymb.spec.training import FLEX_DISPATCHERS, Moe, Train


def moe_settings(moe: Moe, train: Train) -> dict[str, Any]:
    """Provider fields.

    Raises:
        SpecError: the dispatcher's kernels are not on this worker, and Megatron-Core would stop at the first layer.
    """
    given = {
        "moe_router_load_balancing_type": moe.moe_load_balancing,
        "moe_aux_loss_coeff": moe.moe_aux_loss_coeff,
        "moe_router_dtype": moe.moe_router_dtype,
        "moe_permute_fusion": moe.moe_permute_fusion,
        "moe_shared_expert_overlap": moe.moe_shared_expert_overlap,
        "moe_expert_capacity_factor": moe.moe_capacity_factor,
    }
    if moe.moe_load_balancing == "sinkhorn":
        given["moe_aux_loss_coeff"] = 0.0  # the model's own would be one loss too many (moe/router.py asserts)
    if "fp8" in train.precision:
        given["moe_router_padding_for_quantization"] = True  # an expert's tokens, to multiples that FP8 can multiply
    alone = "shared_experts" in train.recompute_modules or moe.moe_token_dispatcher == "allgather"
    if moe.moe_shared_expert_overlap is None and alone:  # Bridge's providers of some families have it on
        given["moe_shared_expert_overlap"] = False
    # No config.json has a z loss, and Bridge 0.6.2's ExaoneMoeModelProvider has one as a constant.
    settings = {"moe_z_loss_coeff": moe.moe_z_loss_coeff}
    settings |= {name: value for name, value in given.items() if value is not None}
    return settings | _dispatcher(moe.moe_token_dispatcher)


def _dispatcher(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in FLEX_DISPATCHERS:  # those Megatron-Core calls `flex`, with a back end
        return {"moe_token_dispatcher_type": name}
    if importlib.util.find_spec("deep_ep") is None:
        raise SpecError(
            f"--moe_token_dispatcher {name} needs the package deep_ep, and it is not installed on the workers",
            "install it there, or leave the flag out",
        )
    return {"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": name}

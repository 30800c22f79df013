"""Linear and LayerNormLinear, column and row parallel, with and without sequence parallel."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from transformer_engine.pytorch.distributed import (
    copy_to_group,
    gather_sequence,
    reduce_scatter_sequence,
    sum_over_group,
)
from transformer_engine.pytorch.module import TransformerEngineModule, initialize, mark_parallel, refuse
from transformer_engine.pytorch.norm import apply_norm

_NO_OVERLAP = "the CPU backend does not overlap communication with matrix products; leave model.tp_comm_overlap off"
_NO_DELAY = "the CPU backend computes weight gradients in the backward pass; leave model.delay_wgrad_compute off"
_NO_FUSION = "weight gradients are accumulated by a CUDA kernel; leave model.gradient_accumulation_fusion off"


class Linear(TransformerEngineModule):
    """y = x W^T + b over [..., in_features].

    Args:
        sequence_parallel: column: x holds this rank's part of the sequence (dimension 0) and is gathered; row: y is
            scattered over the sequence. Counts only with tp_size > 1.
        return_bias: the bias is not added but returned, for a later fused addition.
        parallel_mode: "column" splits out_features over the group, "row" in_features, None neither.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: Any = None,
        delay_wgrad_compute: bool = False,
        ub_name: str | None = None,
        symmetric_ar_type: str | None = None,
        save_original_input: bool = False,
        **overlap: bool,
    ):
        super().__init__()
        refuse(_NO_FUSION, fuse_wgrad_accumulation=fuse_wgrad_accumulation)
        refuse(_NO_DELAY, delay_wgrad_compute=delay_wgrad_compute)
        refuse(_NO_OVERLAP, symmetric_ar_type=symmetric_ar_type, **overlap)
        self.tp_group = tp_group
        self.tp_size = tp_size if tp_group is None else dist.get_world_size(tp_group)
        self.parallel_mode = parallel_mode
        self.sequence_parallel = sequence_parallel and self.tp_size > 1
        self.in_features = in_features // self.tp_size if parallel_mode == "row" else in_features
        self.out_features = out_features // self.tp_size if parallel_mode == "column" else out_features
        self.use_bias = bias
        self.return_bias = return_bias
        self.save_original_input = save_original_input
        place = {"device": device, "dtype": params_dtype}
        self.weight = torch.nn.Parameter(torch.empty(self.out_features, self.in_features, **place))
        initialize(self.weight, init_method, get_rng_state_tracker, rng_tracker_name)
        mark_parallel(self.weight, dim=1 if parallel_mode == "row" else 0)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(self.out_features, **place))
            if parallel_mode == "row":
                self.bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
            elif parallel_mode == "column":
                mark_parallel(self.bias, dim=0)
        else:
            self.bias = torch.empty(0, **place)

    def set_tensor_parallel_group(self, tp_group: Any) -> None:
        self.tp_group = tp_group

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None, **fp8: Any) -> Any:
        out = self.product(self.collect(x))
        return (out, self.bias) if self.return_bias else out

    def collect(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the matrix product, from what this rank holds of it."""
        if self.tp_size == 1 or self.parallel_mode != "column":
            return x
        return gather_sequence(x, self.tp_group) if self.sequence_parallel else copy_to_group(x, self.tp_group)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """The matrix product, reduced over the group where the input features are split."""
        bias = self.bias if self.use_bias and not self.return_bias else None
        if self.tp_size == 1 or self.parallel_mode != "row":
            return F.linear(x, self.weight, bias)
        out = F.linear(x, self.weight)
        reduce = reduce_scatter_sequence if self.sequence_parallel else sum_over_group
        out = reduce(out, self.tp_group)
        return out if bias is None else out + bias  # once, after the sum


class LayerNormLinear(Linear):
    """Norm, then Linear; the norm's parameters are layer_norm_weight and layer_norm_bias.

    Args:
        normalization: "LayerNorm" or "RMSNorm".
        return_layernorm_output: append the norm's output to the result; `return_layernorm_output_gathered` (an
            attribute, too) chooses the whole sequence instead of this rank's part.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        normalization: str = "LayerNorm",
        return_layernorm_output: bool = False,
        return_layernorm_output_gathered: bool = False,
        zero_centered_gamma: bool = False,
        params_dtype: torch.dtype | None = None,
        device: Any = None,
        **linear: Any,
    ):
        super().__init__(in_features, out_features, params_dtype=params_dtype, device=device, **linear)
        self.eps = eps
        self.normalization = normalization
        self.zero_centered_gamma = zero_centered_gamma
        self.return_layernorm_output = return_layernorm_output
        self.return_layernorm_output_gathered = return_layernorm_output_gathered
        place = {"device": device, "dtype": params_dtype}
        fill = torch.zeros if zero_centered_gamma else torch.ones
        self.layer_norm_weight = torch.nn.Parameter(fill(in_features, **place))
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        self.layer_norm_bias = None
        if normalization == "LayerNorm":
            self.layer_norm_bias = torch.nn.Parameter(torch.zeros(in_features, **place))
            self.layer_norm_bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        # Transformer Engine makes the norm's parameters first, and Megatron's optimizer keeps its state in this order.
        for name in ("weight", "bias"):
            if name in self._parameters:
                self._parameters[name] = self._parameters.pop(name)

    def forward(self, x: torch.Tensor, is_first_microbatch: bool | None = None, **fp8: Any) -> Any:
        normed = apply_norm(
            x, self.layer_norm_weight, self.layer_norm_bias, self.eps, self.normalization, self.zero_centered_gamma
        )
        collected = self.collect(normed)
        parts = [self.product(collected)]
        if self.return_bias:
            parts.append(self.bias)
        if self.return_layernorm_output:
            parts.append(collected if self.return_layernorm_output_gathered else normed)
        return tuple(parts) if len(parts) > 1 else parts[0]

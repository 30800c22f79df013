"""GroupedLinear: one matrix product an expert."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from transformer_engine.pytorch.module import TransformerEngineModule, initialize, mark_parallel, refuse


class GroupedLinear(TransformerEngineModule):
    """y_i = x_i W_i^T + b_i for consecutive slices x_i of x; parameters weight0, weight1, ... and bias0, ...

    Megatron moves tokens between experts itself, so a GroupedLinear never communicates.

    Args:
        num_gemms: number of experts on this rank.
    """

    def __init__(
        self,
        num_gemms: int,
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
        single_grouped_weight: bool = False,
        single_grouped_bias: bool = False,
        **overlap: Any,
    ):
        super().__init__()
        refuse(
            "not computed by the CPU backend; leave it off",
            fuse_wgrad_accumulation=fuse_wgrad_accumulation,
            delay_wgrad_compute=delay_wgrad_compute,
            single_grouped_weight=single_grouped_weight,
            single_grouped_bias=single_grouped_bias,
        )
        self.num_gemms = num_gemms
        self.tp_group, self.tp_size, self.parallel_mode = tp_group, tp_size, parallel_mode
        self.in_features = in_features // tp_size if parallel_mode == "row" else in_features
        self.out_features = out_features // tp_size if parallel_mode == "column" else out_features
        self.use_bias, self.return_bias = bias, return_bias
        self.single_grouped_weight = self.single_grouped_bias = False
        place = {"device": device, "dtype": params_dtype}
        for index in range(num_gemms):
            weight = torch.nn.Parameter(torch.empty(self.out_features, self.in_features, **place))
            initialize(weight, init_method, get_rng_state_tracker, rng_tracker_name)
            mark_parallel(weight, dim=1 if parallel_mode == "row" else 0)
            self.register_parameter(f"weight{index}", weight)
            if bias:  # beside its weight, as there: Megatron's optimizer keeps its state in this order
                self.register_parameter(f"bias{index}", torch.nn.Parameter(torch.zeros(self.out_features, **place)))
            else:
                setattr(self, f"bias{index}", torch.empty(0, **place))

    def forward(
        self, x: torch.Tensor, m_splits: Sequence[int] | torch.Tensor, is_first_microbatch: bool | None = None
    ) -> Any:
        """x: [tokens, in_features], sorted by expert; m_splits: tokens of each expert."""
        sizes = m_splits.tolist() if isinstance(m_splits, torch.Tensor) else list(m_splits)
        biases = [getattr(self, f"bias{index}") for index in range(self.num_gemms)]
        adds = self.use_bias and not self.return_bias
        outs = [
            F.linear(part, getattr(self, f"weight{index}"), biases[index] if adds else None)
            for index, part in enumerate(x.split(sizes))
        ]
        out = torch.cat(outs)
        return (out, biases) if self.return_bias else out

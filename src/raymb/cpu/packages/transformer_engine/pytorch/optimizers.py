"""FusedAdam with Transformer Engine's state (exp_avg, exp_avg_sq, master_param; the step in the group), and the
multi-tensor operations of gradient clipping."""

from typing import Any

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from transformer_engine.pytorch.module import refuse

_STATE_DTYPES = (torch.float32, torch.bfloat16)


class FusedAdam(torch.optim.Optimizer):
    """Adam or AdamW with torch's own fused kernel; every computation is in fp32.

    Args:
        adam_w_mode: decoupled weight decay.
        master_weights: keep an fp32 copy of each parameter in its state and update that.
        exp_avg_dtype, exp_avg_sq_dtype: fp32 or bf16, how the moments are kept.
        use_decoupled_grad: read `decoupled_grad` instead of `grad`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        capturable: bool = False,
        master_weights: bool = False,
        master_weight_dtype: torch.dtype = torch.float32,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = False,
        store_param_remainders: bool = False,
        set_grad_none: bool | None = None,
    ):
        refuse(
            "not computed by the CPU backend's FusedAdam",
            amsgrad=amsgrad,
            capturable=capturable,
            no_bias_correction=not bias_correction,
            store_param_remainders=store_param_remainders,
            fp16_master_weights=master_weights and master_weight_dtype != torch.float32,
            state_dtype=exp_avg_dtype not in _STATE_DTYPES or exp_avg_sq_dtype not in _STATE_DTYPES,
        )
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        self.update = adamw if adam_w_mode else adam
        self.master_weights = master_weights
        self.use_decoupled_grad = use_decoupled_grad
        self.name_to_dtype_map = {
            "exp_avg": exp_avg_dtype,
            "exp_avg_sq": exp_avg_sq_dtype,
            "master_param": master_weight_dtype,
        }

    def initialize_state(self, param: torch.Tensor, store_param_remainders: bool = False) -> None:
        state = self.state[param]
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(param, dtype=self.name_to_dtype_map[name])
        if self.master_weights:
            state["master_param"] = param.detach().clone().float()

    def get_unscaled_state(self, param: torch.Tensor, state_name: str, skip_unscale: bool = False) -> torch.Tensor:
        """A state tensor in fp32."""
        return self.state[param][state_name].float()

    def set_scaled_state(self, param: torch.Tensor, state_name: str, unscaled_state: torch.Tensor) -> None:
        """Keep a state tensor in its own type."""
        self.state[param][state_name] = unscaled_state.to(self.name_to_dtype_map[state_name])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch casts state to the parameter's type; here it keeps its own."""
        super().load_state_dict(state_dict)
        ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(ids, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if name in self.name_to_dtype_map and value is not None:
                    self.set_scaled_state(param, name, value.clone())

    @torch.no_grad()
    def step(self, closure: Any = None, grad_scaler: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1  # of an empty group, too: ranks that share state stay in step
            self._update_group(group)
        return loss

    def _update_group(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if self._grad(param) is not None]
        for param in params:
            if not self.state[param]:
                self.initialize_state(param)
        if not params:
            return
        states = [self.state[param] for param in params]
        weights = [state.get("master_param", param.data) for state, param in zip(states, params, strict=True)]
        exact = [_in_fp32(weights)] + [
            _in_fp32([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq")
        ]
        self.update(
            exact[0],
            [self._grad(param).float() for param in params],  # type: ignore[union-attr]
            exact[1],
            exact[2],
            [],
            [torch.tensor(group["step"] - 1.0) for _ in params],  # torch counts before it computes
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        _put_back(exact[0], params)
        _put_back(exact[0], weights)
        _put_back(exact[1], [state["exp_avg"] for state in states])
        _put_back(exact[2], [state["exp_avg_sq"] for state in states])

    def _grad(self, param: torch.Tensor) -> torch.Tensor | None:
        return getattr(param, "decoupled_grad", None) if self.use_decoupled_grad else param.grad


def _in_fp32(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors themselves where they are fp32, copies elsewhere."""
    return [tensor if tensor.dtype == torch.float32 else tensor.float() for tensor in tensors]


def _put_back(exact: list[torch.Tensor], tensors: list[torch.Tensor]) -> None:
    for source, tensor in zip(exact, tensors, strict=True):
        if source is not tensor:
            tensor.data.copy_(source)


class FusedSGD(torch.optim.SGD):
    """torch's SGD: the same numbers."""


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of all tensors together [1], norm of each [tensors] or nothing), in fp32."""
    norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensor_lists[0]])
    return torch.linalg.vector_norm(norms).reshape(1), norms if per_tensor else norms.new_empty(0)


def multi_tensor_scale(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], scale: float | torch.Tensor
) -> None:
    """second list = first list x scale; the flag becomes 1 where that is not finite."""
    infinite, factor = torch.zeros(1), torch.as_tensor(scale, dtype=torch.float32).reshape(1)
    for source, target in zip(*tensor_lists, strict=True):
        exact = target.dtype == torch.float32
        product = target.copy_(source) if exact else source.to(torch.float32, copy=True)
        torch._amp_foreach_non_finite_check_and_unscale_([product], infinite, factor)  # type: ignore[attr-defined]
        if not exact:
            target.copy_(product)
    if infinite:
        noop_flag.fill_(1)


multi_tensor_scale_tensor = multi_tensor_scale


def multi_tensor_applier(op: Any, noop_flag: torch.Tensor, tensor_lists: list[list[torch.Tensor]], *args: Any) -> Any:
    """Call op over the tensors that are not empty; None when there are none, as Transformer Engine does."""
    kept = [at for at, tensor in enumerate(tensor_lists[0]) if tensor.numel()]
    lists = [[tensors[at] for at in kept] for tensors in tensor_lists]
    return op(0, noop_flag, lists, *args) if kept else None

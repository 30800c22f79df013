"""The loss that balances experts is transformers' own over the tokens that are trained, in every layout and however
much padding there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.families import make_model
from tests.smoke.conftest import MAIN_FLAGS, batches_of, train_variant

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(600)]
COEFFICIENT = 0.1
TENSOR = {"tensor_parallel_size": 2, "expert_parallel_size": 1}  # with sequence parallel
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "twice the padding": (1, {"seq_length": 2 * MAIN_FLAGS["seq_length"]}),
    "tp2": (2, TENSOR),
    "cp2": (2, {"context_parallel_size": 2, "expert_parallel_size": 1}),
    "dp2": (2, {"expert_parallel_size": 2}),
    "pp2 of tp2, recomputed": (4, {**TENSOR, "pipeline_parallel_size": 2, "recompute": "full"}),
    "pp4": (4, {"pipeline_parallel_size": 4}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[] if one == "tp2" else [pytest.mark.slow]) for one in LAYOUTS]
)
def test_experts_are_balanced_over_trained_tokens(name: str, tmp_path: Path, rows: Path) -> None:
    workers, flags = LAYOUTS[name]
    model = make_model("Qwen3-MoE", tmp_path / "model")
    flags = {"hf_model_path": model, "dataset": rows, "train_iters": 1, "moe_aux_loss_coeff": COEFFICIENT, **flags}
    (step,) = train_variant(tmp_path, workers, **flags)
    norm = _norm(model, batches_of(tmp_path / "run")[0])
    print(f"\n{name}: gradient norm {step['grad_norm']}, {norm} in transformers")
    assert step["grad_norm"] == pytest.approx(norm, rel=1e-6)


def _norm(model_dir: Path, batch: list[tuple[list[int], list[int]]]) -> float:
    """The gradient norm of the loss and of each layer's balancing loss, a sample each, by transformers' functions."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    experts, chosen = model.config.num_experts, model.config.num_experts_per_tok
    total = torch.tensor(0.0)
    for ids, trained in batch:
        out, mask = model(input_ids=torch.tensor([ids[:-1]]), output_router_logits=True), torch.tensor(trained[1:])
        loss = (cross_entropy(out.logits[0], torch.tensor(ids[1:]), reduction="none") * mask).sum()
        layers = [load_balancing_loss_func((one,), experts, chosen, mask[None]) for one in out.router_logits]
        # transformers adds up a token's experts, Megatron-Core takes their mean.
        total = total + loss + COEFFICIENT * mask.sum() * sum(layers) / chosen
    (total / sum(sum(trained[1:]) for _, trained in batch)).backward()
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()

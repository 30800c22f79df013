"""What one family of models cannot have, or has not been tried with."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.sizes import Layout

_ONLY_ONE = {
    "OlmoeForCausalLM": ("tensor", "Bridge 0.6.2 norms its queries and keys over all heads (olmoe_provider.py)"),
    "Gemma2ForCausalLM": ("context", "Bridge 0.6.2 has an attention of its own for it (gemma2_provider.py)"),
    "Qwen2_5_VLForConditionalGeneration": (
        "context",
        "Bridge 0.6.2 does not cut its images along the sequence (modeling_qwen25_vl.py)",
    ),
    "GptOssForCausalLM": ("expert_tensor", "its experts have biases, which Megatron-Core 0.19 does not split"),
}
"""What cannot be split in one family: architecture -> (size that must be 1, why)."""


def only_one(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if shape.architecture in _ONLY_ONE:
        field, why = _ONLY_ONE[shape.architecture]
        flag, size = f"--{field}_parallel_size", getattr(layout, field)
        if size > 1:
            yield f"{flag} {size} must be 1 for {shape.architecture}: {why}; set {flag} to 1"


def has_whole_experts(shape: ModelShape) -> bool:
    """Whether tensor parallel workers cannot share an expert of the family."""
    return _ONLY_ONE.get(shape.architecture, ("", ""))[0] == "expert_tensor"


_RECORDED = tuple(f"{family}ForCausalLM" for family in ("Gemma2", "Llama", "Mistral", "Nemotron", "Qwen2", "Qwen3"))
"""Families whose steps with CUDA graphs were compared with steps without."""


def graphs(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if layout.cuda_graphs and shape.architecture not in _RECORDED:
        yield (
            f"--cuda_graphs is for {', '.join(_RECORDED)}, and has not been tried with the model's "
            f"{shape.architecture}; leave it out"
        )

"""Vision-language models."""

from __future__ import annotations

from raymb.model.families.record import Family, VisionLanguage

FAMILIES = (
    Family(
        "Qwen2.5-VL",
        ("Qwen2_5_VLForConditionalGeneration",),
        ("qwen2_5_vl", "qwen2_5_vl_text"),
        rope_types=(),
        no_window="Bridge 0.6.2 does not hand the window on (qwen25_vl_bridge.py)",
        qkv_bias=True,
        exact_count=True,
        tied_by_default=False,
        must_be_one={
            "context_parallel_size": "Bridge 0.6.2 does not cut its images along the sequence (modeling_qwen25_vl.py)"
        },
        vision=VisionLanguage(
            step="vlm_step",
            mark="<|image_pad|>",
            image_processor=("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
            recipes="qwen25_vl",
            provider=("megatron.bridge.models.qwen_vl.qwen25_vl_provider", "Qwen25VLModelProvider"),
            language=("model.layers.", "model.language_model.layers."),
        ),
        proven="CPU, GPU",
    ),
)

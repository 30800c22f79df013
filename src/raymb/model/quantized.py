"""Models whose files hold quantized weights. No framework."""

from __future__ import annotations

from pathlib import Path

from raymb.errors import ModelError
from raymb.model.shape import ModelShape

_DEQUANTIZED_BY = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
"""Class of transformers 5.12.1 whose `dequantize` makes bf16 weights of a `quant_method`, tried on both."""


def check_quantization(shape: ModelShape, hf_model_path: str, peft: str) -> None:
    """Refuse quantized weights.

    Bridge 0.6.2 makes bf16 of some when it loads them (gpt_oss_bridge.py, deepseek_v3_bridge.py, ...), but what it
    exports then has bf16 weights beside a config.json that promises quantized ones, and nothing loads it.

    Args:
        peft: of --peft.

    Raises:
        ModelError: they are quantized; with the way to bf16.
    """
    if not shape.quantization:
        return
    adapters = " (so do adapters: there is no QLoRA in Megatron-Bridge)" if peft != "none" else ""
    raise ModelError(
        f"--hf_model_path {hf_model_path}: its weights are quantized ({shape.quantization}, quantization_config in "
        f"config.json), and raymb trains bf16 or fp32 weights{adapters}",
        f"give --hf_model_path the same model in bf16{_command(shape.quantization, hf_model_path)}",
    )


def dequantizing(method: str, hf_model_path: str) -> str:
    """A command that writes the model in bf16 into the working directory; "" for a method that was not tried."""
    if method not in _DEQUANTIZED_BY:
        return ""
    into = f"{Path(hf_model_path).name}-bf16"
    # transformers 5.12.1 fails to undo what it did to an FP8 model's names unless it forgets that it did.
    code = (
        f"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T, {_DEQUANTIZED_BY[method]} as C; "
        f"m = M.from_pretrained('{hf_model_path}', quantization_config=C(dequantize=True), dtype='bfloat16'); "
        f"m._weight_conversions = None; m.save_pretrained('{into}'); "
        f"T.from_pretrained('{hf_model_path}').save_pretrained('{into}')"
    )
    return f'python -c "{code}"'


def _command(method: str, hf_model_path: str) -> str:
    command = dequantizing(method, hf_model_path)
    return f", which this writes where memory holds it:\n  {command}" if command else ""

"""raymb: fine-tune a language model with Megatron-Bridge on Ray."""

__version__ = "0.1.0"

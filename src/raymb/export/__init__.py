"""Hugging Face files: during training, at its end, later; verifying, merging, the model card.

May import bridge, checkpoints and what is below them.
"""

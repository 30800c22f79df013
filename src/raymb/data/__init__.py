"""Where training rows come from, what they become, and the files that the workers read.

May import plan, model, spec, storage and what is below them; no Megatron.
"""

"""The only room that imports Megatron: config, callbacks, saving, loading, adapters, what upstream gets wrong.

May import checkpoints, rank and what is below them. Its `patches.imports` comes first: it makes importing Bridge
affordable.
"""

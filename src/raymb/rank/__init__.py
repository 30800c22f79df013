"""What every rank has besides Megatron: accelerator, progress, stopping together, hang watch, signals.

May import telemetry, run and what is below them.
"""

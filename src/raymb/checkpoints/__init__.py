"""What a checkpoint is on disk and at a URI: its manifest, whether it is whole, which one to resume from.

May import rank, telemetry, run and what is below them.
"""

"""What happens around the workers: preflight, cluster, trainer, placement, recovery, resharding, outcome.

May import worker, inference, export, bridge and what is below them.
"""

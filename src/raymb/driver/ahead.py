"""The driver's imports of Ray, which take seconds and can be had while others work. Imports nothing by itself."""

from __future__ import annotations


def import_ray() -> None:
    """First what connects to a cluster, then what trains there."""
    import raymb.driver.cluster
    import raymb.driver.trainer  # noqa: F401

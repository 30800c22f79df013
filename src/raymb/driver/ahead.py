"""The driver's imports of Ray, which take seconds and can be had while others work. Imports no Ray by itself."""

from __future__ import annotations

from raymb.runtime.importing import importing


def import_ray() -> None:
    """First what connects to a cluster, then what trains there."""
    with importing():
        import raymb.driver.cluster
        import raymb.driver.trainer  # noqa: F401

"""Environment variables on their way to a process of Ray's, without a word of them in Ray's logs and lists.

A runtime environment is no way for a secret: Ray writes it into its logs on each node, for everybody to read, and shows
it in its lists of actors, tasks and jobs. Arguments are no way either where they are plain: Ray Train shows a trainer's
configuration. So what travels is an object that names the variables; their values lie in the object store, and
whichever process unpickles the object, in an argument of whatever depth, has them in its environment from then on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


class Carried:
    """
    Args:
        variables: name to value; Ray must be connected.
    """

    def __init__(self, variables: Mapping[str, str]):
        import ray

        self.names = sorted(variables)
        self.values = ray.put(dict(variables))  # not an argument of an actor, which the GCS keeps

    def __repr__(self) -> str:
        return f"Carried({', '.join(self.names)})"

    def __reduce__(self) -> tuple[Callable[..., Carried], tuple[Any, ...]]:
        return _arrived, (self.names, self.values)


def _arrived(names: list[str], values: Any) -> Carried:
    import ray

    os.environ.update(ray.get(values))
    if "fsspec.config" in sys.modules:  # which has read FSSPEC_* when it was imported
        from fsspec.config import conf, set_conf_env

        set_conf_env(conf)
    carried = object.__new__(Carried)
    carried.names, carried.values = names, values
    return carried

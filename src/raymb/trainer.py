"""Ray Train's TorchTrainer without what a fine-tuning run does not use.

Ray Train 2.60 starts a process for each of these, and each takes 3 CPU seconds of imports while the workers start:
- DatasetsCallback: a manager of Ray Data shards (raymb's rows are read by Bridge);
- PlacementGroupCleanerCallback: frees a placement group whose driver died (a local cluster dies with its driver; on a
  joined cluster it stays).
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer  # noqa: TID253


class LeanTorchTrainer(TorchTrainer):
    """TorchTrainer minus the callbacks named in `without`; one that Ray no longer has is no loss.

    Args:
        without: class names of Ray Train callbacks.
    """

    def __init__(self, *args: Any, without: frozenset[str], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.without = without

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in self.without]

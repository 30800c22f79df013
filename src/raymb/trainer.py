"""Ray Train's TorchTrainer with raymb's way of starting again, and without what a fine-tuning run does not use.

Ray Train 2.60 starts a process for each of these, and each takes 3 CPU seconds of imports while the workers start:
- DatasetsCallback: a manager of Ray Data shards (raymb's rows are read by Bridge);
- PlacementGroupCleanerCallback: frees a placement group whose driver died (a local cluster dies with its driver; on a
  joined cluster it stays).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ray.train.torch import TorchTrainer  # noqa: TID253
from ray.train.v2._internal import constants  # noqa: TID253
from ray.train.v2._internal.execution.callback import WorkerCallback  # noqa: TID253


class RaymbTrainer(TorchTrainer):
    """TorchTrainer with another policy for failures and sizes, minus the callbacks named in `without`; one that Ray no
    longer has is no loss.

    Args:
        without: class names of Ray Train callbacks.
        policies: `failure_policy`, and `scaling_policy` where another one than Ray's is wanted.
    """

    def __init__(self, *args: Any, without: frozenset[str], policies: dict[str, Any], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.without, self.policies = without, policies

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in self.without]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        # The controller looks at the storage, too; Ray Train hands it only variables that it knows.
        constants.ENV_VARS_TO_PROPAGATE.update(name for name in os.environ if name.startswith("AWS_"))
        return super()._initialize_and_run_controller(**{**settings, **self.policies})


class SigtermCallback(WorkerCallback):
    """Makes SIGTERM to a worker a stop with a checkpoint. Runs on the worker's main thread, where alone a handler can
    be installed, before the training begins on another one."""

    def after_init_train_context(self) -> None:
        from raymb.interrupt import ask_on_sigterm

        with contextlib.suppress(ValueError):
            ask_on_sigterm()

"""A driver whose workers only hold their places: raymb's own trainer, controller and waiting, without Megatron.

python -m tests.smoke.placed_run ADDRESS DIRECTORY WORKERS TENSOR SECONDS
    It prints what the driver is told. A worker appends `rank node` to DIRECTORY/started, ends badly when DIRECTORY/
    die-RANK is there, and well when DIRECTORY/done is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def hold(config: dict[str, Any]) -> None:
    """Ray Train's function of each worker."""
    import ray
    import ray.train

    home, rank = Path(config["home"]), ray.train.get_context().get_world_rank()
    with open(home / "started", "a") as file:
        file.write(f"{rank} {ray.get_runtime_context().get_node_id()}\n")
    while not (home / "done").exists():
        time.sleep(0.2)
        if (home / f"die-{rank}").exists():
            (home / f"die-{rank}").unlink()
            os._exit(1)


def main(address: str, home: Path, workers: int, tensor: int, seconds: float) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from raymb.driver.placement import Placement
    from raymb.driver.process_group import ProcessGroupConfig
    from raymb.driver.recovery import FixedPolicy, RestartPolicy
    from raymb.driver.resources import Request, wait_for
    from raymb.driver.trainer import RaymbTrainer, make_hub
    from raymb.rank.interrupt import Interrupts
    from raymb.run.directory import RunDir
    from raymb.telemetry.hub import Receiver

    ray.init(address, log_to_driver=False, logging_level=40)
    request = Request({"CPU": 1.0}, [workers], tensor)
    held = wait_for(request, seconds, lambda line: print(line, flush=True))
    hub = make_hub()
    failures = FailureConfig(max_failures=3, max_preemption_failures=-1)
    scaling = ScalingConfig(num_workers=workers, resources_per_worker=dict(request.worker))
    trainer = RaymbTrainer(
        hold,
        place=RunDir(home / "run", home / "run" / "checkpoints"),
        hub=hub,
        without=frozenset({"DatasetsCallback", "PlacementGroupCleanerCallback"}),
        policies={"failure_policy": RestartPolicy(failures, hub, False), "scaling_policy": FixedPolicy(scaling)},
        settings={"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"},
        train_loop_config={"home": str(home)},
        torch_config=ProcessGroupConfig("gloo"),  # type: ignore[arg-type]
        scaling_config=scaling,
        run_config=RunConfig(
            name="run",
            storage_path=str(home),
            failure_config=failures,
            callbacks=[Placement(request, seconds, hub, held)],  # type: ignore[list-item]
        ),
    )
    receiver = Receiver(hub, lambda record: print(record["kind"], record.get("text"), flush=True) if record else None)
    try:
        with Interrupts(lambda: False, 30).noted():
            trainer.fit()
        print("finished", flush=True)
    except (Exception, SystemExit) as error:
        receiver.close()
        cause = getattr(error, "controller_failure", error)
        print("ended:", type(cause).__name__, cause, flush=True)
    receiver.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))

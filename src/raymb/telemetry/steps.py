"""One line a step out of the parts that the ranks sent."""

from __future__ import annotations

from raymb.plan.gpus import gpu_of_device
from raymb.telemetry.records import LossPart, Part, Step


class StepJoiner:
    """Joins the parts of a step: one from each data-parallel copy, one of which knows the loss.

    Args:
        parts: data-parallel size.
        samples: global batch size.
        world_size: number of workers.
        chip: the GPU's name.
    """

    def __init__(self, parts: int, samples: int, world_size: int, chip: str = ""):
        self.parts = parts
        self.samples = samples
        self.world_size = world_size
        self.waiting: dict[int, dict[int, Part | LossPart]] = {}
        self.chip = chip

    def join(self, part: Part | LossPart) -> Step | None:
        """The step's train record when its last part arrives, else None."""
        by_copy = self.waiting.setdefault(part["step"], {})
        by_copy[part["copy"]] = part  # a step done again after a failure replaces the parts of the first time
        if len(by_copy) < self.parts:
            return None
        gathered = list(self.waiting.pop(part["step"]).values())
        known = next(item for item in gathered if "loss" in item)
        tokens = sum(item["tokens"] for item in gathered)
        record: Step = {
            "kind": "train",
            "step": part["step"],
            "time": known["time"],
            "loss": known["loss"],
            "grad_norm": known["grad_norm"],
            "learning_rate": known["learning_rate"],
            "step_seconds": known["step_seconds"],
            "tokens": tokens,
            "trained_tokens": sum(item["trained_tokens"] for item in gathered),
            "tokens_per_second": tokens / known["step_seconds"],
            "tokens_per_second_per_worker": tokens / known["step_seconds"] / self.world_size,
            "samples": self.samples,
            "tflops_per_worker": known["tflops_per_worker"],
            "memory_bytes": max(item["memory_bytes"] for item in gathered),
        }
        if any("skipped" in item for item in gathered):
            record["skipped"] = True
        gpu = gpu_of_device(self.chip)
        if gpu is not None:
            record["mfu"] = known["tflops_per_worker"] / gpu.tflops
        return record

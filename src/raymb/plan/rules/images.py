"""Settings that a vision-language model cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.plan.rules.run import Run


def settings(run: Run) -> Iterator[str]:
    spec, shape = run.spec, run.shape
    if not shape.tower:
        return
    if spec.performance.overlap_grad_reduce:
        yield (
            f"--overlap_grad_reduce waits for the gradient of every weight, and a micro batch without images gives "
            f"those of {shape.architecture}'s {shape.tower} none; leave it out"
        )
    if spec.parallel.fsdp:
        yield (
            f"--megatron_fsdp {spec.parallel.megatron_fsdp} has been tried with language models only, and "
            f"{shape.architecture} has a {shape.tower}; leave it out"
        )
    if spec.run.sample_prompt == "held-out":
        yield (
            "--sample_prompt held-out takes a prompt of text, and held-out rows have images; give a prompt, or leave "
            "it out"
        )

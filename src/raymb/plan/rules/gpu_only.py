"""Settings that mean something on GPUs, or with bf16 weights, only."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.plan.rules.run import Run
from raymb.spec.sections import RunSpec
from raymb.spec.training import FLEX_DISPATCHERS


def settings(run: Run) -> Iterator[str]:
    spec, backend = run.spec, run.backend
    if backend == "cpu":
        for setting, why in _not_on_cpus(spec):
            yield f"{setting} needs GPUs, and the workers are CPU workers: {why}; leave it out"
    fp32 = spec.train.precision == "fp32" or (spec.train.precision == "auto" and backend == "cpu")
    bf16_settings = {
        "--optimizer_moments bf16": spec.optimizer.optimizer_moments == "bf16",
        "--no_grad_reduce_in_fp32": not spec.performance.grad_reduce_in_fp32,
        # Bridge 0.6.2 looks for a wrapper that fp32 models do not have when it names weights for a checkpoint.
        f"--megatron_fsdp {spec.parallel.megatron_fsdp}": spec.parallel.fsdp,
        "--cuda_graphs": spec.performance.cuda_graphs is True,  # Megatron-Core 0.19.2 records them with bf16 inputs
    }
    for setting in [setting for setting, given in bf16_settings.items() if given and fp32]:
        yield f"{setting} needs bf16 weights, and they are fp32; leave it out, or set --precision bf16"


def _not_on_cpus(spec: RunSpec) -> Iterator[tuple[str, str]]:
    offload, layers = spec.optimizer.optimizer_offload, spec.train.activation_offload_layers
    if offload not in ("auto", 0.0):
        yield f"--optimizer_offload {offload:g}", "the optimizer is on the host already"
    if layers:
        yield f"--activation_offload_layers {layers}", "activations are on the host already"
    if spec.performance.cuda_graphs is True:
        yield "--cuda_graphs", "graphs are CUDA's"
    if spec.moe.moe_token_dispatcher in FLEX_DISPATCHERS:
        yield f"--moe_token_dispatcher {spec.moe.moe_token_dispatcher}", "its kernels are CUDA's"

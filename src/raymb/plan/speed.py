"""Seconds that a step takes in a layout: what the chips compute, what they wait for, in a handful of terms.

Good for an order among layouts, and for what a bad one costs; docs/estimates.md compares with measured steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from raymb.model.shape import ModelShape
from raymb.plan.gpus import Gpu
from raymb.plan.memory import activations_a_token, dense_weights, embedding, expert_weights, saved_weights
from raymb.plan.recompute import recomputed_work
from raymb.plan.sizes import DetailedLayout, layers_per_stage

_MATRIX, _SMALL = 0.84, 170
"""Share of the peak rate that large matrix products reach, and the hidden size at which it is half of that."""
_ATTENTION = 0.35
"""The same in flash attention, forward and backward."""
_TRAFFIC = {True: 3.5, False: 10.3}
"""Times that what a layer keeps goes to memory and back outside of matrix products: with fused kernels and without."""
_ADAPTER_TRAFFIC = 11.0
"""More of them, for adapters' inputs and sums."""
_FP8 = 1.45
"""Times as fast as bf16's are FP8's matrix products, with what it takes to make FP8 numbers."""
_OF_MICRO_BATCH = {True: 90, False: 10}
"""Bytes of traffic a weight that every micro-batch costs, however few its tokens: the weight, its gradient if it is
trained, and what a matrix product loses with less to do."""
_LOGITS_TRAFFIC = 5.0
"""Bytes-of-bf16 passes over the logits."""
_LAUNCH, _LAUNCH_SHARED = 3.5e-3, 1.5e-3
"""Seconds that Python takes to launch a layer's kernels, forward and backward, and more where the layer is shared with
other workers: once for tensor, once for context parallel. Hosts differ by a factor of two."""
_LAUNCH_GRAPH, _LAUNCH_GRAPH_ADAPTERS = 0.7e-3, 0.75e-3
"""The same with CUDA graphs, and more for a layer's adapters."""
_LAUNCH_ADAPTERS, _LAUNCH_EXPERTS, _LAUNCH_EXPERT = 6.0e-3, 13e-3, 0.25e-3
"""More of them: for a layer's adapters, for its router and dispatcher, for each expert at hand."""
_FSDP = {"none": 0.0, "optim": 1.5e-3, "optim_grads": 1.5e-3, "optim_grads_params": 4e-3}
"""Seconds that Megatron-FSDP's hooks and copies add to a layer and micro-batch."""
_LINK, _LATENCY = 0.54, 25e-6
"""Share of a link that collectives reach, and seconds that each of them takes at least."""
_NETWORK, _SLOW_NETWORK = 50e9, 12.5e9
"""Bytes/s a GPU between nodes: where GPUs have NVLink (400 Gbit/s each), and where they do not."""
_HOST = 0.59e9
"""Numbers a second that an optimizer on the host updates, with their way there and back."""
_OFFLOADED = 92e9
"""Bytes/s at which activations go to the host and come back, beside the computation."""


@dataclass(frozen=True)
class StepTime:
    """Seconds: compute (with recomputation), host (activations on their way there and back), launch (where Python is
    slower than the GPU), tensor, context and expert parallel waiting, pipeline bubble and its exchange, data parallel
    waiting, optimizer."""

    compute: float
    host: float
    launch: float
    tensor: float
    context: float
    expert: float
    pipeline: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


def step_time(layout: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int) -> StepTime:
    """
    Args:
        layout: breaks no rule.
        per_node: GPUs of a node.
    """
    micro_batches = layout.micro_batches
    tokens = layout.micro_batch_size * layout.seq_length / layout.context_parallel_size
    compute, layers = _slowest_stage(layout, shape, gpu, tokens)
    parts = {
        "compute": compute,
        "host": 2 * layout.activation_offload_layers * tokens * activations_a_token(layout, shape) / _OFFLOADED,
        "tensor": layers * _tensor(layout, shape, gpu, per_node, tokens),
        "context": layers * _context(layout, shape, gpu, per_node, tokens),
        "expert": layers * _expert(layout, shape, gpu, per_node, tokens),
    }
    parts["launch"] = max(0.0, layers * _launching(layout, shape) - sum(parts.values()))
    of_micro_batch = sum(parts.values())
    idle = (layout.pipeline_parallel_size - 1) / (layout.virtual_pipeline_parallel_size or 1)
    crossing = _bandwidth(gpu, layout.num_workers // layout.pipeline_parallel_size * 2, per_node)
    exchanged = (
        2
        * tokens
        * shape.hidden_size
        * 2
        / layout.tensor_parallel_size
        / crossing
        * micro_batches
        * (layout.virtual_pipeline_parallel_size or 1)
    )
    return StepTime(
        **{name: micro_batches * seconds for name, seconds in parts.items()},
        pipeline=idle * of_micro_batch + (exchanged if layout.pipeline_parallel_size > 1 else 0.0),
        data=_data(layout, shape, gpu, per_node),
        optimizer=_optimizer(layout, shape, gpu),
    )


def _slowest_stage(layout: DetailedLayout, shape: ModelShape, gpu: Gpu, tokens: float) -> tuple[float, int]:
    """(seconds of one micro-batch, forward and backward, layers) of the slowest stage."""
    peak, layers = gpu.tflops * 2e12 / layout.number_bytes, layers_per_stage(layout, shape.num_layers)
    matrices = (
        2 * _passes(layout, shape) * tokens * _active_weights(shape) / shape.num_layers / layout.tensor_parallel_size
    )
    query = shape.num_attention_heads * shape.head_dim / layout.tensor_parallel_size
    query *= shape.attention_layers / shape.num_layers  # what layers with states take grows with their width alone
    attention_again = recomputed_work(layout, shape) if layout.recompute == "full" else 0
    attention = (3.5 + attention_again) * 2 * layout.seq_length * query * tokens
    passes = _TRAFFIC[layout.fused_activation] + (_ADAPTER_TRAFFIC if layout.lora_rank else 0.0)
    traffic = passes * tokens * activations_a_token(layout, shape)
    rate = _MATRIX * peak * shape.hidden_size / (shape.hidden_size + _SMALL)
    of_layer = matrices / (rate * (_FP8 if layout.fp8 else 1.0)) + attention / (_ATTENTION * peak)
    of_layer += traffic / gpu.bandwidth
    numbers = tokens * shape.vocab_size / layout.tensor_parallel_size
    trained = layout.lora_rank is None or saved_weights(layout, shape, layout.pipeline_parallel_size - 1)
    products = 2 * (3 if trained else 2) * numbers * shape.hidden_size
    logits = products / rate + _LOGITS_TRAFFIC * 2 * numbers / gpu.bandwidth
    seconds, count = max((max(layers) * of_layer, max(layers)), (layers[-1] * of_layer + logits, layers[-1]))
    traffic = _OF_MICRO_BATCH[layout.lora_rank is None] * _local_weights(layout, shape)
    return seconds + traffic / gpu.bandwidth, count


def _launching(layout: DetailedLayout, shape: ModelShape) -> float:
    """Of an average layer, for one micro-batch."""
    seconds = _LAUNCH + _LAUNCH_SHARED * ((layout.tensor_parallel_size > 1) + (layout.context_parallel_size > 1))
    if layout.lora_rank is not None:
        seconds += _LAUNCH_ADAPTERS
    if layout.cuda_graphs:
        seconds = _LAUNCH_GRAPH + (0.0 if layout.lora_rank is None else _LAUNCH_GRAPH_ADAPTERS)
    if shape.num_experts:
        of_experts = _LAUNCH_EXPERTS + _LAUNCH_EXPERT * shape.num_experts / layout.expert_parallel_size
        seconds += of_experts * shape.sparse_layers / shape.num_layers
    return seconds * _passes(layout, shape) / 3


def _local_weights(layout: DetailedLayout, shape: ModelShape) -> float:
    """Of an average stage's worker, but for its experts."""
    tables = embedding(shape) * (1 if shape.tie_word_embeddings and layout.pipeline_parallel_size == 1 else 2)
    return (
        dense_weights(shape) / layout.pipeline_parallel_size + tables / min(2, layout.pipeline_parallel_size)
    ) / layout.tensor_parallel_size


def _trained(layout: DetailedLayout, shape: ModelShape) -> tuple[tuple[float, int], tuple[float, int]]:
    """(trained weights of a worker, workers that have the same ones), of all but the experts and of the experts.
    Adapters count as none."""
    copies = layout.data_parallel_size * layout.context_parallel_size
    if layout.lora_rank is not None:
        stages = (0, layout.pipeline_parallel_size - 1)
        return (max(saved_weights(layout, shape, stage) for stage in stages), copies), (0.0, 1)
    experts = (
        expert_weights(shape)
        / layout.pipeline_parallel_size
        / layout.expert_parallel_size
        / layout.expert_tensor_parallel_size
    )
    return (_local_weights(layout, shape), copies), (experts, layout.expert_data_parallel_size)


def _passes(layout: DetailedLayout, shape: ModelShape) -> float:
    """Forward, gradients of inputs, gradients of weights unless they are frozen, forward again."""
    return (2 if layout.lora_rank else 3) + recomputed_work(layout, shape)


def _active_weights(shape: ModelShape) -> float:
    """That a token passes, but for the tables."""
    share = (shape.experts_per_token or 0) / (shape.num_experts or 1)
    return dense_weights(shape) + expert_weights(shape) * share


def _bandwidth(gpu: Gpu, workers: int, per_node: int) -> float:
    """Bytes/s that neighbours among so many workers in a row have."""
    network = _NETWORK if gpu.link >= 300e9 else _SLOW_NETWORK
    return _LINK * gpu.link if workers <= per_node else _LINK * 2 * min(network, gpu.link)


def _tensor(layout: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int, tokens: float) -> float:
    """A layer's gathers and scatters: four forward, six backward."""
    if layout.tensor_parallel_size == 1:
        return 0.0
    moved = tokens * shape.hidden_size * 2 * (layout.tensor_parallel_size - 1) / layout.tensor_parallel_size
    return 10 * (moved / _bandwidth(gpu, layout.tensor_parallel_size, per_node) + _LATENCY)


def _context(layout: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int, tokens: float) -> float:
    """Keys and values go round once forward, and with their gradients backward; half of it under computation."""
    if layout.context_parallel_size == 1:
        return 0.0
    sent = (
        tokens
        * 2
        * shape.num_kv_heads
        * shape.head_dim
        * 2
        / layout.tensor_parallel_size
        * (layout.context_parallel_size - 1)
    )
    return (
        0.5 * 3 * sent / _bandwidth(gpu, layout.tensor_parallel_size * layout.context_parallel_size, per_node)
        + 3 * layout.context_parallel_size * _LATENCY
    )


def _expert(layout: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int, tokens: float) -> float:
    """Tokens to their experts and back, forward and backward."""
    if not shape.num_experts or layout.expert_parallel_size * layout.expert_tensor_parallel_size == 1:
        return 0.0
    group = layout.expert_parallel_size * layout.expert_tensor_parallel_size
    moved = (
        tokens
        / layout.tensor_parallel_size
        * (shape.experts_per_token or 1)
        * shape.hidden_size
        * 2
        * (group - 1)
        / group
    )
    seconds = 4 * (moved * layout.expert_tensor_parallel_size / _bandwidth(gpu, group, per_node) + _LATENCY)
    return shape.sparse_layers / shape.num_layers * seconds


def _data(layout: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int) -> float:
    """Gradients in fp32 are scattered, weights in bf16 gathered; what Megatron-FSDP shares, with every micro-batch."""
    bandwidth = _bandwidth(gpu, layout.num_workers // layout.pipeline_parallel_size, per_node)
    scattered = 4 * (layout.micro_batches if "grads" in layout.megatron_fsdp else 1)
    gathered = 2 * (2 * layout.micro_batches if "params" in layout.megatron_fsdp else 1)
    hooks = _FSDP[layout.megatron_fsdp] * shape.num_layers * layout.micro_batches
    return hooks + sum(
        (scattered + gathered) * weights * (size - 1) / size / bandwidth for weights, size in _trained(layout, shape)
    )


def _optimizer(layout: DetailedLayout, shape: ModelShape, gpu: Gpu) -> float:
    mine = sum(weights / size for weights, size in _trained(layout, shape))
    return (0.0 if layout.lora_rank is None else 1e-3) + mine * (30 / gpu.bandwidth + layout.optimizer_offload / _HOST)

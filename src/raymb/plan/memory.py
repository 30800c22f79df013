"""Bytes that a layout takes on the fullest of its GPUs, part by part.

Terms follow Megatron-Core 0.19's layers on Transformer Engine, with flash attention and the distributed optimizer. The
four constants that were fitted (_NORMS, both of _LOGITS, _GATED of an unfused layer) come from four measured peaks, the
rows with * in docs/estimates.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from raymb.model.families import family_of_type
from raymb.model.parameters import expert_parameters
from raymb.model.shape import ModelShape
from raymb.plan.adapters import EMBEDDING, OUTPUT
from raymb.plan.gpus import GIB
from raymb.plan.graphs import recorded
from raymb.plan.recompute import recomputed_layers
from raymb.plan.sizes import DetailedLayout, layers_per_stage

_OPTIMIZER = {"fp32": 12, "bf16": 8}
"""Bytes a trained bf16 number, by the type of its moments: two of them and an fp32 weight."""
_LAYERS_AT_A_TIME = 2
"""Layers that Megatron-FSDP has put together: the one at work, and the next or the last."""
_ON_THE_WAY = 2
"""Layers whose activations are between GPU and host."""
_NORMS = 3.25
"""Activations of hidden size that a layer keeps a token: inputs and outputs of two norms, and less than another."""
_GATED, _PLAIN = {True: 3, False: 5}, {True: 2, False: 2}
"""Activations of feed-forward size that a layer keeps a token: what enters the activation function, twice as wide where
it is gated, and what leaves it; unfused also what the gate is made of. Fused and unfused."""
_STATES = 3
"""What a layer with states keeps a token, in widths of its projection: what that makes, the convolution's results, and
what its heads make of them. By what the kernels save; not measured."""
_LOGITS = {True: 2.0, False: 4.8}
"""Tensors of vocabulary size a token. With fused cross entropy: logits and their gradient; without it their fp32 copy
and its gradient, too."""
_CONTEXT = int(0.9 * GIB)
"""CUDA's context, cuBLAS' and cuDNN's workspaces."""
_CHANNELS = int(0.15 * GIB)
"""NCCL's buffers of a group of workers."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. optimizer: fp32 weights and Adam's two moments. activations: of all micro-batches in flight.
    logits: with their loss and gradient. buffers: one layer's backward pass. graphs: what torch's allocator holds for
    recorded layers, and does not count as allocated. context: CUDA and NCCL, outside of torch's allocator."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    graphs: int
    context: int

    @property
    def allocated(self) -> int:
        """What torch.cuda.max_memory_allocated() says at its highest."""
        return self.total - self.context - self.graphs

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def estimate(layout: DetailedLayout, shape: ModelShape) -> Memory:
    """The fullest stage's memory.

    Args:
        layout: breaks no rule.
        shape: the model's sizes.
    """
    stages = {0, layout.pipeline_parallel_size - 1, min(1, layout.pipeline_parallel_size - 1)}
    return max((_of_stage(layout, shape, stage) for stage in stages), key=lambda memory: memory.total)


def _of_stage(layout: DetailedLayout, shape: ModelShape, stage: int) -> Memory:
    last = stage == layout.pipeline_parallel_size - 1
    layers = layers_per_stage(layout, shape.num_layers)[stage]
    dense, experts = _weights(layout, shape, stage, layers)
    adapters = 0 if layout.lora_rank is None else _adapters(layout, shape, layers)
    beside = adapters + saved_weights(layout, shape, stage)
    optimizer = _OPTIMIZER[layout.optimizer_moments] if layout.number_bytes == 2 else 8
    moments = optimizer * optimizer_numbers(layout, shape, stage)
    tokens = layout.micro_batch_size * layout.seq_length // layout.context_parallel_size
    of_layer = tokens * activations_a_token(layout, shape)
    inputs = tokens * layout.number_bytes * shape.hidden_size / _norm_share(layout)
    kept, buffers = _kept(layout, shape, layers, inputs, of_layer)
    in_flight = _layers_in_flight(layout, layers, stage)
    if layout.activation_offload_layers:
        in_flight -= max(0, layout.activation_offload_layers - _ON_THE_WAY)
    logits = (
        _LOGITS[layout.fused_cross_entropy]
        * layout.number_bytes
        * tokens
        * shape.vocab_size
        / layout.tensor_parallel_size
        if last
        else 0
    )
    groups = sum(
        size > 1
        for size in (
            layout.tensor_parallel_size,
            layout.pipeline_parallel_size,
            layout.context_parallel_size,
            layout.expert_parallel_size,
            layout.data_parallel_size,
        )
    )
    held, added = _shared_numbers(layout, (dense, experts), _shares(layout), layers)
    return Memory(
        weights=int(layout.number_bytes * (held + adapters) + _fp8_copies(layout, shape, layers)),
        gradients=int(layout.gradient_bytes * (added if layout.lora_rank is None else beside)),
        optimizer=int(moments * (1 - layout.optimizer_offload)),
        activations=int(in_flight * kept),
        logits=int(logits),
        buffers=int(buffers),
        graphs=int((recorded(layout) + 1) * layers * inputs) if layout.cuda_graphs else 0,
        context=_CONTEXT + groups * _CHANNELS,
    )


def optimizer_numbers(layout: DetailedLayout, shape: ModelShape, stage: int) -> float:
    """Trained numbers whose state of the optimizer a worker of a stage has."""
    layers = layers_per_stage(layout, shape.num_layers)[stage]
    trained = _weights(layout, shape, stage, layers)
    if layout.lora_rank is not None:
        trained = _adapters(layout, shape, layers) + saved_weights(layout, shape, stage), 0.0
    return sum(count / share for count, share in zip(trained, _shares(layout), strict=True))


def _shares(layout: DetailedLayout) -> tuple[int, int]:
    """Workers among which the optimizer's state is spread: of what all data parallel workers have, of experts."""
    if not layout.distributed_optimizer:
        return 1, 1
    return layout.data_parallel_size * layout.context_parallel_size, layout.expert_data_parallel_size


def _shared_numbers(
    layout: DetailedLayout, numbers: tuple[float, float], shares: tuple[int, int], layers: int
) -> tuple[float, float]:
    """(weights, gradients) that a worker of a stage holds. With Megatron-FSDP its part, and a few layers as a whole.

    Args:
        numbers: (weights that all data parallel workers have, routed experts' weights).
        shares: workers among which each of them is spread.
    """
    part = sum(count / share for count, share in zip(numbers, shares, strict=True))
    part += _LAYERS_AT_A_TIME / layers * sum(numbers)
    whole = sum(numbers)
    return min(whole, part) if "params" in layout.megatron_fsdp else whole, min(
        whole, part
    ) if "grads" in layout.megatron_fsdp else whole


def _kept(
    layout: DetailedLayout, shape: ModelShape, layers: int, inputs: float, of_layer: float
) -> tuple[float, float]:
    """(bytes that an average layer of a stage keeps of a micro-batch, bytes of what is computed again at a time).

    Args:
        inputs, of_layer: bytes of a layer's input, and of all that it keeps without recomputation.
    """
    if layout.recompute == "full":
        again = recomputed_layers(layout, layers) / layers
        group = layout.recompute_num_layers if layout.recompute_method == "uniform" else 1
        return again * inputs / group + (1 - again) * of_layer, group * of_layer
    if layout.recompute == "selective":
        tokens = layout.micro_batch_size * layout.seq_length // layout.context_parallel_size
        saved = tokens * _saved_a_token(layout, shape)
        return of_layer - saved, saved
    return of_layer, 0.0


def _layers_in_flight(layout: DetailedLayout, layers: int, stage: int) -> float:
    """Layers' worth of activations that a stage holds at its fullest, in 1F1B or interleaved order."""
    if not layout.virtual_pipeline_parallel_size:
        return layers * min(layout.pipeline_parallel_size - stage, layout.micro_batches)
    chunks = (
        2 * (layout.pipeline_parallel_size - stage - 1)
        + (layout.virtual_pipeline_parallel_size - 1) * layout.pipeline_parallel_size
        + 1
    )
    return (
        layers
        / layout.virtual_pipeline_parallel_size
        * min(chunks, layout.micro_batches * layout.virtual_pipeline_parallel_size)
    )


def embedding(shape: ModelShape) -> int:
    return shape.vocab_size * shape.hidden_size


def expert_weights(shape: ModelShape) -> int:
    """Of the routed experts of all layers."""
    return shape.sparse_layers * (shape.num_experts or 0) * expert_parameters(shape)


def dense_weights(shape: ModelShape) -> int:
    """Of all layers, but for routed experts, and for what a model has beside its language part."""
    tables = embedding(shape) * (1 if shape.tie_word_embeddings else 2)
    return shape.parameter_count - shape.tower_parameters - tables - expert_weights(shape)


def _weights(layout: DetailedLayout, shape: ModelShape, stage: int, layers: int) -> tuple[float, float]:
    """(weights that all data parallel workers have, routed experts' weights) of a worker of a stage."""
    share = layers / shape.num_layers
    dense = share * dense_weights(shape) / layout.tensor_parallel_size
    tables = 0
    if stage == 0:
        tables += 1
    if stage == layout.pipeline_parallel_size - 1 and not (
        shape.tie_word_embeddings and layout.pipeline_parallel_size == 1
    ):
        tables += 1  # an output layer of its own, or the last stage's copy of the tied one
    experts = share * expert_weights(shape) / (layout.expert_parallel_size * layout.expert_tensor_parallel_size)
    tower = shape.tower_parameters if stage == 0 else 0  # whole on every tensor parallel worker
    return dense + tables * embedding(shape) / layout.tensor_parallel_size + tower, experts


def _fp8_copies(layout: DetailedLayout, shape: ModelShape, layers: int) -> float:
    """Bytes of the matrices in FP8, as they are and transposed."""
    dense, experts = (
        dense_weights(shape) / layout.tensor_parallel_size,
        expert_weights(shape) / layout.expert_parallel_size / layout.expert_tensor_parallel_size,
    )
    return 2 * layers / shape.num_layers * (dense + experts) if layout.fp8 else 0.0


def _adapters(layout: DetailedLayout, shape: ModelShape, layers: int) -> float:
    """Trained numbers of a worker."""
    hidden, query, keys = shape.hidden_size, shape.num_attention_heads * shape.head_dim, _keys(shape)
    inner, copies = shape.intermediate_size, 1.0
    if shape.num_experts:
        inner, copies = shape.moe_intermediate_size or inner, shape.num_experts / layout.expert_parallel_size
    gated = family_of_type(shape.model_type).gated_attention
    attention = {
        "q_proj": hidden + query * (2 if gated else 1),
        "k_proj": hidden + keys,
        "v_proj": hidden + keys,
        "o_proj": query + hidden,
    }
    share = shape.attention_layers / shape.num_layers
    sizes = {name: share * size for name, size in attention.items()}
    forward = (shape.sparse_layers + shape.dense_layers) / shape.num_layers * copies * (hidden + inner)
    feed_forward = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), forward)
    numbers = sum({**sizes, **feed_forward}.get(name, 2 * hidden) for name in layout.adapter_targets)
    return layers * (layout.lora_rank or 0) * numbers / layout.tensor_parallel_size


def saved_weights(layout: DetailedLayout, shape: ModelShape, stage: int) -> float:
    """Numbers that a worker of a stage trains in full beside adapters, among the model's own."""
    last = stage == layout.pipeline_parallel_size - 1
    first = stage == 0 or (last and shape.tie_word_embeddings)  # with the last stage's copy
    tables = (EMBEDDING in layout.saved_modules and first) + (OUTPUT in layout.saved_modules and last)
    return tables * embedding(shape) / layout.tensor_parallel_size


def _keys(shape: ModelShape) -> int:
    return shape.num_kv_heads * shape.head_dim


def _norm_share(layout: DetailedLayout) -> int:
    """Workers that share what lies between the tensor parallel matrices."""
    return layout.tensor_parallel_size if layout.sequence_parallel else 1


def _saved_a_token(layout: DetailedLayout, shape: ModelShape) -> float:
    """Bytes that a layer does not keep of a token with --recompute selective. Flash attention keeps nothing that
    core_attn could save."""
    units = (_GATED if family_of_type(shape.model_type).gated else _PLAIN)[layout.fused_activation]
    sparse = shape.sparse_layers / shape.num_layers
    copies, inner = _routed(layout, shape)
    shared = units * sparse * shape.shared_experts_size / layout.tensor_parallel_size
    saved = {
        "layernorm": sparse * shape.hidden_size / _norm_share(layout),
        "mlp": units * shape.dense_layers / shape.num_layers * shape.intermediate_size / layout.tensor_parallel_size,
        "shared_experts": shared,
        "moe_act": sparse * copies * inner,
        "moe": sparse * copies * (2 * shape.hidden_size + units * inner) + shared,
        "mla_up_proj": shape.num_attention_heads
        * (2 * shape.head_dim + (shape.value_head_dim or shape.head_dim))
        / layout.tensor_parallel_size,
    }
    modules = set(layout.recompute_modules) - (
        {"moe_act", "shared_experts"} if "moe" in layout.recompute_modules else set()
    )
    return layout.number_bytes * sum(saved.get(module, 0.0) for module in modules)


def activations_a_token(layout: DetailedLayout, shape: ModelShape) -> float:
    """Bytes that one layer keeps of one token of this worker until its backward pass, without recomputation."""
    hidden, query, keys = shape.hidden_size, shape.num_attention_heads * shape.head_dim, _keys(shape)
    values, given = keys, query
    if shape.attention == "mla":
        keys, values = query, shape.num_attention_heads * shape.value_head_dim
        given = values
    family, count = family_of_type(shape.model_type), shape.num_layers
    # Joint projection (with gates), its rotated queries and keys, attention's output.
    gates = query if family.gated_attention else 0
    attention = (query + gates + keys + values) + (query + keys) + given
    attention = (shape.attention_layers * attention + shape.states.layers * _STATES * shape.states.width) / count
    sparse = shape.sparse_layers / count
    per_unit = (_GATED if family.gated else _PLAIN)[layout.fused_activation]
    dense = per_unit * (shape.dense_layers / count * shape.intermediate_size + sparse * shape.shared_experts_size)
    tensor_parallel = (attention + dense) / layout.tensor_parallel_size
    if layout.fp8 and layout.lora_rank is None:  # inputs of matrices are kept in FP8; adapters want them as they are
        tensor_parallel -= (shape.attention_layers / count * given + dense / per_unit) / 2 / layout.tensor_parallel_size
    copies, inner = _routed(layout, shape)
    routed = sparse * copies * (2 * hidden + per_unit * inner)
    norms = _NORMS * shape.norms / (2 * count) * hidden / _norm_share(layout)
    return layout.number_bytes * (norms + tensor_parallel + routed)


def _routed(layout: DetailedLayout, shape: ModelShape) -> tuple[float, float]:
    """(copies of a token of the tensor parallel workers that one of them computes with its experts, the part of an
    expert's feed-forward size that it has).

    As Megatron-Core 0.19.2 moves them (moe/token_dispatcher.py): every tensor parallel worker routes its own part of
    the sequence, expert parallel workers get as many copies as they gave on average, and expert tensor parallel workers
    gather what all of them got. Derived, not measured: measured peaks of MoE models are of one tensor parallel worker.
    """
    share, experts = layout.expert_tensor_parallel_size, shape.experts_per_token or 0
    return experts * share / layout.tensor_parallel_size, (shape.moe_intermediate_size or 0) / share

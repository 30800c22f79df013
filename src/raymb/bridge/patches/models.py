"""Each upstream trap that raymb steps around: what breaks without it, at which version, and a probe, so that the
fix disappears when upstream mends it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import queue
from pathlib import Path
from typing import Any


def apply_all() -> None:
    """Install the fixes that patch upstream; after Bridge is imported, before pretrain()."""
    skip_compiling_shipped_helpers()
    keep_write_results_in_process()
    give_post_norms_their_epsilon()
    build_config_text_once()
    give_every_rank_the_whole_list_of_state()
    record_layers_without_masks()


def skip_compiling_shipped_helpers() -> None:
    """megatron-core 0.19.2: compile_helpers() runs `make` in the installed package, which has no Makefile, and calls
    sys.exit(1), although the wheel ships the compiled helpers_cpp."""
    with contextlib.suppress(ImportError):
        importlib.import_module("megatron.core.datasets.helpers_cpp")
        initialize = importlib.import_module("megatron.bridge.training.initialize")
        initialize.compile_helpers = lambda: None  # type: ignore[attr-defined]


def keep_write_results_in_process() -> None:
    """megatron-core 0.19.2: the first torch_dist save starts a multiprocessing manager by spawn, whose child imports
    the main module again (7 s on 2 cores), to carry results between functions of one process. A plain queue does.
    An asynchronous save writes in another process and puts its own queue here."""
    filesystem_async = importlib.import_module("megatron.core.dist_checkpointing.strategies.filesystem_async")
    if getattr(filesystem_async, "_results_queue", "absent") is None:
        filesystem_async._results_queue = _PlainQueue()  # type: ignore[attr-defined]


class _PlainQueue(queue.Queue):
    """With the manager that Bridge shuts down when a run fails."""

    class _manager:
        @staticmethod
        def shutdown() -> None:
            pass


def give_post_norms_their_epsilon() -> None:
    """megatron-bridge 0.6.2, models/common/te_layers.py line 47: the norm behind a row parallel layer (Gemma 2 and 3)
    takes TENorm's epsilon of 1e-5 whatever the model says, which moves logits by 1e-4."""
    layers = importlib.import_module("megatron.bridge.models.common.te_layers")
    cls = layers.TERowParallelLinearLayerNorm
    if hasattr(cls, "_raymb_init"):
        return
    cls._raymb_init = cls.__init__

    def init(self: Any, input_size: int, output_size: int, *, config: Any, **settings: Any) -> None:
        self._raymb_init(input_size, output_size, config=config, **settings)
        self.post_layernorm.eps = config.layernorm_epsilon

    cls.__init__ = init


def build_config_text_once() -> None:
    """megatron-core 0.19.2, training/config/container.py line 196: every save builds the same YAML text anew, in
    Python, on one rank while the others wait: 0.11 s a checkpoint."""
    cls = importlib.import_module("megatron.bridge.training.config").ConfigContainer
    if hasattr(cls, "_raymb_to_yaml"):
        return
    cls._raymb_to_yaml = cls.to_yaml

    def to_yaml(self: Any, yaml_path: str) -> None:
        if hasattr(self, "_raymb_yaml"):
            Path(yaml_path).write_text(self._raymb_yaml, encoding="utf-8")
        else:
            self._raymb_to_yaml(yaml_path)
            self._raymb_yaml = Path(yaml_path).read_text(encoding="utf-8")

    cls.to_yaml = to_yaml


def pass_on_llama3_rope(hf_config: Any) -> None:
    """megatron-bridge 0.6.2, models/llama/llama_bridge.py hands on the factor of Llama 3's rotary scaling only, and
    megatron-core 0.19.2 has the other three numbers as constants: another model's would be dropped without a word."""
    rope = getattr(hf_config, "rope_scaling", None) or {}
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    given = {name: rope[name] for name in names if name in rope}
    if rope.get("rope_type") == "llama3" and given:
        cls = importlib.import_module("megatron.core.models.common.embeddings.rotary_pos_embedding").RotaryEmbedding
        original = getattr(cls, "_raymb_apply_scaling", cls._apply_scaling)
        cls._raymb_apply_scaling = original
        cls._apply_scaling = functools.partialmethod(original, **given)


def pass_on_mrope_sections(hf_config: Any, provider: Any) -> None:
    """megatron-bridge 0.6.2, models/qwen_vl/qwen25_vl_bridge.py leaves out how rotary positions are shared among time,
    height and width, and qwen25_vl_provider.py has the published models' numbers as constants."""
    text = getattr(hf_config, "text_config", hf_config)
    sections = (getattr(text, "rope_parameters", None) or {}).get("mrope_section")
    if sections and hasattr(provider, "mrope_section"):
        provider.mrope_section = list(sections)


def lay_out_embeddings() -> None:
    """megatron-bridge 0.6.2, models/qwen_vl/modeling_qwen25_vl.py hands on embeddings that are only viewed as
    [sequence, batch, hidden]; with micro batches of 2 and more every layer's output is strided so, and the exchange
    between pipeline stages refuses it."""
    cls = importlib.import_module("megatron.core.models.gpt").GPTModel
    if hasattr(cls, "_raymb_forward"):
        return
    cls._raymb_forward = cls.forward

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, decoder_input: Any = None, **settings: Any) -> Any:
        whole = None if decoder_input is None else decoder_input.contiguous()
        return self._raymb_forward(*args, decoder_input=whole, **settings)

    cls.forward = forward


def give_every_rank_the_whole_list_of_state() -> None:
    """megatron-core 0.19.2, optimizer/distrib_optimizer.py: under Megatron-FSDP a rank whose part of a weight is empty
    has no optimizer state of it, and what it has is in the order of its own first gradients; but a checkpoint's ranks
    walk through the state together (transformer/fsdp_dtensor_checkpoint.py), and wait for each other for ever."""
    cls = importlib.import_module("megatron.core.optimizer.distrib_optimizer").DistributedOptimizer
    if hasattr(cls, "_raymb_fsdp_state"):
        return
    cls._raymb_fsdp_state = cls.sharded_param_state_fsdp_dtensor

    def whole(self: Any, is_loading: bool = False) -> dict[str, Any]:
        state = self._raymb_fsdp_state(is_loading)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for weight in (weight for weight in weights if not self.optimizer.state.get(weight)):
            self.optimizer.initialize_state(weight, False)
        return {**state, "state": {self._param_name(weight): self.optimizer.state[weight] for weight in weights}}

    cls.sharded_param_state_fsdp_dtensor = whole


def record_layers_without_masks() -> None:
    """megatron-core 0.19.2, transformer/transformer_layer.py: with CUDA graphs every recorded layer has a mask, [micro
    batch, 1, sequence, sequence] bytes, of its own, filled with zeros before each launch: 3 GB at 8 x 4096 tokens in 24
    layers. Causal attention reads none, nor is it given one without graphs."""
    layer = importlib.import_module("megatron.core.transformer.transformer_layer").TransformerLayer
    base = importlib.import_module("megatron.core.transformer.module").GraphableMegatronModule
    for name in ("get_layer_static_inputs", "_get_te_cuda_graph_replay_args"):
        setattr(layer, name, getattr(base, name))

"""`auto` on GPUs: the search's choice put into the spec, and what an explicit choice costs beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raymb.model.shape import ModelShape
from raymb.plan import graphs
from raymb.plan.choose import Chosen, choose_layout
from raymb.plan.elastic import is_elastic
from raymb.plan.gpus import GIB, Gpu, reduced_memory
from raymb.plan.host import memory_of_a_host
from raymb.plan.memory import estimate
from raymb.plan.multiples import divisors
from raymb.plan.reason import Reason
from raymb.plan.rules import Run, adapters
from raymb.plan.search import SAME, Candidate, candidates
from raymb.plan.sizes import DetailedLayout, Layout
from raymb.spec.conflicts import conflicts
from raymb.spec.sections import RunSpec
from raymb.spec.training import Parallel, data_range, worker_range

NODE = 8
"""GPUs of a node where nobody says."""
ERROR = 0.15
"""Of the estimate, at most."""
_FACTORS = (2, 4, 8, 16, 32, 64)
"""Times as many workers, which are tried where none fit."""
_MOST_SIZES = 64
"""Sizes of an elastic run that are tried."""
_CHOSEN = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "virtual_pipeline_parallel_size",
    "context_parallel_size",
    "expert_parallel_size",
    "sequence_parallel",
    "micro_batch_size",
    "recompute",
    "optimizer_offload",
    "cuda_graphs",
)
"""What the search chooses where it is `auto`."""
_SECTIONS = {
    "micro_batch_size": "train",
    "recompute": "train",
    "optimizer_offload": "optimizer",
    "cuda_graphs": "performance",
}
_OF_EVERY_SIZE = [flag for flag in _CHOSEN if flag != "micro_batch_size"]


def per_node(spec: RunSpec, workers: int) -> int:
    return spec.cluster.gpus_per_node or min(NODE, workers)


def searched(spec: RunSpec, shape: ModelShape, gpu: Gpu, workers: int) -> list[Candidate]:
    """Every layout of so many workers, the best first (raymb.plan.search.candidates)."""
    start = choose_layout(spec, shape, "cuda", workers)[0]
    return candidates(spec, start, shape, gpu, per_node(spec, workers))


@dataclass(frozen=True)
class Automatic:
    """What the search says.

    Args:
        spec: with its choices in the place of `auto`.
        reasons: of each choice, by flag.
        micro_batch_size: the largest that fits, for elastic runs, whose own stays open.
    """

    spec: RunSpec
    reasons: dict[str, Reason]
    micro_batch_size: int | None = None


def automatic(spec: RunSpec, shape: ModelShape, gpu: Gpu) -> Automatic:
    """Choose. Where no layout obeys the rules the spec comes back as it is, for the rules to say why. The layout of an
    elastic run is that of its smallest size, which has to hold the model."""
    low, high = worker_range(spec.parallel)
    elastic = is_elastic(spec)
    reasons: dict[str, Reason] = {}
    if elastic:
        fixed = _that_make_workers(spec.parallel)
        reasons = dict.fromkeys(fixed, Reason("1", "without --num_workers sizes that are not given are 1"))
        if spec.parallel.virtual_pipeline_parallel_size == "auto":
            fixed["virtual_pipeline_parallel_size"] = 1  # chunks would rule sizes out
        spec = _with(spec, fixed)
    flags = _OF_EVERY_SIZE if elastic else list(_CHOSEN)
    open_flags = _open(spec, flags)
    found: list[Candidate] = []
    for workers in range(low, min(high, low + _MOST_SIZES) + 1):
        found = _that_can_grow(spec, searched(spec, shape, gpu, workers), gpu) or found
        if found and found[0].fits(gpu):
            break
    if not found or not open_flags:
        return Automatic(spec, reasons, found[0].layout.micro_batch_size if found else None)
    best, count = found[0], sum(one.fits(gpu) for one in found)
    values = _choices(spec, best.layout, open_flags)
    room = f"{memory / GIB:.1f} GiB of {gpu.name}" if (memory := reduced_memory(gpu)) else gpu.name
    fits = f"the fastest of {count} layouts that fit into {room}" if count > 1 else f"the one that fits {room}"
    if count > 1 and _has_two_ranges(spec):
        fits += " and have the most sizes"
    why = fits if best.fits(gpu) else f"the smallest layout; none fits into {room} with room to spare"
    reasons |= {flag: Reason(_shown(value), why) for flag, value in values.items()}
    if "cuda_graphs" in values:
        reasons["cuda_graphs"] = Reason(_shown(values["cuda_graphs"]), _why_graphs(spec, shape, gpu, found))
    return Automatic(_with(spec, values), reasons, best.layout.micro_batch_size)


def _why_graphs(spec: RunSpec, shape: ModelShape, gpu: Gpu, found: list[Candidate]) -> str:
    """Why layers are recorded, or are not.

    Args:
        found: the best one first.
    """
    if why := graphs.why_not(spec, shape):
        return why
    fitting = [one for one in found if one.fits(gpu)]
    graphed = next((one for one in fitting if one.layout.cuda_graphs), None)
    if graphed is None:
        return graphs.against(found[0].layout, shape) or f"no layout fits into {gpu.name} with them"
    without = next(one for one in fitting if not one.layout.cuda_graphs)  # what fits with them fits without
    gain = without.time.total / graphed.time.total
    if found[0].layout.cuda_graphs:
        return f"by estimate a step is {gain:.2g} times as fast with layers recorded after the third one"
    if gain < 1 + SAME:
        return "by estimate a step is no faster with them"
    return f"by estimate a step is {gain:.3g} times as fast with them, and from {graphs.GAIN:g} on they are taken"


def _that_make_workers(parallel: Parallel) -> dict[str, int]:
    """1 for the sizes that are `auto` where the sizes make the range of workers, as raymb.spec.worker_range has it."""
    flags = ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size")
    return {flag: 1 for flag in flags if parallel.workers_follow and getattr(parallel, flag) == "auto"}


def _that_can_grow(spec: RunSpec, found: list[Candidate], gpu: Gpu) -> list[Candidate]:
    """Where workers and copies have a range each: the layouts that the most sizes of both can have, of those that fit.
    The fastest at the smallest size may be one that no other size can have."""
    if not found or not _has_two_ranges(spec):
        return found
    (low, high), (least, most) = worker_range(spec.parallel), data_range(spec.parallel) or (1, 1)
    copies = [count for count in divisors(spec.train.global_batch_size) if least <= count <= most]

    def sizes(one: Candidate) -> int:
        return sum(low <= one.layout.model_parallel_size * count <= high for count in copies)

    fitting = [one for one in found if one.fits(gpu)] or found
    largest = max(map(sizes, fitting))
    return [one for one in fitting if sizes(one) == largest]


def _has_two_ranges(spec: RunSpec) -> bool:
    return is_elastic(spec) and not spec.parallel.workers_follow and data_range(spec.parallel) is not None


def _uneven(spec: RunSpec) -> bool:
    return spec.parallel.num_layers_in_first_stage is not None or spec.parallel.num_layers_in_last_stage is not None


def too_large(spec: RunSpec, shape: ModelShape, gpu: Gpu, layouts: dict[int, Chosen]) -> list[str]:
    """A sentence if not even the largest of these sizes can hold the model, whatever the estimate's error, on its GPUs
    or on their hosts."""
    if not layouts:
        return []
    layout = layouts[max(layouts)][0]
    memory, on_host = estimate(layout, shape), memory_of_a_host(layout, shape, per_node(spec, layout.num_workers))
    if memory.total > gpu.memory * (1 + ERROR):
        parts = sorted(memory.to_dict().items(), key=lambda part: -part[1])[1:4]
        largest = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
        what = (
            f"takes about {memory.total / GIB:.1f} GiB a GPU ({largest}), and --gpu {gpu.name} has "
            f"{gpu.memory / GIB:.1f}"
        )
    elif gpu.host is not None and on_host > gpu.host:
        what = (
            f"takes about {on_host / GIB:,.0f} GiB of memory on the host of each node, and it has "
            f"{gpu.host / GIB:,.0f} (--host_memory)"
        )
    else:
        return []
    return [f"{described(layout)} {what}; {_ways_out(spec, shape, gpu, layout.num_workers)}"]


def _ways_out(spec: RunSpec, shape: ModelShape, gpu: Gpu, workers: int) -> str:
    """What would fit: another layout of so many workers; else more of them, and adapters."""
    free = with_auto(spec)
    if best := _best(free, shape, gpu, workers):
        return f"{described(best)} fits"
    more = (workers * factor for factor in _FACTORS)
    larger = next((found for size in more if (found := _best(free, shape, gpu, size))), None)
    ways = [f"--num_workers {larger.num_workers} fits ({described(larger)})"] if larger else []
    adapted = free.changed(peft={"peft": "lora"})
    if spec.peft.peft == "none" and not [*conflicts(adapted), *adapters.targets(Run(adapted, shape))]:
        best = _best(adapted, shape, gpu, workers)
        ways += [f"--peft lora fits ({described(best)})"] if best else []
    return f"no layout of so many fits: {' and '.join(ways) or 'give more --num_workers'}"


def _best(spec: RunSpec, shape: ModelShape, gpu: Gpu, workers: int) -> DetailedLayout | None:
    """The fastest layout of so many workers that fits."""
    return next((one.layout for one in searched(spec, shape, gpu, workers)[:1] if one.fits(gpu)), None)


def with_auto(spec: RunSpec) -> RunSpec:
    """The spec with `auto` for everything that the search chooses."""
    stages = {"num_layers_in_first_stage": None, "num_layers_in_last_stage": None}
    return _with(spec, {**dict.fromkeys((*_CHOSEN, "data_parallel_size"), "auto"), **stages})


def settled(spec: RunSpec, layout: Layout) -> RunSpec:
    """The spec with a layout's sizes in the place of every `auto` that it was chosen for."""
    return _with(spec, _choices(spec, layout, _open(spec, _CHOSEN)))


def _open(spec: RunSpec, flags: Iterable[str]) -> list[str]:
    return [flag for flag in flags if getattr(_section(spec, flag), flag) == "auto"]


def _choices(spec: RunSpec, layout: Layout, flags: Iterable[str]) -> dict[str, object]:
    """What a layout has for flags that are `auto`, as a user would give it."""
    values: dict[str, object] = {flag: getattr(layout, flag) for flag in flags}
    values = {flag: 1 if value is None else value for flag, value in values.items()}
    if spec.parallel.pipeline_parallel_size == "auto" and layout.num_layers_in_first_stage and not _uneven(spec):
        values["num_layers_in_first_stage"] = layout.num_layers_in_first_stage
        values["num_layers_in_last_stage"] = layout.num_layers_in_last_stage
    return values


def _section(spec: RunSpec, flag: str) -> object:
    return getattr(spec, _SECTIONS.get(flag, "parallel"))


def _with(spec: RunSpec, values: Mapping[str, object]) -> RunSpec:
    sections: dict[str, dict[str, object]] = {}
    for flag, value in values.items():
        sections.setdefault(_SECTIONS.get(flag, "parallel"), {})[flag] = value
    return spec.changed(**sections)


def flags_of(layout: Layout) -> str:
    """The flags that ask for a layout, and leave nothing to `auto`."""
    flags = (*_CHOSEN, "num_layers_in_first_stage", "num_layers_in_last_stage")
    values = {flag: getattr(layout, flag) for flag in flags}
    values["virtual_pipeline_parallel_size"] = layout.virtual_pipeline_parallel_size or 1
    return " ".join(f"--{flag} {str(value).lower()}" for flag, value in values.items() if value is not None)


def _shown(value: object) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def described(layout: Layout) -> str:
    """A layout in a few words."""
    sizes = {
        "TP": layout.tensor_parallel_size,
        "PP": layout.pipeline_parallel_size,
        "CP": layout.context_parallel_size,
        "EP": layout.expert_parallel_size,
        "DP": layout.data_parallel_size,
    }
    words = [f"{short}{size}" for short, size in sizes.items() if size > 1] or ["DP1"]
    if layout.virtual_pipeline_parallel_size:
        words.append(f"VPP{layout.virtual_pipeline_parallel_size}")
    words = [" x ".join(words), f"micro batch {layout.micro_batch_size}"]
    if layout.recompute != "none":
        words.append(f"recompute {layout.recompute}")
    if layout.optimizer_offload:
        words.append(f"{layout.optimizer_offload:.0%} of the optimizer on the host")
    if layout.cuda_graphs:
        words.append("CUDA graphs")
    return ", ".join(words)

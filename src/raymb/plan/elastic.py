"""The sizes that an elastic run (--num_workers or --data_parallel_size MIN:MAX) can have, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from raymb.model.shape import ModelShape
from raymb.plan.choose import Chosen, choose_layout
from raymb.plan.multiples import divisors
from raymb.plan.reason import Reason
from raymb.plan.rules import broken_rules, broken_size_rules
from raymb.spec.sections import RunSpec
from raymb.spec.training import data_range, worker_flag, worker_range


def usable_layouts(
    spec: RunSpec, shape: ModelShape, backend: str, largest: int | None = None
) -> tuple[dict[int, Chosen], list[str]]:
    """({workers: layout that breaks no rule}, the broken rules where there is none); the smallest size comes first.

    Args:
        largest: micro batch that `auto` may choose.
    """
    low, high = worker_range(spec.parallel)
    if not is_elastic(spec):
        chosen = choose_layout(spec, shape, backend, high)
        problems = broken_rules(chosen[0], shape)
        return ({} if problems else {high: chosen}), problems
    candidates = _candidates(spec, shape, backend)
    usable = {
        size: chosen
        for size, chosen in candidates.items()
        if low <= size <= high and not broken_rules(chosen[0], shape)
    }
    if usable:
        return _with_one_micro_batch_size(usable, largest), []
    return {}, _why_none(spec, shape, backend)


def is_elastic(spec: RunSpec) -> bool:
    """Whether --num_workers or --data_parallel_size is MIN:MAX."""
    return any(":" in str(asked) for asked in (spec.parallel.num_workers, spec.parallel.data_parallel_size))


def _candidates(spec: RunSpec, shape: ModelShape, backend: str) -> dict[int, Chosen]:
    """Every size at which workers and global batch divide: few, however wide the range is."""
    one = choose_layout(spec, shape, backend, 1)[0]
    sizes = (one.model_parallel_size * data for data in divisors(spec.train.global_batch_size))
    return {size: choose_layout(spec, shape, backend, size) for size in sizes}


def _with_one_micro_batch_size(usable: dict[int, Chosen], largest: int | None) -> dict[int, Chosen]:
    """Where it was `auto`, every size takes the least of their choices: a power of 2, so it suits all of them."""
    reasons = {size: chosen["micro_batch_size"] for size, (_, chosen) in usable.items() if "micro_batch_size" in chosen}
    least = min(layout.micro_batch_size for layout, _ in usable.values())
    largest = 1 << (largest.bit_length() - 1) if largest else None
    if reasons and largest and largest < least:
        why = Reason(str(largest), "the largest that fits into a GPU's memory at every size")
        return {
            size: (replace(layout, micro_batch_size=largest), chosen | {"micro_batch_size": why})
            for size, (layout, chosen) in usable.items()
        }
    if len(set(reasons.values())) <= 1:
        return usable
    size = next(size for size, (layout, _) in usable.items() if layout.micro_batch_size == least)
    of_least = f"one for all sizes, so the least of their choices; that of {size} workers is {reasons[size].text}"
    why = Reason(str(least), of_least)
    return {
        size: (replace(layout, micro_batch_size=least), chosen | {"micro_batch_size": why})
        for size, (layout, chosen) in usable.items()
    }


def _why_none(spec: RunSpec, shape: ModelShape, backend: str) -> list[str]:
    """The rules that no size can keep, then those that no size of the range keeps, with the nearest sizes that do.

    Without --num_workers sizes are counted in copies of the model, as --data_parallel_size counts.
    """
    asked, unit = worker_flag(spec.parallel), 1
    low, high = worker_range(spec.parallel)
    if spec.parallel.workers_follow:
        unit = spec.parallel.model_parallel_size
        spec = _with(spec, num_workers=f"{low}:{high}", data_parallel_size="auto")
    layout = choose_layout(spec, shape, backend, low)[0]
    of_size = broken_size_rules(layout, shape)
    problems = [text for text in broken_rules(layout, shape) if text not in of_size]
    fitting = _fitting(spec, shape, backend)
    if any(low <= size <= high for size in fitting):
        return problems
    below, above = [size for size in fitting if size < low][-1:], [size for size in fitting if size > high][:1]
    nearest = _listed([size // unit for size in below + above])
    ways = [f"{asked.partition(' ')[0]} a range that holds a usable size, the nearest {nearest}"] if nearest else []
    if data_range(spec.parallel):
        free = _fitting(_with(spec, data_parallel_size="auto"), shape, backend)
        copies = [size // layout.model_parallel_size for size in free if low <= size <= high]
        ways += [f"--data_parallel_size a range that holds {' or '.join(map(str, copies[:12]))}"] if copies else []
    for size, text in _examples(spec, shape, backend, layout.model_parallel_size):
        subject = "" if text.startswith("--num_workers") else f"at size {size // unit} "
        rule, _, way_out = text.partition("; ")
        way_out = f"give {', or '.join(ways)}" if ways else way_out
        problems.append(f"no size of {asked} is usable: {subject}{rule}; {way_out}")
    return problems


def _fitting(spec: RunSpec, shape: ModelShape, backend: str) -> list[int]:
    """The sizes at which workers, copies and batch divide, in the range or not; the smallest comes first."""
    candidates = _candidates(spec, shape, backend).items()
    return [size for size, (found, _) in candidates if not broken_size_rules(found, shape)]


def _with(spec: RunSpec, **sizes: object) -> RunSpec:
    return spec.changed(parallel=sizes)


def _listed(sizes: list[int]) -> str:
    """`is 4`, `are 4 and 8`; empty where there is none."""
    return f"{'is' if len(sizes) == 1 else 'are'} {' and '.join(map(str, sizes))}" if sizes else ""


def _examples(spec: RunSpec, shape: ModelShape, backend: str, model_parallel: int) -> Iterator[tuple[int, str]]:
    """(size, sentence) for each rule that the range's sizes break, at the smallest size that breaks it.

    Sizes between multiples of the model parallel workers all break the same rule, so MIN stands for them; 100 multiples
    are enough to meet the other rules.
    """
    low, high = worker_range(spec.parallel)
    multiples = range(-(-low // model_parallel) * model_parallel, high + 1, model_parallel)
    seen: set[str] = set()
    for size in dict.fromkeys([low, *islice(multiples, 100)]):
        for text in broken_size_rules(choose_layout(spec, shape, backend, size)[0], shape):
            rule = re.sub(r"\d+", "", text.partition("; ")[0])  # the same rule with other values is the same rule
            if rule not in seen:
                seen.add(rule)
                yield size, text

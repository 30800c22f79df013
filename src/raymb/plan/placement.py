"""Where ranks lie: tensor parallel workers talk in every layer, so a group of them belongs on one node.

Ray Train numbers its workers node by node, in the order of its placement group, and Megatron-Core takes each
tensor_parallel_size ranks in a row for a group. So groups stay whole where every node holds a multiple of that.
"""

from __future__ import annotations

from collections.abc import Sequence

_RULE = "tensor parallel workers talk in every layer, and the network between nodes is many times slower"


def straddling(nodes: Sequence[str], size: int) -> list[range]:
    """The groups of `size` ranks in a row that lie on more than one node.

    Args:
        nodes: of each rank.
    """
    groups = (range(first, min(first + size, len(nodes))) for first in range(0, len(nodes), size))
    return [group for group in groups if len({nodes[rank] for rank in group}) > 1]


def planned_problem(tensor: int, num_workers: int, per_node: int) -> str:
    """What is wrong with tensor parallel groups on nodes of `per_node` workers each; "" where nothing is, or where a
    group is larger than a node, which its user knows."""
    if tensor > per_node or not (broken := straddling([str(rank // per_node) for rank in range(num_workers)], tensor)):
        return ""
    fitting = [size for size in range(1, per_node + 1) if per_node % size == 0]
    return (
        f"--tensor_parallel_size {tensor} must divide --gpus_per_node {per_node}: ranks {_first_to_last(broken[0])} "
        f"would be on two nodes, and {_RULE}; set it to one of {', '.join(map(str, fitting))}"
    )


def room_problem(tensor: int, num_workers: int, rooms: Sequence[int]) -> str:
    """Why no placement keeps the groups whole; "" where there is one, or where a group is larger than every node.

    Args:
        rooms: workers that each node can hold.
    """
    if not rooms or tensor > max(rooms) or sum(room // tensor for room in rooms) * tensor >= num_workers:
        return ""
    whole = sum(room // tensor for room in rooms)
    return (
        f"--num_workers {num_workers} are {num_workers // tensor} tensor parallel groups of {tensor}, and nodes that "
        f"hold {_listed(rooms)} workers have room for {whole} whole ones: {_RULE}"
    )


HINT = (
    "change --tensor_parallel_size or --num_workers, have each node hold a multiple of --tensor_parallel_size workers "
    "(--cpus_per_worker on CPUs), or free the GPUs that others use"
)
"""What to do about it."""


def ranks_of_nodes(nodes: Sequence[str]) -> str:
    """`ranks 0 to 1 on a, 2 to 3 on b`.

    Args:
        nodes: a name for each rank's node; those of one node are in a row.
    """
    firsts = {node: list(nodes).index(node) for node in dict.fromkeys(nodes)}
    counts = {node: list(nodes).count(node) for node in firsts}
    parts = [f"{_first_to_last(range(first, first + counts[node]))} on {node}" for node, first in firsts.items()]
    return "ranks " + ", ".join(parts)


def _first_to_last(group: range) -> str:
    return f"{group[0]} to {group[-1]}" if len(group) > 1 else str(group[0])


def _listed(rooms: Sequence[int]) -> str:
    return ", ".join(str(room) for room in sorted(rooms, reverse=True)[:8]) + (", ..." if len(rooms) > 8 else "")

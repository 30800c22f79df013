"""Tensor parallel groups stay on one node, or it is said that they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymb.plan.placement import planned_problem, ranks_of_nodes, room_problem, straddling


@pytest.mark.parametrize(
    ("nodes", "size", "broken"),
    [
        ("aabbcc", 2, []),
        ("aaabbb", 2, [(2, 3)]),
        ("aaabbb", 3, []),
        ("aaab", 2, [(2, 3)]),
        ("aaaabbbb", 4, []),
        ("aaabbbbb", 4, [(0, 3)]),
        ("abc", 1, []),
        ("aabb", 4, [(0, 3)]),
    ],
)
def test_groups_that_straddle(nodes: str, size: int, broken: list[tuple[int, int]]) -> None:
    assert [(group[0], group[-1]) for group in straddling(nodes, size)] == broken


@pytest.mark.parametrize(
    ("tensor", "workers", "node", "text"),
    [
        (2, 16, 8, ""),
        (4, 6, 6, ""),  # one node alone
        (4, 12, 6, "--tensor_parallel_size 4 must divide --gpus_per_node 6: ranks 4 to 7 would be on two nodes"),
        (2, 6, 3, "ranks 2 to 3 would be on two nodes"),
        (16, 32, 8, ""),  # larger than a node: its user knows
    ],
)
def test_nodes_of_a_plan(tensor: int, workers: int, node: int, text: str) -> None:
    problem = planned_problem(tensor, workers, node)
    assert text in problem and bool(problem) == bool(text)


@pytest.mark.parametrize(
    ("tensor", "workers", "rooms", "text"),
    [
        (2, 6, [2, 2, 2], ""),
        (2, 6, [3, 3], "--num_workers 6 are 3 tensor parallel groups of 2, and nodes that hold 3, 3 workers have room"),
        (2, 4, [3, 3], ""),
        (4, 8, [8], ""),
        (8, 16, [4, 4, 4, 4], ""),  # larger than every node
        (2, 4, [], ""),
    ],
)
def test_room_on_nodes(tensor: int, workers: int, rooms: list[int], text: str) -> None:
    problem = room_problem(tensor, workers, rooms)
    assert text in problem and bool(problem) == bool(text)


def test_ranks_are_named_by_node() -> None:
    assert ranks_of_nodes(["a", "a", "b"]) == "ranks 0 to 1 on a, 2 on b"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 5))
def test_nodes_that_hold_whole_groups_are_never_refused(groups: list[int], tensor: int) -> None:
    nodes = [str(node) for node, count in enumerate(groups) for _ in range(count * tensor)]
    assert straddling(nodes, tensor) == []
    assert room_problem(tensor, len(nodes), [n * tensor for n in groups]) == ""


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 5))
def test_what_no_placement_makes_good_is_wrong_in_the_fullest_one(rooms: list[int], tensor: int) -> None:
    workers = sum(rooms) // tensor * tensor
    nodes = [str(node) for node, room in enumerate(rooms) for _ in range(room)][:workers]
    if workers and room_problem(tensor, workers, rooms):
        assert straddling(nodes, tensor)

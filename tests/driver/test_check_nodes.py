"""What the nodes of a joined cluster say is judged by what the run takes of them."""

from __future__ import annotations

from typing import Any

import pytest

from raymb.driver import nodes
from raymb.errors import ClusterError
from raymb.model.families import family_of


def _said(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """One node, with 4 GPUs by Ray's word."""
    node = {"NodeID": "f" * 56, "NodeManagerHostname": "a", "NodeManagerAddress": "10.0.0.1", "Resources": {"GPU": 4.0}}
    monkeypatch.setattr(nodes, "working_nodes", lambda: [node])
    monkeypatch.setattr(nodes, "ask_nodes", lambda *given: {node["NodeID"]: answer})


def test_a_run_on_cpus_needs_no_gpus_of_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the way out that the refusal names."""
    _said(monkeypatch, {"raymb": "", "gpus": 0, "absent": []})
    nodes.check_nodes(None, "cpu")
    with pytest.raises(ClusterError, match="Ray counts 4 GPUs there, and CUDA finds 0") as caught:
        nodes.check_nodes(None, "cuda")
    assert "--backend cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("no answer within 120 s", "nodes do not answer\n  a \\(10.0.0.1, node ffffffff\\): no answer within 120 s"),
        ({"raymb": "ModuleNotFoundError: raymb", "gpus": 4}, "cannot be imported .*\n.*: ModuleNotFoundError: raymb"),
    ],
    ids=["silent", "without raymb"],
)
def test_a_node_that_cannot_run_a_worker_is_named(monkeypatch: pytest.MonkeyPatch, answer: Any, said: str) -> None:
    _said(monkeypatch, answer)
    with pytest.raises(ClusterError, match=said):
        nodes.check_nodes(None, "cpu")


def test_a_node_without_the_kernels_of_the_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = family_of("NemotronHForCausalLM").kernels
    _said(monkeypatch, {"raymb": "", "gpus": 4, "absent": ["mamba_ssm"]})
    with pytest.raises(ClusterError, match=r"need CUDA kernels that nodes do not have\n  a .*: mamba_ssm") as caught:
        nodes.check_nodes(None, "cuda", kernels)
    assert caught.value.hint.startswith("pip install mamba-ssm causal-conv1d; --backend cpu")


def test_this_machine_is_asked_for_them_too() -> None:
    nodes.check_packages({"json": "json"})
    with pytest.raises(ClusterError, match="this machine does not have: no_such_package") as caught:
        nodes.check_packages({"json": "json", "no_such_package": "no-such-package"})
    assert "pip install json no-such-package" in caught.value.hint


def test_a_node_looks_for_packages() -> None:
    answer = nodes._what_is_there()(["json", "no_such_package"])
    assert answer["absent"] == ["no_such_package"] and answer["raymb"] == ""

"""What adapters add, in place, and the gradients of it, against plain torch."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json
from types import SimpleNamespace

from raymb import cpu
from raymb.bridge.patches import imports

imports.install()
cpu.activate()
import torch
from megatron.core.tensor_parallel import layers
from torch import nn

from raymb.bridge.patches import low_rank

torch.manual_seed(0)
layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(  # Transformer Engine's kernel, as its users call it
    wgrad_gemm_accum_fp32=lambda inputs, gradient, total: total.add_(gradient.float().t() @ inputs.float())
)
RANK, SIZES, IN = 3, (6, 4, 2), 5


def adapter(columns, fused):
    made = nn.Module()
    made.linear_in, made.linear_out = nn.Linear(IN, RANK, bias=False), nn.Linear(RANK, columns, bias=False)
    made.dropout, made.disable_sequence_parallel_comm, made.input_is_parallel = nn.Identity(), True, False
    made.tp_group, made.alpha, made.dim = None, 6, RANK
    made.config = SimpleNamespace(gradient_accumulation_fusion=fused)
    low_rank._prepare(made)
    return made


def deviation(present, ordered, fused):
    adapters = [adapter(size, fused) if number in present else None for number, size in enumerate(SIZES)]
    weights = [w for one in adapters if one for w in (one.linear_in.weight, one.linear_out.weight)]
    order = torch.randperm(sum(SIZES)) if ordered else None
    x, base = torch.randn(2, 4, IN, requires_grad=True), torch.randn(2, 4, sum(SIZES), requires_grad=True)
    goal = torch.randn(2, 4, sum(SIZES))

    def plain():
        parts = [
            one.linear_out.weight @ (one.linear_in.weight @ x.flatten(0, 1).t()) if one else torch.zeros(size, 8)
            for one, size in zip(adapters, SIZES)
        ]
        added = 2 * torch.cat(parts).t().reshape(2, 4, -1)
        return base * 1.5 + (added if order is None else added[..., order])

    (plain() * goal).sum().backward()
    expected = [one.grad.clone() for one in (x, base, *weights)]
    total = plain().detach()
    for one in (x, base, *weights):
        one.grad = None
    for weight in weights if fused else ():
        weight.main_grad, weight.grad_added_to_main_grad = torch.ones_like(weight), False
    output = low_rank._add(base * 1.5, x, list(zip(adapters, SIZES)), order)
    (output * goal).sum().backward()
    if fused:
        assert all(weight.grad_added_to_main_grad for weight in weights)
        found = [x.grad, base.grad, *(weight.main_grad - 1 for weight in weights)]
    else:
        found = [one.grad for one in (x, base, *weights)]
    pairs = [(output, total), *zip(found, expected)]
    return max(((one - two).abs().max() / two.abs().max()).item() for one, two in pairs)


cases = [((0, 1, 2), True), ((0, 1, 2), False), ((0, 2), True), ((1,), False)]
print("RESULT " + json.dumps([deviation(*case, fused) for case in cases for fused in (False, True)]))
"""


def test_adds_what_plain_torch_adds_with_its_gradients() -> None:
    """All parts of a fused matrix and some; in the parts' order and another; gradients given to autograd, and added to
    Megatron's buffer at once."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    assert line is not None, done.stderr[-3000:]
    found = json.loads(line.removeprefix("RESULT "))
    assert len(found) == 8 and max(found) < 1e-5

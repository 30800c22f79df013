"""torch.cuda's face over the CPU. It changes a process for good, so that one process installs it and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).parents[2] / "src"
SCRIPT = """
import json, time, torch
from raymb.cpu import torch_cuda

torch_cuda.install()
once = torch.zeros
torch_cuda.install()
answer = {"idempotent": torch.zeros is once}

answer["devices"] = {
    "zeros": torch.zeros(2, device="cuda"),
    "zeros on an index": torch.zeros(2, device="cuda:0"),
    "zeros on a device": torch.zeros(2, device=torch.device("cuda", 0)),
    "zeros on the current device": torch.zeros(2, device=torch.cuda.current_device()),
    "tensor": torch.tensor([1.0], device="cuda"),
    "empty, pinned": torch.empty(2, pin_memory=True),
    "zeros_like": torch.zeros_like(torch.ones(2), device="cuda"),
    "to": torch.ones(2).to("cuda"),
    "to with a dtype": torch.ones(2).to("cuda", torch.bfloat16),
    "to by name": torch.ones(2).to(device="cuda", dtype=torch.float16),
    "new_zeros": torch.ones(2).new_zeros((2,), device="cuda"),
    "module": torch.nn.Linear(2, 2).cuda().to("cuda").weight,
}
answer["devices"] = {name: str(tensor.device) for name, tensor in answer["devices"].items()}
answer["dtypes"] = [str(torch.ones(2).to("cuda", torch.bfloat16).dtype), str(torch.ones(2).to(torch.float64).dtype)]

tensor = torch.ones(2)
answer["cuda_is_identity"] = tensor.cuda() is tensor and tensor.cuda(0, non_blocking=True) is tensor
answer["pin_is_identity"] = tensor.pin_memory() is tensor
answer["types"] = {str(dtype): torch.ones(1, dtype=dtype).type()
                   for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64)}
answer["type_converts"] = str(tensor.type(torch.float64).dtype)

start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
start.record()
time.sleep(0.02)
end.record()
end.synchronize()
answer["milliseconds"] = start.elapsed_time(end)

torch.cuda.manual_seed(7)
state = torch.cuda.get_rng_state()
first = torch.rand(4).tolist()
torch.cuda.set_rng_state(state)
answer["rng_round_trip"] = torch.rand(4).tolist() == first
torch.cuda.set_rng_state_all(torch.cuda.get_rng_state_all())
torch.manual_seed(7)
answer["manual_seed_is_the_same"] = torch.rand(4).tolist() == first

def function(x):
    return x

answer["compile"] = [torch.compile(function) is function, torch.compile(mode="max-autotune")(function) is function]
ask = torch.cuda
answer["memory"] = [ask.max_memory_allocated(), ask.memory_allocated("cuda"), ask.memory_reserved()]
answer["total_memory"] = torch.cuda.get_device_properties(0).total_memory
answer["answers"] = [torch.cuda.is_available(), torch.cuda.device_count(), torch.cuda.get_device_name()]

stream = torch.cuda.Stream()
with torch.cuda.stream(stream), torch.cuda.device(0), stream:
    stream.wait_stream(torch.cuda.current_stream())
    stream.wait_event(stream.record_event())
    stream.synchronize()
torch.cuda.synchronize()
torch.cuda.empty_cache()
torch.cuda.set_device(0)
torch.cuda.nvtx.range_push("x")
torch.cuda.nvtx.range_pop()
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_tensors_for_cuda_are_on_the_cpu(answer: dict[str, Any]) -> None:
    assert {name: device for name, device in answer["devices"].items() if device != "cpu"} == {}
    assert answer["dtypes"] == ["torch.bfloat16", "torch.float64"]


def test_moving_to_cuda_is_the_identity(answer: dict[str, Any]) -> None:
    assert answer["cuda_is_identity"] and answer["pin_is_identity"]


def test_type_names_are_cudas(answer: dict[str, Any]) -> None:
    assert answer["types"] == {
        "torch.float32": "torch.cuda.FloatTensor",
        "torch.float16": "torch.cuda.HalfTensor",
        "torch.bfloat16": "torch.cuda.BFloat16Tensor",
        "torch.int64": "torch.LongTensor",
    }
    assert answer["type_converts"] == "torch.float64"


def test_events_take_the_time(answer: dict[str, Any]) -> None:
    assert 19 < answer["milliseconds"] < 5000


def test_cuda_rng_is_the_cpu_rng(answer: dict[str, Any]) -> None:
    assert answer["rng_round_trip"] and answer["manual_seed_is_the_same"]


def test_compile_is_the_identity(answer: dict[str, Any]) -> None:
    assert answer["compile"] == [True, True]


def test_memory_is_the_process(answer: dict[str, Any]) -> None:
    assert all(0 < size < answer["total_memory"] for size in answer["memory"])


def test_there_is_one_device(answer: dict[str, Any]) -> None:
    assert answer["answers"] == [True, 1, "cpu"]


def test_install_is_idempotent(answer: dict[str, Any]) -> None:
    assert answer["idempotent"]

"""Layout arithmetic: identities over a grid, every rule, what `auto` chooses."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS

from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan
from raymb.plan.layout import evaluation_batches
from raymb.plan.table import plan_rows, print_plan
from raymb.spec import load_spec

DENSE = ModelShape.from_config(QWEN2_4_LAYERS)
MOE = ModelShape.from_config(QWEN3_MOE_4_LAYERS)


def plan_of(shape: ModelShape = DENSE, *, backend: str = "cuda", rows: int | None = None, **flags: object) -> Plan:
    spec = load_spec({"hf_model_path": "some/model"} | {name: str(value) for name, value in flags.items()})
    return make_plan(spec, shape, rows=rows, backend=backend)


def problems_of(shape: ModelShape = DENSE, *, backend: str = "cuda", **flags: object) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan_of(shape, backend=backend, **flags)
    return caught.value.problems


GRID = list(itertools.product((1, 2, 4, 8), (1, 2, 4), (1, 2), (1, 3), (1, 2), (1, 4)))


@pytest.mark.parametrize(("tensor", "pipeline", "context", "data", "micro", "steps"), GRID)
def test_identities_hold_over_a_grid(tensor, pipeline, context, data, micro, steps):
    workers, batch = tensor * pipeline * context * data, micro * data * steps
    plan = plan_of(
        num_workers=workers,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        context_parallel_size=context,
        micro_batch_size=micro,
        global_batch_size=batch,
        rows=1000,
        train_iters=10,
    )
    assert plan.layout.data_parallel_size == data
    assert (
        plan.layout.micro_batch_size * plan.layout.data_parallel_size * plan.layout.micro_batches
        == plan.layout.global_batch_size
        == batch
    )
    assert (len(plan.layers_per_stage), sum(plan.layers_per_stage)) == (pipeline, 4)
    assert plan.padded_vocab_size % tensor == 0 <= plan.padded_vocab_size - 305 < tensor
    assert (plan.samples, plan.tokens) == (10 * batch, 10 * batch * 512)
    assert plan.epochs == pytest.approx(plan.train_iters / plan.steps_per_epoch)
    assert plan.layout.sequence_parallel == (tensor > 1)


def test_workers_a_node_and_nodes():
    plan = plan_of(num_workers=16, tensor_parallel_size=2, global_batch_size=16, gpus_per_node=6)
    assert (plan.workers_per_node, plan.nodes) == (6, 3)
    assert dict(plan_rows(plan, DENSE, "m"))["workers a node"] == "6, on 3 nodes"
    crossing = plan_of(num_workers=4, tensor_parallel_size=2, global_batch_size=16, gpus_per_node=1)
    assert "crosses nodes" in dict(plan_rows(crossing, DENSE, "m"))["workers a node"]
    assert (plan_of(num_workers=2).workers_per_node, plan_of(num_workers=2).nodes) == (None, None)


@pytest.mark.parametrize(("workers", "batch"), list(itertools.product(range(1, 9), range(1, 33))))
def test_a_plan_is_made_exactly_where_the_arithmetic_allows_it(workers, batch):
    """auto micro batch: any global batch that divides by the data parallel size trains, and no other."""
    flags = {"num_workers": workers, "tensor_parallel_size": 2, "pipeline_parallel_size": 1, "global_batch_size": batch}
    if workers % 2 == 0 and batch % (workers // 2) == 0:
        plan = plan_of(**flags)
        assert batch == plan.layout.micro_batch_size * (workers // 2) * plan.layout.micro_batches
    else:
        assert problems_of(**flags)


def test_auto_on_cpu():
    """At most 2048 tokens in a micro-batch, and 4 micro-batches for each pipeline stage."""
    plan = plan_of(num_workers=4, tensor_parallel_size=2, backend="cpu", global_batch_size=8)
    assert (plan.layout.micro_batch_size, plan.layout.sequence_parallel, plan.backend) == (4, True, "cpu")

    def size(batch: int, **flags: Any) -> int:
        return plan_of(backend="cpu", global_batch_size=batch, **flags).layout.micro_batch_size

    assert [size(32, num_workers=1, seq_length=length) for length in (96, 256, 512, 1024)] == [8, 8, 4, 2]
    assert [size(batch, num_workers=2, pipeline_parallel_size=2) for batch in (8, 16, 32)] == [1, 2, 4]


def test_every_auto_is_explained_and_nothing_else():
    given = {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "virtual_pipeline_parallel_size": 1,
        "context_parallel_size": 1,
        "expert_parallel_size": 1,
        "sequence_parallel": "false",
        "micro_batch_size": 2,
        "recompute": "none",
        "optimizer_offload": 0,
        "cuda_graphs": "false",
    }
    assert set(plan_of().chosen) == set(given)
    plan = plan_of(num_workers=2, **given)
    assert plan.chosen == {}
    assert (plan.layout.sequence_parallel, plan.layout.micro_batch_size) == (False, 2)
    assert set(plan_of(backend="cpu").chosen) < set(given)


def test_experts_have_a_grid_of_their_own_and_are_no_factor_of_data_parallel():
    plan = plan_of(MOE, num_workers=8, expert_parallel_size=4, tensor_parallel_size=2, expert_tensor_parallel_size=1)
    assert (plan.layout.data_parallel_size, plan.layout.expert_data_parallel_size) == (4, 2)
    assert plan_of(MOE, num_workers=8, tensor_parallel_size=2).layout.expert_tensor_parallel_size == 2


@pytest.mark.parametrize(
    ("flags", "stages"),
    [
        ({"num_layers_in_first_stage": 2, "pipeline_parallel_size": 3}, [2, 1, 1]),
        ({"num_layers_in_last_stage": 1, "pipeline_parallel_size": 2}, [3, 1]),
        ({"num_layers_in_first_stage": 1, "num_layers_in_last_stage": 1, "pipeline_parallel_size": 3}, [1, 2, 1]),
        ({"num_layers_in_first_stage": 1, "num_layers_in_last_stage": 3, "pipeline_parallel_size": 2}, [1, 3]),
    ],
)
def test_uneven_stages(flags, stages):
    assert plan_of(num_workers=flags["pipeline_parallel_size"], **flags).layers_per_stage == stages


def test_epochs_become_steps_once_the_rows_are_known():
    assert (plan_of(num_epochs=2).train_iters, plan_of(num_epochs=2).tokens) == (None, None)
    assert "once the rows are prepared" in dict(plan_rows(plan_of(num_epochs=2), DENSE, "m"))["training"]
    plan = plan_of(num_epochs=1.5, rows=100, global_batch_size=8)
    assert (plan.train_iters, plan.samples) == (19, 152)
    assert (plan_of().train_iters, plan_of(train_iters=7).train_iters) == (100, 7)


def test_packed_rows_and_their_multiple():
    plan = plan_of(packing=True, num_workers=8, tensor_parallel_size=2, context_parallel_size=2, rows=50)
    assert plan.layout.sample_multiple == 8
    assert "50 packed rows" in dict(plan_rows(plan, DENSE, "m"))["data"]
    assert plan_of(packing=True, num_workers=2, context_parallel_size=2).layout.sample_multiple == 4
    assert plan_of(packing=True, num_workers=2, tensor_parallel_size=2).layout.sample_multiple == 1
    assert plan_of(num_workers=2, context_parallel_size=2).layout.sample_multiple == 1
    assert plan_of(packing=True).layout.micro_batch_size == plan_of().layout.micro_batch_size > 1
    given = {"packing": True, "num_workers": 4, "tensor_parallel_size": 2, "context_parallel_size": 2}
    assert any("must be a multiple of 8 with --packing" in text for text in problems_of(**given, seq_length=516))
    gemma = ModelShape.from_config(QWEN2_4_LAYERS | {"architectures": ["Gemma2ForCausalLM"]})
    assert any("--packing is not possible with Gemma2" in text for text in problems_of(gemma, packing=True))


def test_key_value_groups_may_be_a_divisor_of_tensor_parallel():
    assert plan_of(num_workers=8, tensor_parallel_size=8).layout.tensor_parallel_size == 8


def test_tensor_parallel_divides_the_matrix_of_queries_keys_and_values():
    """SmolLM2-135M's sizes: nine workers would get 106 2/3 rows each."""
    sizes = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "intermediate_size": 1152}
    shape = ModelShape.from_config(QWEN2_4_LAYERS | sizes)
    (problem,) = problems_of(shape, num_workers=9, global_batch_size=9, tensor_parallel_size=9, seq_length=504)
    assert "must divide the 960 rows" in problem and problem.endswith("set --tensor_parallel_size to one of 1, 3")
    wide = replace(shape, head_dim=48)
    plan = plan_of(wide, num_workers=9, global_batch_size=9, tensor_parallel_size=9, seq_length=504)
    assert plan.layout.tensor_parallel_size == 9


def test_one_virtual_chunk_is_the_plain_schedule():
    flags = {"num_workers": 2, "pipeline_parallel_size": 2, "micro_batch_size": 1}
    assert plan_of(**flags, virtual_pipeline_parallel_size=1).layout.virtual_pipeline_parallel_size is None
    assert plan_of(**flags, virtual_pipeline_parallel_size=2).layout.virtual_pipeline_parallel_size == 2


BROKEN = [
    ({"num_workers": 7, "tensor_parallel_size": 2}, "--num_workers 7 must be a multiple of", "6 or 8"),
    (
        {"num_workers": 4, "global_batch_size": 10, "tensor_parallel_size": 1, "pipeline_parallel_size": 1},
        "--global_batch_size 10 must be a multiple of",
        "8 or 12",
    ),
    ({"num_workers": 3, "tensor_parallel_size": 3}, "must divide the model's 8 attention heads", "1, 2, 4, 8"),
    ({"num_workers": 3, "tensor_parallel_size": 3}, "divisor or a multiple of the model's 4 key/value groups", "1, 2"),
    ({"num_workers": 5, "tensor_parallel_size": 5}, "must divide the model's feed-forward size 96", "1, 2, 4, 8"),
    ({"num_workers": 3, "pipeline_parallel_size": 3}, "must divide the model's 4 layers", "1, 2, 4"),
    ({"num_workers": 8, "pipeline_parallel_size": 8}, "must not be more than the model's 4 layers", "8"),
    ({"num_layers_in_first_stage": 2}, "--num_layers_in_first_stage 2 needs --pipeline_parallel_size", "leave"),
    (
        {"num_workers": 3, "pipeline_parallel_size": 3, "num_layers_in_first_stage": 1},
        "leave 3 for the other 2",
        "--num_layers_in_first_stage",
    ),
    (
        {"num_workers": 2, "pipeline_parallel_size": 2, "num_layers_in_last_stage": 4},
        "leave 0 for the other 1",
        "--num_layers_in_last_stage",
    ),
    ({"virtual_pipeline_parallel_size": 2}, "--virtual_pipeline_parallel_size 2 needs --pipeline_parallel_size", ""),
    (
        {"num_workers": 2, "pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 3},
        "must divide the 2 layers of a pipeline stage",
        "one of 2",
    ),
    (
        {
            "num_workers": 2,
            "pipeline_parallel_size": 2,
            "virtual_pipeline_parallel_size": 2,
            "global_batch_size": 3,
            "micro_batch_size": 1,
        },
        "the 3 micro-batches of a step to be a multiple of --pipeline_parallel_size 2",
        "2 or 4",
    ),
    ({"seq_length": 1025}, "--seq_length 1025 is longer than the model's 1024 positions", "at most 1024"),
    ({"num_workers": 2, "context_parallel_size": 2, "seq_length": 510}, "2 x --context_parallel_size 2", "508 or 512"),
    ({"sequence_parallel": "true"}, "--sequence_parallel true needs --tensor_parallel_size", "leave it out"),
    ({"num_workers": 4, "tensor_parallel_size": 4, "seq_length": 510}, "with sequence parallel", "508 or 512"),
    ({"num_workers": 2, "expert_parallel_size": 2}, "--expert_parallel_size 2 needs a mixture-of-experts", "leave"),
    ({"expert_tensor_parallel_size": 2}, "--expert_tensor_parallel_size 2 needs a mixture-of-experts", "leave"),
]


@pytest.mark.parametrize(("flags", "rule", "way_out"), BROKEN)
def test_a_broken_rule_names_values_rule_and_way_out(flags, rule, way_out):
    found = [text for text in problems_of(**flags) if rule in text]
    assert len(found) == 1
    assert way_out in found[0]
    assert "--" in found[0]


BROKEN_MOE = [
    ({"num_workers": 3, "expert_parallel_size": 3}, "must divide the model's 8 experts", "1, 2, 4, 8"),
    ({"num_workers": 4, "expert_parallel_size": 8}, "expert tensor x expert x pipeline parallel = 1 x 8 x 1", "8"),
    ({"expert_tensor_parallel_size": 5}, "must divide an expert's feed-forward size 48", "1, 2, 3"),
    ({"num_workers": 2, "tensor_parallel_size": 2, "sequence_parallel": "false"}, "needs --sequence_parallel", "true"),
]


@pytest.mark.parametrize(("flags", "rule", "way_out"), BROKEN_MOE)
def test_a_broken_expert_rule(flags, rule, way_out):
    found = [text for text in problems_of(MOE, **flags) if rule in text]
    assert len(found) == 1
    assert way_out in found[0]


@pytest.mark.parametrize(
    ("shape", "flags"),
    [
        (DENSE, {"tensor_parallel_size": 2}),
        (DENSE, {"context_parallel_size": 2, "seq_length": 500}),
        (MOE, {"tensor_parallel_size": 2, "expert_parallel_size": 2, "expert_tensor_parallel_size": 1}),
    ],
)
def test_the_cpu_backend_lays_out_as_cuda_does(shape, flags):
    flags = flags | {"num_workers": 2, "micro_batch_size": 1}
    on_cpu, on_cuda = (plan_of(shape, backend=backend, **flags).to_dict() for backend in ("cpu", "cuda"))
    of_gpus = ("backend", "gpu", "memory", "step_time", "chosen", "cuda_graphs")
    assert on_cpu == on_cuda | {name: on_cpu[name] for name in of_gpus}


@pytest.mark.parametrize(
    ("architecture", "flag"),
    [
        ("OlmoeForCausalLM", "tensor_parallel_size"),
        ("Gemma2ForCausalLM", "context_parallel_size"),
        ("GptOssForCausalLM", "expert_tensor_parallel_size"),
    ],
)
def test_what_one_family_cannot_split(architecture, flag):
    shape = ModelShape.from_config(QWEN3_MOE_4_LAYERS | {"architectures": [architecture]})
    (problem,) = problems_of(shape, num_workers=2, **{flag: 2})
    assert f"--{flag} 2 must be 1 for {architecture}" in problem
    assert plan_of(shape, num_workers=2, pipeline_parallel_size=2)


def test_experts_with_biases_are_not_split_by_default():
    shape = ModelShape.from_config(QWEN3_MOE_4_LAYERS | {"architectures": ["GptOssForCausalLM"]})
    assert plan_of(shape, num_workers=2, tensor_parallel_size=2).layout.expert_tensor_parallel_size == 1


def test_all_broken_rules_come_at_once():
    text = "\n".join(
        problems_of(
            num_workers=7,
            tensor_parallel_size=3,
            pipeline_parallel_size=3,
            seq_length=5000,
            expert_parallel_size=2,
            virtual_pipeline_parallel_size=2,
        )
    )
    for flag in ("num_workers 7", "attention heads", "key/value", "4 layers", "5000", "expert_parallel_size 2"):
        assert flag in text


def test_the_spec_names_the_backend_unless_the_caller_knows_it():
    spec = load_spec({"hf_model_path": "some/model", "backend": "cpu"})
    assert make_plan(spec, DENSE).backend == "cpu"
    assert make_plan(load_spec({"hf_model_path": "some/model"}), DENSE).backend == "auto"


def test_the_plan_is_json_and_the_table_shows_its_arithmetic(capsys):
    flags = {"num_workers": 8, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "expert_parallel_size": 1}
    flags["micro_batch_size"] = 2
    plan = plan_of(MOE, rows=80, **flags)
    assert json.loads(json.dumps(plan.to_dict()))["chosen"] == plan.chosen
    text = " | ".join(f"{name}: {value}" for name, value in plan_rows(plan, MOE, "some/[model]"))
    for part in ("some/[model] (Qwen3MoeForCausalLM)", "8 = 2 x 2 x 1 x 2", "8 = 2 x 2 x 2", "expert grid: 8 = 2 x 1"):
        assert part in text
    assert f"{plan.parameters:,} parameters" in text
    assert "80 rows: 10.00 steps an epoch, 10.00 epochs" in text
    print_plan(plan, MOE, load_spec({"hf_model_path": "some/[model]"} | {k: str(v) for k, v in flags.items()}))
    assert "[model]" in capsys.readouterr().out


def test_padding_is_the_least_multiple_of_tensor_parallel():
    assert [plan_of(num_workers=size, tensor_parallel_size=size).padded_vocab_size for size in (1, 2, 4, 8)] == [
        math.ceil(305 / size) * size for size in (1, 2, 4, 8)
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, (32, 1)), (32, (32, 1)), (33, (64, 1)), (64, (64, 1)), (65, (64, 2)), (160, (64, 3)), (193, (64, 4))],
)
def test_a_validation_is_of_all_its_rows(rows: int, expected: tuple[int, int]) -> None:
    flags = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    plan = plan_of(num_workers=4, global_batch_size=64, micro_batch_size=8, **flags)
    assert evaluation_batches(plan.layout, rows) == expected


def test_a_validation_is_padded_as_little_as_its_batches_allow() -> None:
    plan = plan_of(num_workers=1, global_batch_size=64, micro_batch_size=1)
    assert [evaluation_batches(plan.layout, rows) for rows in (0, 5, 65, 130)] == [(0, 0), (5, 1), (33, 2), (44, 3)]


def test_a_validation_of_virtual_stages_fills_the_pipeline() -> None:
    flags = {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2, "micro_batch_size": 2}
    plan = plan_of(num_workers=2, global_batch_size=16, **flags)
    assert [evaluation_batches(plan.layout, rows) for rows in (17, 16, 7, 1)] == [(12, 2), (16, 1), (8, 1), (4, 1)]

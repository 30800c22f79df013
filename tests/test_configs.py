"""Every shipped config is one that its GPUs can train, by the sizes of the real models (tests/shapes)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymb.errors import SpecError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan
from raymb.plan.gpus import gpu_named
from raymb.plan.search import USABLE
from raymb.spec import RunSpec, load_spec
from tests.conftest import QWEN2_4_LAYERS

ROOT = Path(__file__).parents[1]
CONFIGS = {path.stem: path for path in (ROOT / "configs").glob("*.yaml")}
ON_CPUS = {"cpu-smoke", "quickstart-cpu"}


def shape_of(model: str) -> ModelShape:
    """Of the real model's config.json."""
    name = {"sample": "HuggingFaceTB/SmolLM2-135M-Instruct"}.get(model, model)
    file = Path(__file__).with_name("shapes") / f"{name.replace('/', '--')}.json"
    return ModelShape.from_config(json.loads(file.read_text()), file.name)


def plan_for_its_gpu(spec: RunSpec, shape: ModelShape | None = None) -> Plan:
    """The plan on the GPU that the spec names; it must fit with the room to spare that `auto` wants."""
    gpu = gpu_named(spec.cluster.gpu)
    plan = make_plan(spec, shape or shape_of(spec.model.hf_model_path), backend="cuda", gpu=gpu)
    assert plan.memory is not None and plan.memory["total"] <= USABLE * gpu.memory
    return plan


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - ON_CPUS - {"qwen2.5-0.5b"}))
def test_a_config_fits_the_gpus_that_it_names(name: str) -> None:
    spec = load_spec({}, [CONFIGS[name]])
    plan = plan_for_its_gpu(spec)
    asked = spec.parallel
    assert plan.layout.num_workers == plan.layout.model_parallel_size * plan.layout.data_parallel_size
    assert asked.tensor_parallel_size in ("auto", plan.layout.tensor_parallel_size)
    assert name.endswith("24gb") or f"{plan.layout.num_workers}x{(plan.gpu or '').partition('-')[0]}" in name


@pytest.mark.parametrize("name", sorted(ON_CPUS))
def test_a_config_for_cpus_breaks_no_rule(name: str) -> None:
    given = {} if name == "quickstart-cpu" else {"hf_model_path": "some/model"}
    spec = load_spec(given, [CONFIGS[name]])
    shape = shape_of("sample") if name == "quickstart-cpu" else ModelShape.from_config(QWEN2_4_LAYERS)
    assert make_plan(spec, shape, backend="cpu").backend == "cpu"


def test_the_missions_config_fits_what_a_cloud_lends() -> None:
    spec = load_spec({"gpu": "l4"}, [CONFIGS["qwen2.5-0.5b"]])
    plan = plan_for_its_gpu(spec)
    assert (plan.layout.tensor_parallel_size, plan.layout.pipeline_parallel_size, plan.layout.data_parallel_size) == (
        2,
        2,
        2,
    )


def test_the_large_ones_are_what_their_names_say() -> None:
    plan = plan_for_its_gpu(load_spec({}, [CONFIGS["llama-3.1-405b-256xh100"]]))
    sizes = plan.layout.tensor_parallel_size, plan.layout.pipeline_parallel_size, plan.layout.context_parallel_size
    assert (sizes, plan.layout.virtual_pipeline_parallel_size, plan.layers_per_stage[0]) == ((8, 16, 2), 2, 6)
    small = plan_for_its_gpu(load_spec({}, [CONFIGS["qwen2.5-0.5b-8xl4"]]))
    assert (small.nodes, small.workers_per_node, small.layout.data_parallel_size) == (2, 4, 8)


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B", 0.494),
        ("Qwen/Qwen2.5-7B", 7.616),
        ("Qwen/Qwen3-30B-A3B", 30.532),
        ("meta-llama/Llama-3.1-70B", 70.554),
        ("meta-llama/Llama-3.1-405B", 405.853),
    ],
)
def test_the_shapes_are_the_real_ones(model: str, billions: float) -> None:
    """By the number of parameters that their cards give."""
    assert round(shape_of(model).parameter_count / 1e9, 3) == billions


@pytest.mark.parametrize("given", ["quickstart-cpu", "quickstart-cpu.yaml", "qwen2.5-0.5b"])
def test_a_config_is_found_by_its_name(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever one is; a file of that name there comes first, and a path is a path."""
    monkeypatch.chdir(tmp_path)
    assert load_spec({}, [Path(given)]) == load_spec({}, [CONFIGS[given.removesuffix(".yaml")]])
    with pytest.raises(SpecError, match="no such file"):
        load_spec({}, [Path("elsewhere", given)])
    (tmp_path / given).write_text("model: {hf_model_path: mine}\n")
    assert load_spec({}, [Path(given)]).model.hf_model_path == "mine"

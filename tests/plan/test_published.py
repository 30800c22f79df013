"""Published models: parameters as their makers published them, planned on 8 x H100. Writes the table of
docs/published-models.md.

tests/model/published/*.json: `config` as published (`source` says where it was read), `parameters` of the published
files, `only_in_files` what these have besides the model (a key of BESIDE).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymb.errors import ModelError, PlanError
from raymb.model.architectures import check_architecture
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan
from raymb.plan.gpus import GIB, gpu_named
from raymb.spec import load_spec

HERE = Path(__file__)
PAGE = HERE.parents[2] / "docs" / "published-models.md"
GPU = gpu_named("h100-80gb")
BESIDE = {
    "output_layer": "tied output layer, written again",
    "prediction_layer": "prediction layer that config.json does not name",
    "prediction_tables": "prediction layer's copies of the tables",
}


@dataclass(frozen=True)
class Published:
    model: str
    source: str
    parameters: int
    parameters_source: str
    config: dict[str, Any]
    only_in_files: tuple[str, ...] = ()

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.config, self.model)

    def beside(self, what: str) -> int:
        """Parameters of a key of BESIDE."""
        table = self.shape.vocab_size * self.shape.hidden_size
        layer = ModelShape.from_config({**self.config, "num_nextn_predict_layers": 1}).prediction_parameters
        return {"output_layer": table, "prediction_layer": layer, "prediction_tables": 2 * table}[what]

    @property
    def difference(self) -> float:
        """Of what raymb counts in the published files, relative to these."""
        ours = self.shape.parameter_count + self.shape.prediction_parameters + sum(map(self.beside, self.only_in_files))
        return ours / self.parameters - 1

    def planned(self) -> Plan | str:
        """With every size `auto`; why not, where there is none."""
        flags = {"num_workers": 8, "gpus_per_node": 8, "gpu": "h100-80gb", "global_batch_size": 64, "seq_length": 4096}
        spec = load_spec({"hf_model_path": self.model, **{name: str(value) for name, value in flags.items()}})
        try:
            check_architecture(self.shape, self.model)
            return make_plan(spec, self.shape, backend="cuda", gpu=GPU)
        except (ModelError, PlanError) as error:
            return str(error)


FILES = sorted((HERE.parents[1] / "model" / "published").glob("*.json"))
MODELS = {path.stem: Published(**json.loads(path.read_text(encoding="utf-8"))) for path in FILES}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_published_ones(name: str) -> None:
    one = MODELS[name]
    assert name == one.model.replace("/", "--")
    assert abs(one.difference) < 0.001
    assert set(one.only_in_files) <= set(BESIDE)
    if one.shape.parameter_count_is_exact:
        assert one.difference == 0


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deepseek-ai--DeepSeek-V3", (192, 128)),
        ("zai-org--GLM-4.7-Flash", (256, 256)),  # its head_dim of 64 is that of rotary positions
        ("deepseek-ai--DeepSeek-V2-Lite", (192, 128)),
        ("moonshotai--Kimi-K2-Instruct", (192, 128)),
        ("Qwen--Qwen3-8B", (128, 0)),
    ],
)
def test_sizes_of_heads(name: str, sizes: tuple[int, int]) -> None:
    assert (MODELS[name].shape.head_dim, MODELS[name].shape.value_head_dim) == sizes


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("deepseek-ai--DeepSeek-V3", (61, 58)),
        ("zai-org--GLM-4.5-Air", (46, 45)),
        ("Qwen--Qwen3-Next-80B-A3B-Thinking", (48, 48)),
        ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", (52, 23)),
        ("XiaomiMiMo--MiMo-7B-Base", (36, 0)),
    ],
)
def test_layers_with_experts(name: str, layers: tuple[int, int]) -> None:
    shape = MODELS[name].shape
    assert (shape.num_layers, shape.sparse_layers) == layers


def test_the_page_has_the_table() -> None:
    columns = ("model", "parameters", "published", "difference", "layout on 8 x H100", "GiB a GPU")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    planned = 0
    for one in MODELS.values():
        plan = one.planned()
        planned += isinstance(plan, Plan)
        cells = [one.model, _billions(one.shape.parameter_count), _billions(one.parameters), _difference(one)]
        lines.append(" ".join(f"| {cell}" for cell in (*cells, *_layout(plan))) + " |")
    assert len(MODELS) >= 25 and planned >= 25
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
    written = f"{head}{mark}" + "\n".join(lines) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written, encoding="utf-8")
    assert written == page, f"{PAGE.name} has been rewritten; look at it and commit it"


def _billions(count: int) -> str:
    return f"{count / 1e9:,.3f}"


def _difference(one: Published) -> str:
    shown = "0" if one.difference == 0 else f"{one.difference:+.3%}".replace("%", " %")
    named = ["without the prediction layer"] if one.shape.prediction_parameters else []
    return "; ".join([shown, *named, *(f"without the {BESIDE[what]}" for what in one.only_in_files)])


def _layout(plan: Plan | str) -> tuple[str, str]:
    if isinstance(plan, str):
        broken = [line.removeprefix("  - ") for line in plan.splitlines() if line.startswith("  - ")]
        return "none: " + "; ".join(broken or [plan.splitlines()[0].partition(": ")[2]]), "-"
    assert plan.memory is not None
    layout = plan.layout
    sizes = {
        "TP": layout.tensor_parallel_size,
        "PP": layout.pipeline_parallel_size,
        "EP": layout.expert_parallel_size,
        "DP": layout.data_parallel_size,
    }
    words = [" x ".join(f"{name}{size}" for name, size in sizes.items() if size > 1 and name != "EP")]
    words += [f"EP{sizes['EP']}"] if sizes["EP"] > 1 else []
    words.append(f"micro batch {layout.micro_batch_size}")
    words += ["full recomputation"] if layout.recompute == "full" else []
    words += ["optimizer on the host"] if layout.optimizer_offload else []
    return ", ".join(words), f"{plan.memory['total'] / GIB:.1f}"

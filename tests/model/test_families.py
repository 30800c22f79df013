"""What is known of each family: against transformers, and against what else says it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests import positions
from tests.conftest import QWEN2_4_LAYERS
from tests.families import FAMILIES as TESTED
from tests.families import architecture

from raymb.errors import PlanError
from raymb.model.families import FAMILIES, OTHER, OTHER_UNTIED, family_of, family_of_type
from raymb.model.families.record import Family
from raymb.model.shape import ModelShape
from raymb.plan import make_plan
from raymb.spec import load_spec

DOCS = Path(__file__).parents[2] / "docs"
TIED_OTHERWISE = {"GPT-OSS", "Nemotron"}
"""Their records say why."""
OF_TRANSFORMERS = [one for one in FAMILIES if one.name != "MiMo"]
"""That one's code comes with the model."""


def _config_classes() -> Any:
    return import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING


def test_every_name_belongs_to_one_family() -> None:
    for names in ([name for one in FAMILIES for name in getattr(one, key)] for key in ("architectures", "model_types")):
        assert len(names) == len(set(names))
    assert len({one.name for one in FAMILIES}) == len(FAMILIES)
    for one in FAMILIES:
        assert all(family_of(name) is one for name in one.architectures)
        assert all(family_of_type(name) is one for name in one.model_types)


def test_a_family_without_a_record() -> None:
    assert family_of("NobodysForCausalLM") is family_of("") is OTHER
    assert family_of_type("nobodys") is family_of_type("None") is OTHER
    assert family_of_type("qwen2_audio") is family_of_type("phi3") is OTHER_UNTIED
    for other in (OTHER, OTHER_UNTIED):
        assert other.gated and not other.must_be_one and other.vision is None
        assert not (other.qkv_bias or other.qk_norm or other.exact_count or other.peft_loads_experts)
        assert not (other.cuda_graphs or other.no_packing)
    for model_type, tied in (("nobodys", True), ("qwen2_audio", False)):
        config = {**QWEN2_4_LAYERS, "model_type": model_type}
        del config["tie_word_embeddings"]
        assert ModelShape.from_config(config).tie_word_embeddings == tied


@pytest.mark.parametrize("name", TESTED)
def test_what_is_tested_has_a_record(name: str) -> None:
    record = family_of(architecture(name))
    assert record is not OTHER and name.startswith(record.name)  # "Llama 3" is one of "Llama"


@pytest.mark.parametrize("family", OF_TRANSFORMERS, ids=lambda one: one.name)
def test_gates_and_tying_are_those_of_transformers(family: Family) -> None:
    classes = [_config_classes()[model_type] for model_type in family.model_types]
    spec = find_spec(classes[0].__module__.replace("configuration_", "modeling_"))
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert family.gated == ("self.gate_proj" in source or "gate_up_proj" in source)
    assert all(name in source for name in family.architectures)
    tied = {one().tie_word_embeddings for one in classes if hasattr(one(), "tie_word_embeddings")}
    assert tied == {family.tied_by_default != (family.name in TIED_OTHERWISE)}


@pytest.mark.parametrize("name", ["NobodysForCausalLM", *(name for one in FAMILIES for name in one.architectures)])
def test_the_plan_packs_rows_where_the_record_says_so(name: str) -> None:
    shape = ModelShape.from_config({**QWEN2_4_LAYERS, "architectures": [name]})
    spec = load_spec({"hf_model_path": "m", "packing": True})
    if why := family_of(name).no_packing:
        with pytest.raises(PlanError) as refused:
            make_plan(spec, shape)
        assert f"--packing is not possible with {name}: {why}; leave --packing out" in str(refused.value)
    else:
        make_plan(spec, shape)


def test_the_docs_say_the_same() -> None:
    assert "\n".join(positions.table()) in (DOCS / "families.md").read_text(encoding="utf-8")
    loaded = " and ".join(one.name for one in FAMILIES if one.peft_loads_experts)
    assert f"for {loaded} `all-linear` includes the experts" in (DOCS / "adapters.md").read_text(
        encoding="utf-8"
    ).replace("\n", " ")

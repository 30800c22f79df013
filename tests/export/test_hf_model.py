"""Models as transformers computes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.families import make_model
from tests.positions import scaled
from transformers import AutoModelForCausalLM

from raymb.export.hf_model import load_hf_model


@pytest.mark.parametrize(("family", "eager"), [("Gemma 2", True), ("Qwen2", False)])
def test_a_cap_of_attention_is_not_left_out(family: str, eager: bool, tmp_path: Path) -> None:
    """transformers' sdpa does not know Gemma 2's."""
    model = load_hf_model(str(make_model(family, tmp_path / "model")))
    assert (model.config._attn_implementation == "eager") == eager


def test_scores_of_deepseek_v2_are_scaled_as_those_of_v3(tmp_path: Path) -> None:
    """By yarn's factor squared, which transformers' V3 does by itself."""
    settings = scaled("DeepSeek-V3", "yarn", factor=40.0, mscale=0.707, mscale_all_dim=0.707)
    scales = [
        load_hf_model(str(make_model(family, tmp_path / family, **settings))).model.layers[0].self_attn.scaling
        for family in ("DeepSeek-V2", "DeepSeek-V3")
    ]
    assert scales[0] == pytest.approx(scales[1])


def test_the_rotary_part_of_a_published_minimax_m2_is_not_left_out(tmp_path: Path) -> None:
    """Named by `rotary_dim` alone, as published; transformers' own name is `partial_rotary_factor`."""
    both = make_model("MiniMax-M2", tmp_path / "both")
    published = make_model("MiniMax-M2", tmp_path / "published")
    config = json.loads((published / "config.json").read_text())
    assert config["rope_parameters"].pop("partial_rotary_factor") == config["rotary_dim"] / config["head_dim"] == 0.5
    config.pop("partial_rotary_factor", None)
    (published / "config.json").write_text(json.dumps(config))
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        logits = [load_hf_model(str(path)).eval()(tokens).logits for path in (both, published)]
        untouched = AutoModelForCausalLM.from_pretrained(published).eval()(tokens).logits
    assert torch.equal(*logits)
    assert not torch.allclose(untouched, logits[0], atol=1e-3), "transformers reads it: drop complete_rotary"


def test_time_steps_of_nemotron_h_are_as_short_as_with_kernels(tmp_path: Path) -> None:
    """Of two models with the same weights: without what transformers does here, the second one's steps are 0.5."""
    tokens = torch.arange(1, 40)[None]
    results = []
    for least in (1e-6, 0.5):
        directory = make_model("Nemotron-H", tmp_path / str(least))
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"time_step_min": least}))
        with torch.no_grad():
            results.append(load_hf_model(str(directory)).eval()(input_ids=tokens).logits)
    torch.testing.assert_close(*results)

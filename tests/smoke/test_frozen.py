"""Training a part of the model's own parameters, against torch in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.conftest import MAIN_FLAGS, batches_of, curve, read_metrics, train_variant, worst_deviation

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(400)]
TP, PP, VPP = (f"{name}_parallel_size" for name in ("tensor", "pipeline", "virtual_pipeline"))
LOWER = r"embed_tokens|layers\.[01]\."
"""With two stages all that the first one has, and with tied embeddings the last one's matrix of them."""


@pytest.mark.parametrize(
    ("flags", "frozen", "layout"),
    [
        ({"freeze": LOWER}, LOWER, {}),
        ({"freeze": LOWER}, LOWER, {TP: 2, PP: 2}),
        ({"freeze": LOWER}, LOWER, {PP: 2, VPP: 2}),
        ({"freeze": LOWER, "recompute": "full"}, LOWER, {TP: 2}),
        ({"unfreeze": "layernorm"}, r"^(?!.*layernorm)", {TP: 2}),
        ({"freeze": "layers", "unfreeze": r"layers\.3\.mlp"}, r"layers\.(?!3\.mlp)", {TP: 2}),
    ],
)
def test_what_is_left_trains_as_in_torch(
    flags: dict[str, Any], frozen: str, layout: dict[str, int], tmp_path: Path, tiny_qwen2: Path, rows: Path
) -> None:
    from tests.smoke import oracle

    workers = layout.get(TP, 1) * layout.get(PP, 1)
    steps = train_variant(tmp_path, workers, hf_model_path=tiny_qwen2, dataset=rows, **flags, **layout)
    expected = oracle.train(tiny_qwen2, batches_of(tmp_path / "run"), MAIN_FLAGS["learning_rate"], frozen=frozen)
    worst = worst_deviation(steps, expected)
    print(f"\n{flags} {layout}: loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}, worst {worst:.2e}")
    assert worst <= 1e-5


def test_it_resumes_exports_and_is_told_apart(
    finetune: Callable[..., Path], tiny_qwen2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import re

    import torch
    from safetensors.torch import load_file

    flags = {"freeze": LOWER, "num_workers": 2, PP: 2, "train_iters": 4}
    whole = finetune(experiment_name="whole", **flags)
    assert "parameters to train" in capfd.readouterr().err
    finetune("train.exit_interval=2", experiment_name="stopped", **flags)
    finetune(experiment_name="stopped", **(flags | {"freeze": "embed_tokens"}), code=2)
    assert "frozen: freeze was" in capfd.readouterr().err
    stopped = finetune(experiment_name="stopped", **flags)
    assert curve(stopped) == curve(whole)
    (record,) = read_metrics(stopped, "export")
    assert record["error"] <= 1e-4
    before, after = load_file(tiny_qwen2 / "model.safetensors"), load_file(stopped / "hf" / "model.safetensors")
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert same == {name for name in before if re.search(LOWER, name)}

"""`python check_conversion.py JOB.json ...`: for each job (one worker) a JSON line with what the Megatron model makes
of the Hugging Face weights: the largest relative difference of its logits from transformers', and the tensors that come
back changed. A process of its own: it puts on the CPU accelerator."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def check(job: Any) -> dict[str, Any]:
    from raymb.export.hf_model import load_hf_model  # before the CPU accelerator

    source = load_hf_model(job.model_path, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.randint(1, job.vocab_size, (2, job.spec.data.seq_length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = source.eval()(input_ids=tokens).logits

    from raymb.bridge.activation import activate_alone

    activate_alone(job)
    from megatron.core import parallel_state

    from raymb.bridge.from_checkpoint import load_model

    hf_bridge, model = load_model(job)
    with torch.no_grad():
        positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
        ours = model[0].eval()(tokens, positions, None)[..., : job.vocab_size]
    exported = dict(hf_bridge.export_hf_weights(model, cpu=True, show_progress=False))
    files = [load_file(file) for file in sorted(Path(job.model_path).glob("*.safetensors"))]
    stored = {name: tensor for file in files for name, tensor in file.items()}
    changed = [name for name in stored.keys() & exported.keys() if not torch.equal(exported[name], stored[name])]
    parallel_state.destroy_model_parallel()
    return {
        "logits": float((ours - theirs).abs().max() / theirs.abs().max()),
        "tensors": len(stored),
        "changed": sorted(changed),
        "missing": sorted(stored.keys() - exported.keys()),
    }


def main() -> None:
    from raymb.run.job import Job

    for path in sys.argv[1:]:
        try:
            result = check(Job.from_json(Path(path).read_text(encoding="utf-8")))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            result = {"error": f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"}
            traceback.print_exc()
        print("RESULT " + json.dumps(result), flush=True)


main()

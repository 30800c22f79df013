"""What the driver hands to every worker: plain data, as JSON, so that a run can be repeated from its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from raymb.spec import RunSpec, spec_from_json, spec_to_json


@dataclass(frozen=True)
class Job:
    """A resolved run.

    Args:
        spec: what the user asked for.
        plan: `Plan.to_dict()`: every size, with `auto` resolved.
        backend: "cuda" or "cpu".
        architecture: `architectures[0]` of the model's config.json.
        vocab_size: rows of the model's embedding, before padding.
        model_path: what Hugging Face loads: a hub id or a local directory.
        data_dir: directory of prepared rows: train.arrow, validation.arrow, test.arrow.
        pad_id: token behind the end of a row.
        validation_rows, test_rows: rows in those files; 0 for none.
        run_dir: the run directory.
        checkpoint_dir: where checkpoints are written, and read on a restart.
        hf_dir: where the tuned model goes as a Hugging Face directory.
        log_dir: one file a worker.
        threads: OMP_NUM_THREADS of a worker.
    """

    spec: RunSpec
    plan: dict[str, Any]
    backend: str
    architecture: str
    vocab_size: int
    model_path: str
    data_dir: str
    pad_id: int
    validation_rows: int
    test_rows: int
    run_dir: str
    checkpoint_dir: str
    hf_dir: str
    log_dir: str
    threads: int

    def to_json(self) -> str:
        fields = {**self.__dict__, "spec": json.loads(spec_to_json(self.spec))}
        return json.dumps(fields)

    @staticmethod
    def from_json(text: str) -> Job:
        fields = json.loads(text)
        return Job(**{**fields, "spec": spec_from_json(json.dumps(fields["spec"]))})

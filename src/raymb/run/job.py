"""What the driver hands to every worker: plain data, as JSON, so that a run can be repeated from its files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raymb.model.files import base_directory
from raymb.plan import Layout, Plan
from raymb.spec import RunSpec, spec_from_json, spec_to_json
from raymb.spec.training import Moe
from raymb.storage.remote import is_uri, storage_root


def with_absolute_paths(spec: RunSpec) -> RunSpec:
    """The spec as every process reads it: Ray Train's workers have a working directory of their own."""

    def absolute(path: Any) -> Any:
        return path if path is None or is_uri(path) else type(path)(Path(path).expanduser().absolute())

    resume = spec.checkpoint.resume
    paths = {
        "output_dir": absolute(spec.checkpoint.output_dir),
        "resume": resume if resume in ("auto", "never") else absolute(resume),
    }
    return spec.changed(run={"storage_path": absolute(spec.run.storage_path)}, checkpoint=paths)


@dataclass(frozen=True)
class Job:
    """A resolved run.

    Args:
        spec: what the user asked for, of with_absolute_paths.
        plan: the layout and what follows from it, once the rows are prepared; of an elastic run the largest.
        plans: number of workers to plan, for each size that an elastic run may have.
        backend: "cuda" or "cpu".
        architecture: `architectures[0]` of the model's config.json.
        vocab_size: rows of the model's embedding, before padding.
        model_path: what Hugging Face loads: a directory, or a hub id, whose commit is `spec.model.hf_revision`.
        data_dir: directory of prepared rows: train.arrow, validation.arrow, test.arrow.
        pad_id: token that fills a row up to its length.
        validation_rows, test_rows: rows in those files; 0 for none.
        run_dir: the run directory.
        checkpoint_dir: where checkpoints are written, and read on a restart.
        hf_dir: where the tuned model goes as a Hugging Face directory.
        adapter_dir: where the tuned adapters go as a PEFT directory.
        load_dir: the iteration directory to resume from, where it is not for the workers to choose; "" where it is.
        task: train; reshape: write the checkpoint that is loaded again, so that every layout can read it; export: write
            its weights as a Hugging Face model.
        log_dir: one file a worker.
        threads: OMP_NUM_THREADS of a worker.
    """

    spec: RunSpec
    plan: Plan
    plans: dict[int, Plan]
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
    load_dir: str
    task: Literal["train", "reshape", "export"]
    hf_dir: str
    adapter_dir: str
    log_dir: str
    threads: int

    @property
    def layout(self) -> Layout:
        return self.plan.layout

    @property
    def cuda_graphs(self) -> bool:
        """Whether workers record layers, which takes GPUs."""
        return self.layout.cuda_graphs and self.backend == "cuda"

    @property
    def train_iters(self) -> int:
        """Steps of the run."""
        assert self.plan.train_iters is not None  # the rows are prepared before there is a job
        return self.plan.train_iters

    def of_size(self, num_workers: int) -> Job:
        """The job as it is for so many workers."""
        return replace(self, plan=self.plans.get(num_workers, self.plan))

    @property
    def base_name(self) -> str:
        """The model that adapters belong to, as it is found elsewhere: a hub id, or a directory."""
        return self.spec.model.hf_model_path if self.base_revision else self.model_path

    @property
    def base_revision(self) -> str | None:
        """Its commit; None of a directory, which one with more tokens than the hub's model is."""
        return self.spec.model.hf_revision if self.spec.model.add_tokens is None else None

    def with_local_model(self) -> Job:
        """The job with its model as a directory of this machine; a hub model is fetched if it is not in the cache."""
        return replace(self, model_path=base_directory(self.model_path, self.spec.model.hf_revision))

    def on_cpus(self) -> Job:
        """The job for CPU workers that only read and write a checkpoint, without what takes a GPU."""
        spec = self.spec.model_copy(update={"moe": Moe()}).changed(
            train={"activation_offload_layers": 0},
            optimizer={"optimizer_moments": "fp32"},  # as in a checkpoint
            parallel={"megatron_fsdp": "none"},
        )
        return replace(self, spec=spec, backend="cpu")

    def alone(self) -> Job:
        """The job as that of one CPU worker, which has the whole model and every sample."""
        sizes = ("tensor", "pipeline", "context", "expert", "expert_tensor", "data")
        layout = replace(
            self.layout,
            **{f"{kind}_parallel_size": 1 for kind in sizes},
            num_workers=1,
            virtual_pipeline_parallel_size=None,
            num_layers_in_first_stage=None,
            num_layers_in_last_stage=None,
            sequence_parallel=False,
        )
        plan = replace(
            self.plan,
            layout=layout,
            layers_per_stage=[sum(self.plan.layers_per_stage)],
            padded_vocab_size=self.vocab_size,
        )
        return replace(self.on_cpus(), plan=plan)

    def here(self) -> Job:
        """The job with this machine's paths: of a run on remote storage each machine has a workspace of its own."""
        if not is_uri(self.spec.run.storage_path):
            return self
        there, root = Path(self.run_dir).parent, storage_root(self.spec.run.storage_path)

        def moved(path: str) -> str:
            return str(root / Path(path).relative_to(there)) if path and Path(path).is_relative_to(there) else path

        return replace(
            self,
            run_dir=moved(self.run_dir),
            checkpoint_dir=moved(self.checkpoint_dir),
            load_dir=moved(self.load_dir),
            hf_dir=moved(self.hf_dir),
            adapter_dir=moved(self.adapter_dir),
            log_dir=moved(self.log_dir),
            data_dir=moved(self.data_dir),
            model_path=moved(self.model_path),
        )

    def to_json(self) -> str:
        plans = {size: plan.to_dict() for size, plan in self.plans.items()}
        written = {"spec": json.loads(spec_to_json(self.spec)), "plan": self.plan.to_dict(), "plans": plans}
        return json.dumps({**self.__dict__, **written})

    @staticmethod
    def from_json(text: str) -> Job:
        fields = json.loads(text)
        read = {
            "spec": spec_from_json(json.dumps(fields["spec"])),
            "plan": Plan.from_dict(fields["plan"]),
            "plans": {int(size): Plan.from_dict(plan) for size, plan in fields["plans"].items()},
        }
        return Job(**fields | read)

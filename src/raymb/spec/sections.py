"""The one schema: a flag exists because a field exists here.

Each class is a section of the YAML file. The text after a field becomes its `--help` line.
`bridge(...)` names the Megatron-Bridge ConfigContainer fields that a field owns, so that an
override of one of them is taken as the flag, or refused with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from raymb.spec.training import Moe, Optimizer, Parallel, Peft, Performance, Train
from raymb.spec.values import (
    Auto,
    Common,
    HubRepository,
    PathOrUri,
    Section,
    ShownAs,
    Size,
    Words,
    bridge,
    comma_words,
    json_object,
    one_or_more,
    pairs_of,
)

_TEMPLATES_OWN = ("messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message")
"""What a chat template is given without being told to."""
Change = Literal["model", "tokenizer", "data", "batch", "seed", "versions"]
"""A part of a run's fingerprint."""


Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES = get_args(Role)
"""Of a message."""

NO_DATASET = "no --dataset: training on SQuAD, as the public example does"


class Model(Section):
    hf_model_path: Common[str] = Field(min_length=1)
    """Hugging Face model: a hub id such as Qwen/Qwen2.5-0.5B, or a local directory."""
    hf_revision: str | None = None
    """Branch, tag or commit of a hub model. A run keeps to the commit that it began with."""
    init: Literal["pretrained", "random"] = "pretrained"
    """pretrained: train the model's weights; random: train from scratch, from random weights by --seed (its config.json
    and tokenizer are enough)."""
    add_tokens: Path | None = None
    """File of tokens to add to the vocabulary, a token a line; those written <|...|> are special tokens. Their rows of
    the embedding and the output layer start as the mean of all others. With --peft name both in --modules_to_save."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries. Off unless you say so."""
    recipe: str | None = None
    """Recipe of Megatron-Bridge to start from, such as qwen25_500m_sft_config (raymb recipes list): its model, layout,
    batch, optimizer and adapters, where no YAML and no flag says otherwise."""


class Data(Section):
    dataset: Common[Words] = Field(default=[])
    """JSONL, JSON, CSV, TSV or Parquet file, glob, directory or URI; hub id; squad, gsm8k, tulu3, openmathinstruct2 or
    sample. A URI is s3://... and the like, a hub id owner/name with ?config=&split=&revision=, `sample` the dialogues
    of the chatterbot-corpus package. Repeatable; a:0.7 and b:0.3 mix by weight, a:2 uses the rows of a twice, a#500 its
    first 500. Default: squad, as Megatron-Bridge's public example."""
    validation_dataset: str | None = None
    """Rows to validate on; default: the data set's own validation rows, else --validation_split of its rows."""
    test_dataset: str | None = None
    """Rows for a last test after training; default: the data set's own test rows, else --test_split of its rows."""
    max_samples: Size | None = None
    """Rows of each --dataset to use, the first ones; default: all. --dataset NAME#500 says it of one."""
    data_seed: int | None = Field(default=None, ge=1)
    """Seed of the rows' order, of those that are held out and of mixing; default: --seed."""
    streaming: bool | Auto = "auto"
    """Read hub data sets without a copy of their files on the disk. auto: those that the disk has no room for."""
    validation_split: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the rows held out for validation, where the data set has none of its own; 0 for none."""
    test_split: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the rows held out for the test, where the data set has none of its own."""
    seq_length: Common[Size] = bridge("model.seq_length", "dataset.seq_length", default=512)
    """Tokens in a row. Longer samples are cut (see --long_rows), shorter ones padded or packed."""
    packing: Common[bool] = bridge(
        "dataset.enable_offline_packing",
        "dataset.enable_in_batch_packing",
        "dataset.offline_packing_specs",
        default=False,
    )
    """Put several samples into a row, each with attention and positions of its own. A batch counts packed rows."""
    prompt_column: str | None = None
    """Column of the prompt; default: prompt."""
    completion_column: str | None = None
    """Column of the completion; default: completion."""
    messages_column: str | None = None
    """Column of the conversation; default: messages, conversations or conversation."""
    text_column: str | None = None
    """Column of documents, of which every token is trained, in pieces of --seq_length; default: text."""
    message_keys: Annotated[dict[str, str], pairs_of("role", "content")] = Field(default_factory=dict)
    """What the rows' messages call their keys, such as role=speaker,content=text."""
    role_names: Annotated[dict[str, str], pairs_of(*ROLES)] = Field(default_factory=dict)
    """What the rows' messages call their roles, such as user=customer,assistant=agent."""
    apply_chat_template: bool = True
    """Put rows of instruction and output, of question and answer, and of prompt, completion and system into the model's
    chat template, if it has one; else they are trained as plain texts."""
    prompt_template: str | None = None
    """Prompt made of columns, for example "Q: {question} A:"."""
    completion_template: str | None = None
    """Completion made of columns, for example " {answer}"."""
    chat_template: Path | None = None
    """File with a Jinja chat template instead of the tokenizer's own."""
    chat_template_kwargs: Annotated[dict[str, Any], json_object(*_TEMPLATES_OWN)] = Field(default_factory=dict)
    """Variables of the chat template, a JSON object such as '{"enable_thinking": false}'."""
    system_prompt: str | None = Field(default=None, min_length=1)
    """System message of the conversations that have none."""
    keep_reasoning: bool = False
    """Have the chat template keep the reasoning of earlier turns, where it has a switch for that."""
    loss_mode: Literal["assistant", "last_turn", "full"] = "assistant"
    """What is trained: completions and assistant turns, the last assistant turn only, or every token."""
    train_on_roles: Annotated[list[Role], BeforeValidator(comma_words)] = Field(default=["assistant"], min_length=1)
    """Whose messages are trained, such as assistant,tool."""
    long_rows: Literal["truncate", "drop", "fail"] = "truncate"
    """What becomes of samples longer than --seq_length; truncate cuts their end."""
    bad_rows: Literal["fail", "drop"] = "fail"
    """What becomes of rows that cannot be used; fail names the first ones."""

    @property
    def named(self) -> list[str]:
        """--dataset, or what is trained on without it: what Megatron-Bridge's public example trains on."""
        return self.dataset or ["squad"]


class Evaluation(Section):
    eval_interval: Common[int] = bridge("validation.eval_interval", default=50, ge=0)
    """Steps between validations; 0 for none."""
    eval_at_start: bool | Auto = "auto"
    """Validate before the first step, too, so that what training brought is seen; auto: where it costs less than 2 % of
    the run. The flag alone is true, --no_eval_at_start false."""
    max_validation_samples: Size | None = bridge("validation.eval_iters", default=None)
    """How many of the validation rows are kept, the same ones for the same --data_seed; default: all. A validation is
    of every row that is kept, the test of every test row."""
    early_stopping_patience: Size | None = None
    """Stop after this many validations in a row without an improvement."""
    early_stopping_threshold: float = Field(default=0.0, ge=0)
    """How much lower the validation loss must be to count as an improvement."""


class Checkpoint(Section):
    save_interval: Common[int] = bridge("checkpoint.save_interval", default=50, ge=0)
    """Steps between checkpoints. The last step is always saved; 0: only the last."""
    resume: Common[Annotated[str, ShownAs("auto|never|PATH")]] = Field(default="auto", min_length=1)
    """auto: from the newest checkpoint in the run directory; never: refuse a used one; PATH: from that checkpoint
    directory."""
    async_save: bool = bridge("checkpoint.async_save", default=True)
    """Write checkpoints while the training continues."""
    parallel_save: bool = bridge("checkpoint.fully_parallel_save", default=True)
    """Data parallel workers share the writing; else the first of them writes what all have."""
    parallel_load: bool = bridge("checkpoint.fully_parallel_load", default=False)
    """Data parallel workers read a share each and exchange it over the network; for slow storage."""
    keep_last: int | None = bridge("checkpoint.most_recent_k", default=None, ge=0)
    """Checkpoints to keep, the newest ones; 0: all. Default: 3, and all that there were when a checkpoint was written
    with --keep_last 0 or by a raymb before this default: only a number that is given deletes those."""
    keep_best: int | None = Field(default=None, ge=0)
    """Checkpoints to keep besides, those with the lowest --best_metric. Default: 1, or none where --keep_last is
    given."""
    best_metric: Literal["validation_loss", "train_loss"] = "validation_loss"
    """What makes a checkpoint the best one: the lowest value at its step."""
    output_dir: Path | None = bridge("checkpoint.save", "checkpoint.load", default=None)
    """Where checkpoints go, instead of the run directory's checkpoints/."""
    export_hf: bool = True
    """At the end write the tuned model as a Hugging Face directory, hf/ in the run directory; with --peft the adapters
    as a PEFT directory, adapter/."""
    merge: bool = False
    """With --peft write the whole model with its adapters worked in, too, as hf/."""
    export_checkpoint: Literal["latest", "best"] = "latest"
    """Which checkpoint is written at the end: the last step's, or the one with the lowest --best_metric."""
    save_hf_interval: Size | None = None
    """Steps between exports during the training, to hf-step-N/ or adapter-step-N/: a multiple of --save_interval."""
    export_dtype: Literal["source", "bf16", "fp16", "fp32"] = "source"
    """Type of the exported model's tensors; source: as in the model that the training started from."""
    push_to_hub: HubRepository | None = None
    """Push the verified export to this repository of the Hugging Face hub, which is made if it is not there; the merged
    model beside an adapter to OWNER/NAME-merged. The token is HF_TOKEN's, or that of hf auth login."""
    hub_public: bool = False
    """With --push_to_hub: a public repository; default: private."""
    overwrite: bool = False
    """Delete the run directory's old content first."""
    accept_changes: Annotated[list[Change], BeforeValidator(one_or_more)] = Field(default=[])
    """Resume from checkpoints although this differs from the run that wrote them: model, tokenizer, data, batch, seed
    or versions. Repeatable."""


class Resilience(Section):
    max_failures: int = Field(default=3, ge=0)
    """Restarts after failures before the run gives up; preemptions are counted apart."""
    max_preemptions: int | None = Field(default=None, ge=0)
    """Restarts after preempted nodes; default: no limit."""
    grace_time: float = Field(default=30.0, ge=0)
    """Seconds that Ctrl-C, SIGTERM or a preemption leave for a last checkpoint, or twice what the one before took, if
    that is more; 0 for none."""
    max_time: Annotated[str, ShownAs("TIME")] | None = Field(
        default=None, pattern=r"^(\d+(\.\d+)?[smhd]?|(\d+-)?\d+:\d\d(:\d\d)?)$"
    )
    """Stop with a checkpoint after this time: seconds, 90m, 2h, 1d, or [DAYS-]HH:MM[:SS]. The same command resumes."""
    hang_timeout: float = Field(default=1800.0, ge=0)
    """Seconds without progress after which a rank's stacks are written and the workers restart; 0 for never. Files that
    are read, written or downloaded are progress, at 1 MiB/s or more."""
    nccl_timeout: float = bridge("dist.distributed_timeout_minutes", default=1800.0, gt=0)
    """Seconds after which a collective that some rank has not joined fails, on GPUs (NCCL) and CPUs (gloo); those of
    Megatron's groups in whole minutes, rounded up. A rank that has work for all meanwhile needs more."""
    bad_loss: Literal["fail", "skip", "rollback"] = bridge("train.iterations_to_skip", default="fail")
    """What a NaN (or --loss_spike) does: end the run; leave the step's update out; or go back to the newest checkpoint
    and leave the step's batch out."""
    loss_spike: float | None = Field(default=None, gt=1)
    """A loss of more than this many times the median of the last 32 steps counts as bad, too. One more collective a
    step."""

    def grace(self, last_save: float) -> float:
        """Seconds for a last checkpoint, where the one before took so many."""
        return self.grace_time and max(self.grace_time, 2 * last_save)


class Run(Section):
    storage_path: Common[PathOrUri] = "raymb-runs"
    """Directory that holds runs; on a cluster every node must see it. Or a URI (s3://bucket/prefix), with which
    every node works in a directory of its own below RAYMB_CACHE (default: ~/.cache/raymb)."""
    experiment_name: Common[str | None] = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run directory. Default: made from model and layout, so the same command finds its run again."""
    backend: Common[Literal["auto", "cuda", "cpu"]] = "auto"
    """auto: CUDA on a Ray cluster that is joined, and on a machine with GPUs; otherwise CPU."""
    log_interval: Size = bridge("logger.log_interval", default=10)
    """Steps between lines of Megatron's own log (in the run directory's logs/)."""
    sample_prompt: str | None = None
    """After training, print the base and the tuned model's answer to this prompt (`held-out`: from the
    validation rows)."""


class Telemetry(Section):
    wandb_project: Common[str | None] = bridge(
        "logger.wandb_project", "logger.wandb_exp_name", "logger.wandb_save_dir", default=None, min_length=1
    )
    """Weights & Biases project that metrics go to, too. WANDB_MODE=offline keeps them in the run directory."""
    wandb_entity: str | None = bridge("logger.wandb_entity", default=None, min_length=1)
    """User or team that owns --wandb_project; default: your own."""
    mlflow_experiment: str | None = bridge(
        "logger.mlflow_experiment", "logger.mlflow_run_name", default=None, min_length=1
    )
    """MLflow experiment that metrics go to, too."""
    mlflow_tracking_uri: str | None = bridge("logger.mlflow_tracking_uri", default=None, min_length=1)
    """MLflow server, database or directory; default: MLFLOW_TRACKING_URI, else MLflow's own."""


class Cluster(Section):
    ray_address: Common[str | None] = None
    """Ray cluster to join, HOST:PORT; local: one that starts and ends with the run. Default: the RAY_ADDRESS variable,
    else the cluster that runs on this machine, else local."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Auto = "auto"
    """CPUs that Ray reserves for a worker. auto: 1, or less where CPU workers outnumber the cluster's CPUs."""
    gpu: str = "auto"
    """GPU to plan for, such as h100-80gb, h200, a100-80gb, l4; auto: the one at hand, else h100-80gb."""
    gpus_per_node: Size | None = None
    """Workers that a node holds, for the plan; Ray places the workers. Default: 8, or all workers if there are less."""
    host_memory: Annotated[float, Field(gt=0)] | Auto = "auto"
    """GiB of memory of a node, for an optimizer on the host. auto: this machine's, or what Ray says of its nodes;
    where nobody knows nothing is refused for it."""
    placement: Literal["pack", "spread"] = "pack"
    """How Ray places the workers: on as few nodes as have room for them, or on as many as there are. The ranks of a
    tensor parallel group come onto one node either way."""
    omp_num_threads: Size | None = None
    """OMP_NUM_THREADS of a worker; default: the CPUs of the machine shared among its workers (CPU), 1 (CUDA)."""
    wait_for_resources: Annotated[float, Field(ge=0)] | Auto = "auto"
    """Seconds to wait for the cluster to have the resources that the plan needs, and to have them free. auto: 60, or
    900 where an autoscaler can bring nodes, or a run that has trained waits for a node to come back."""
    working_dir: Path | None = None
    """Directory to upload to the cluster: the workers start in a copy of it, and have this raymb, too; their other
    packages must be there. For `.`, leave large files out with .gitignore."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the workers, as NAME=VALUE, or NAME alone with the value that it has here (repeatable).
    Where NAME is not known to be harmless, no file, no log and no list of Ray's gets the value, and no command line but
    the one that was typed."""


class RunSpec(Section):
    """Everything a user can say about a run. Frozen; no field is filled in from disk, hub, cluster or GPU."""

    model: Model
    data: Data = Data()
    parallel: Parallel = Parallel()
    train: Train = Train()
    peft: Peft = Peft()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    performance: Performance = Performance()
    moe: Moe = Moe()
    resilience: Resilience = Resilience()
    run: Run = Run()
    telemetry: Telemetry = Telemetry()
    cluster: Cluster = Cluster()
    overrides: dict[str, Any] = Field(default_factory=dict)
    """ConfigContainer fields by path (`optimizer.decoupled_lr: 1e-4`) that no flag owns."""

    def changed(self, **sections: Mapping[str, Any]) -> RunSpec:
        """The spec with other values, by section and field, which are not checked again."""
        copies = {name: getattr(self, name).model_copy(update=dict(values)) for name, values in sections.items()}
        return self.model_copy(update=copies)

    @property
    def data_seed(self) -> int:
        """Of all that is drawn among rows: --data_seed, else --seed."""
        return self.train.seed if self.data.data_seed is None else self.data.data_seed


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in RunSpec.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""Section name to class, in the order of the YAML file and of --help."""

SECTION_OF_FLAG: dict[str, str] = {flag: name for name, section in SECTIONS.items() for flag in section.model_fields}
"""Flag name (without dashes) to section name. Flag names are unique over all sections."""

FLAG_THAT_OWNS: dict[str, str] = {
    path: flag
    for section in SECTIONS.values()
    for flag, field in section.model_fields.items()
    for path in (field.json_schema_extra or {}).get("bridge", [])  # type: ignore[union-attr]
}
"""ConfigContainer path to the flag that owns it."""

"""Flags that contradict each other: what one section's schema cannot say."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raymb.credentials import has_credentials
from raymb.spec.sections import Checkpoint, Data, RunSpec, Telemetry
from raymb.spec.training import Moe, Parallel, Peft, Performance, Train
from raymb.spec.values import Section, bounds


def conflicts(spec: RunSpec) -> list[str]:
    """A sentence for each contradiction, with the flags."""
    return [
        *_data(spec.data),
        *_parallel(spec.parallel),
        *_train(spec),
        *_recompute(spec.train),
        *_optimizer(spec),
        *_fsdp(spec),
        *_moe(spec.moe),
        *_overrides(spec.overrides),
        *_adapters(spec.peft, spec.checkpoint),
        *_frozen(spec),
        *_initial(spec),
        *_evaluation(spec),
        *_exports(spec),
        *_performance(spec.performance),
        *_cuda_graphs(spec),
        *_credentials(spec),
        *_storage(spec),
        *_telemetry(spec.telemetry),
    ]


def _parallel(parallel: Parallel) -> Iterator[str]:
    given = {"num_workers": parallel.num_workers, "data_parallel_size": parallel.data_parallel_size}
    given = {flag: asked for flag, asked in given.items() if asked != "auto"}
    for flag, asked in given.items():
        low, high = bounds(asked)
        if low > high:
            yield f"--{flag} {asked} is MIN:MAX, and {low} is more than {high}; write --{flag} {high}:{low}"
    ranges = [flag for flag, asked in given.items() if isinstance(asked, str)]
    numbers = [flag for flag in given if flag not in ranges]
    if ranges and numbers:
        elastic, fixed = ranges[0], numbers[0]
        yield (
            f"--{elastic} {given[elastic]} is MIN:MAX and --{fixed} {given[fixed]} is one number, with which nothing "
            f"could grow or shrink; write --{fixed} as MIN:MAX, too, or leave one of them out"
        )


def _train(spec: RunSpec) -> Iterator[str]:
    if spec.train.train_iters is not None and spec.train.num_epochs is not None:
        yield (
            f"--train_iters {spec.train.train_iters} and --num_epochs {spec.train.num_epochs:g} both say how long to "
            f"train; give one of them"
        )


def _recompute(train: Train) -> Iterator[str]:
    wanted = {"recompute_method": "full", "recompute_num_layers": "full", "recompute_modules": "selective"}
    for flag, kind in wanted.items():
        if getattr(train, flag) and train.recompute != kind:
            yield f"--{flag} needs --recompute {kind}, and it is {train.recompute}; set it, or leave --{flag} out"
    if train.activation_offload_layers and train.recompute in ("selective", "full"):
        yield (
            f"--activation_offload_layers {train.activation_offload_layers} and --recompute {train.recompute} exclude "
            f"each other in Megatron-Core 0.19.2; drop one of them"
        )


def _optimizer(spec: RunSpec) -> Iterator[str]:
    optimizer, offload = spec.optimizer, spec.optimizer.optimizer_offload
    offloaded = offload not in ("auto", 0.0)
    if optimizer.optimizer_moments == "bf16" and offloaded:
        yield f"--optimizer_moments bf16 with --optimizer_offload {offload:g}: the host's moments are fp32; drop one"
    if optimizer.optimizer_moments == "bf16" and "fp8" in spec.train.precision:
        yield (
            f"--optimizer_moments bf16 with --precision {spec.train.precision}: Megatron-Core 0.19.2 has another "
            f"optimizer under FP8, whose checkpoints no other layout can resume from; drop one"
        )
    if not optimizer.distributed_optimizer:
        others = {
            f"--optimizer_offload {offload}": offloaded,
            "--optimizer_moments bf16": optimizer.optimizer_moments == "bf16",
            "--overlap_param_gather": spec.performance.overlap_param_gather,
        }
        for other in (flag for flag, given in others.items() if given):
            yield f"{other} needs the distributed optimizer; leave --no_distributed_optimizer out"


def _fsdp(spec: RunSpec) -> Iterator[str]:
    """What is not possible with Megatron-FSDP: in Megatron-Core 0.19.2, or with checkpoints that have to be whole."""
    strategy, optimizer = spec.parallel.megatron_fsdp, spec.optimizer
    others = {
        "--no_distributed_optimizer": not optimizer.distributed_optimizer,
        f"--optimizer_offload {optimizer.optimizer_offload}": optimizer.optimizer_offload not in ("auto", 0.0),
        f"--optimizer_moments {optimizer.optimizer_moments}": optimizer.optimizer_moments != "fp32",
        f"--activation_offload_layers {spec.train.activation_offload_layers}": spec.train.activation_offload_layers,
        f"--precision {spec.train.precision}": "fp8" in spec.train.precision,
        f"--peft {spec.peft.peft}": spec.peft.peft != "none",
    }
    for other in (flag for flag, given in others.items() if given and strategy != "none"):
        yield f"{other} is not possible with --megatron_fsdp {strategy}; drop one of them"


def _moe(moe: Moe) -> Iterator[str]:
    balancing = moe.moe_load_balancing
    if balancing in ("none", "sinkhorn") and moe.moe_aux_loss_coeff:
        yield (
            f"--moe_aux_loss_coeff {moe.moe_aux_loss_coeff:g} is the weight of a loss that --moe_load_balancing "
            f"{balancing} does not have; drop one of them"
        )
    if balancing == "sinkhorn" and moe.moe_capacity_factor:
        yield "--moe_capacity_factor is not possible with --moe_load_balancing sinkhorn; drop one of them"
    if moe.moe_shared_expert_overlap and moe.moe_token_dispatcher == "allgather":
        yield "--moe_shared_expert_overlap needs --moe_token_dispatcher alltoall; drop one of them"


_NOT_POSSIBLE = {
    "dist.use_torch_fsdp2": "Bridge 0.6.2 cannot save what torch's FSDP2 trains; --megatron_fsdp shares weights, too",
    "model.cpu_offloading_weights": (
        "Transformer Engine 2.20 takes no weights to the host any more (its cpu_offload.py ignores it); "
        "--optimizer_offload takes the optimizer's, --activation_offload_layers activations"
    ),
}


def _overrides(overrides: Mapping[str, object]) -> Iterator[str]:
    for path in overrides:
        if path in _NOT_POSSIBLE:
            yield f"override {path}: {_NOT_POSSIBLE[path]}"


def _adapters(peft: Peft, checkpoint: Checkpoint) -> Iterator[str]:
    if checkpoint.merge and (peft.peft == "none" or not checkpoint.export_hf):
        other = "--no_export_hf" if peft.peft != "none" else "--peft none"
        yield f"--merge works adapters into the exported model, and {other} leaves nothing to merge; drop one of them"
    if peft.peft == "dora" and peft.lora_dropout:
        yield (
            f"--lora_dropout {peft.lora_dropout:g} with --peft dora: Bridge 0.6.2 draws a mask of its own for each "
            f"term of a DoRA layer (peft/dora_layers.py); leave it out"
        )
    unused = [flag for flag, field in Peft.model_fields.items() if getattr(peft, flag) != field.default]
    if peft.peft == "none" and unused:
        yield f"--{unused[0]} says how adapters are, and --peft none trains the whole model; add --peft lora"


def _frozen(spec: RunSpec) -> Iterator[str]:
    flag = next((flag for flag in ("freeze", "unfreeze") if getattr(spec.train, flag)), None)
    if flag and spec.peft.peft != "none":
        yield (
            f"--{flag} is for training the model itself, and --peft {spec.peft.peft} freezes the whole of it (but for "
            f"--modules_to_save); drop one of them"
        )
    if flag and spec.parallel.fsdp:
        yield (f"--{flag} has not been tried with --megatron_fsdp {spec.parallel.megatron_fsdp}; leave one of them out")


def _initial(spec: RunSpec) -> Iterator[str]:
    if spec.model.init == "random" and spec.peft.peft != "none":
        yield (
            f"--init random makes weights that only training the whole model can train, and --peft {spec.peft.peft} "
            f"trains adapters beside frozen weights; drop one of them"
        )


def _evaluation(spec: RunSpec) -> Iterator[str]:
    if spec.evaluation.eval_at_start is True and not spec.evaluation.eval_interval:
        yield "--eval_at_start needs validations: --eval_interval more than 0; or leave it out"


def _exports(spec: RunSpec) -> Iterator[str]:
    checkpoint, interval = spec.checkpoint, spec.checkpoint.save_hf_interval
    if interval and (not checkpoint.save_interval or interval % checkpoint.save_interval):
        yield (
            f"--save_hf_interval {interval} must be a multiple of --save_interval {checkpoint.save_interval}: "
            f"an export is made from a checkpoint"
        )
    if not checkpoint.export_hf and (interval or checkpoint.export_checkpoint == "best"):
        flag = "--save_hf_interval" if interval else "--export_checkpoint best"
        yield f"{flag} says what to export, and --no_export_hf leaves exports out; drop one of them"
    if checkpoint.push_to_hub and not checkpoint.export_hf:
        yield "--push_to_hub pushes the export, and --no_export_hf leaves exports out; drop one of them"
    if checkpoint.hub_public and not checkpoint.push_to_hub:
        yield "--hub_public says how --push_to_hub makes its repository; add that, or leave it out"
    no_loss = checkpoint.best_metric == "validation_loss" and not spec.evaluation.eval_interval
    if checkpoint.export_checkpoint == "best" and no_loss:
        yield ("--export_checkpoint best needs validations: --eval_interval more than 0, or --best_metric train_loss")


def _performance(performance: Performance) -> Iterator[str]:
    if performance.overlap_param_gather and not performance.overlap_grad_reduce:
        yield "--overlap_param_gather needs --overlap_grad_reduce, too"
    if performance.profiler == "nsys" and not performance.profile_steps:
        yield "--profiler nsys says what --profile_steps uses, and that is not given; add --profile_steps FIRST:LAST"
    first, last = bounds(performance.profile_steps or 1)
    if first > last:
        yield f"--profile_steps {first}:{last} is FIRST:LAST, and {first} is more than {last}; write {last}:{first}"


def _cuda_graphs(spec: RunSpec) -> Iterator[str]:
    if spec.performance.cuda_graphs is True:
        for why in without_cuda_graphs(spec):
            yield f"{why} with --cuda_graphs; drop one of them"


def without_cuda_graphs(spec: RunSpec) -> Iterator[str]:
    """What CUDA graphs cannot record, and what was never compared with and without them: the flags, and how they are
    "with" them."""
    train, strategy = spec.train, spec.parallel.megatron_fsdp
    impossible = {
        "--packing": spec.data.packing,
        f"--activation_offload_layers {train.activation_offload_layers}": train.activation_offload_layers,
    }
    untried = {
        "--recompute full": train.recompute == "full",
        f"--recompute_modules {','.join(train.recompute_modules)}": set(train.recompute_modules) - {"core_attn"},
        f"--megatron_fsdp {strategy}": spec.parallel.fsdp,
        "--precision mxfp8": train.precision == "mxfp8",
    }
    for others, how in ((impossible, "is not possible"), (untried, "has not been tried")):
        yield from (f"{flag} {how}" for flag, given in others.items() if given)


def _credentials(spec: RunSpec) -> Iterator[str]:
    for name in type(spec).model_fields:
        section = getattr(spec, name)
        if isinstance(section, Section):
            yield from stored_credentials(section)
    for path, value in spec.overrides.items():
        if any(map(has_credentials, _texts(value))):
            yield f"override {path}: {_STORED}; {_IN_ENVIRONMENT}"


def stored_credentials(section: Section) -> Iterator[str]:
    """A sentence for each flag of a section with a password or a token in an address. What it is is not said, because a
    message may end up in a log."""
    for flag in type(section).model_fields:
        if flag != "env" and any(map(has_credentials, _texts(getattr(section, flag)))):
            yield f"--{flag}: {_STORED}; {_ELSEWHERE.get(flag, _IN_ENVIRONMENT)}"


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from (text for item in value.items() for part in item for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in _texts(item))


_STORED = "a password or token in the URI would be stored with the run"
_IN_ENVIRONMENT = "give it in the environment (HF_TOKEN, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, FSSPEC_..., ...)"
_ELSEWHERE = {
    "mlflow_tracking_uri": "give it in the environment (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_URI as a whole)",
    "address": "a token comes from RAY_AUTH_TOKEN or ~/.ray/auth_token",
}
"""Flag to where else it can be given."""


def _storage(spec: RunSpec) -> Iterator[str]:
    path, output_dir = spec.run.storage_path, str(spec.checkpoint.output_dir or "")
    if not path:
        yield "--storage_path must not be empty"
    if "://" in path and not path.partition("://")[2].strip("/"):
        yield f"--storage_path {path}: names no bucket or directory; s3://bucket/prefix is expected"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", output_dir):  # a Path has one slash left
        yield f"--output_dir {output_dir}: must be a directory; --storage_path takes a URI"


def _telemetry(telemetry: Telemetry) -> Iterator[str]:
    for flag, needed in {"wandb_entity": "wandb_project", "mlflow_tracking_uri": "mlflow_experiment"}.items():
        if getattr(telemetry, flag) is not None and getattr(telemetry, needed) is None:
            yield f"--{flag} says where, and nothing is sent without --{needed}; add it, or leave --{flag} out"


def _data(data: Data) -> Iterator[str]:
    templates = {"prompt_template": data.prompt_template, "completion_template": data.completion_template}
    given = [name for name, template in templates.items() if template is not None]
    if len(given) == 1:
        other = next(name for name in templates if name not in given)
        yield f"--{given[0]} needs --{other}, too: they make the two texts of a row"
    for name in given:
        try:
            template_columns(templates[name] or "")
        except ValueError as error:
            yield f"--{name} {templates[name]}: {error}"
    names = ("prompt_column", "completion_column", "messages_column", "text_column")
    columns = [name for name in names if getattr(data, name)]
    if given and columns:
        yield f"--{given[0]} and --{columns[0]} both say what a row's text is; give one of them"
    alone = next((name for name in ("messages_column", "text_column") if name in columns), "")
    if alone and len(columns) > 1:
        other = next(name for name in columns if name != alone)
        yield f"--{alone} and --{other} are two kinds of rows; give one of them"
    renamed = next((name for name in ("message_keys", "role_names") if getattr(data, name)), "")
    no_messages = [*given, *(name for name in columns if name == "text_column")]
    if renamed and no_messages:
        yield f"--{renamed} is of messages, and with --{no_messages[0]} rows have none; give one of them"
    if data.loss_mode == "full" and data.train_on_roles != ["assistant"]:
        yield (
            f"--train_on_roles {','.join(data.train_on_roles)} says whose messages are trained, and --loss_mode full "
            f"trains all; drop one of them"
        )
    if data.validation_split + data.test_split >= 1:
        yield (
            f"--validation_split {data.validation_split:g} and --test_split {data.test_split:g} leave no rows to train "
            f"on; together they must be less than 1"
        )


def template_columns(template: str) -> list[str]:
    """The columns that a template names in braces.

    Raises:
        ValueError: no template, or a placeholder that is no plain name.
    """
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    if not names or not all(name.replace("-", "_").isidentifier() for name in names):
        raise ValueError("columns are named in braces, for example {instruction}; {{ and }} are plain braces")
    return names

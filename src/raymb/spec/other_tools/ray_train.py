"""Ray Train's FSDP2 guide: code, so that it is for people only."""

from __future__ import annotations

from raymb.spec.other_tools.record import Key, Tool


def _code(theirs: str, flags: str = "", note: str = "") -> Key:
    return Key((theirs,), tuple(flags.split()), note, None)


RAY_TRAIN = Tool(
    "ray-train",
    "the guide's code",
    keys=(
        _code("ScalingConfig(num_workers=2, use_gpu=True)", "num_workers", "and `run.backend: cuda`"),
        _code("RunConfig(storage_path=..., name=...)", "storage_path experiment_name"),
        _code("FailureConfig(max_failures=1)", "max_failures"),
        _code('train_loop_config["epochs"]', "num_epochs"),
        _code('train_loop_config["learning_rate"]', "learning_rate"),
        _code('train_loop_config["batch_size"]', "global_batch_size", "the guide's is a worker's: times the workers"),
        _code("Adam(...)", "", "AdamW; `optimizer.weight_decay: 0` for Adam"),
        _code("fully_shard(model): optimizer state", "distributed_optimizer", "on by default"),
        _code(
            "fully_shard(model): gradients and weights",
            "megatron_fsdp",
            "`optim_grads_params`; or tensor and pipeline parallel, of which `auto` takes what fits; see below",
        ),
        _code("reshard_after_forward=False", "megatron_fsdp", "`optim_grads`: weights stay whole"),
        _code(
            "CPUOffloadPolicy()",
            "optimizer_offload",
            "fp32 weights, moments and their gradients go to the host; bf16 weights stay",
        ),
        _code(
            "MixedPrecisionPolicy(param_dtype=float16)",
            "precision",
            "`bf16`: no fp16, because bf16 needs no loss scaling",
        ),
        _code("MixedPrecisionPolicy(reduce_dtype=float16)", "grad_reduce_in_fp32", "`false` is bf16"),
        _code(
            "init_device_mesh((world_size,))",
            "data_parallel_size",
            "`num_workers` says the same; a mesh of two dimensions is this and `tensor_parallel_size`",
        ),
        _code("prepare_data_loader", "dataset", "rows are prepared once, and every rank reads its own"),
        _code("train.report(metrics, checkpoint)", "save_interval", "metrics come without waiting"),
        _code("dcp.save, dcp.load, get_checkpoint()", "", "resume is automatic, in another number of workers, too"),
        _code("get_model_state_dict(full_state_dict=True)", "export_hf", "on by default, as a Hugging Face directory"),
        _code("torch.profiler.profile(...)", "profile_steps", '`"10:15"`'),
    ),
)

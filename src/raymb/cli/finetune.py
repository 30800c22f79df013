"""`raymb finetune`: check everything, then train on Ray."""

from __future__ import annotations

import typer

from raymb.spec.sections import RunSpec


def command(
    spec: RunSpec,
    dry_run: bool = typer.Option(
        False, "--dry_run", help="Check the input, show what would run, and stop.", show_default=False
    ),
) -> int:
    """Fine-tune a Hugging Face model and leave metrics and checkpoints in STORAGE_PATH/EXPERIMENT_NAME.

    Examples:
      raymb finetune --hf_model_path Qwen/Qwen2.5-0.5B --dataset squad --num_workers 8 --tp 2 \\
          --train_iters 100 --global_batch_size 64 --seq_length 512
      raymb finetune --hf_model_path Qwen/Qwen2.5-7B --dataset rows.jsonl --num_workers 1 --peft lora \\
          --num_epochs 3 --global_batch_size 16 --seq_length 2048 --packing --learning_rate 2e-4
    """
    from rich.console import Console

    from raymb.driver.ahead import import_ray
    from raymb.driver.preflight import preflight
    from raymb.telemetry import startup

    startup.command_begins(startup.process_began())
    console = Console(stderr=True)
    if dry_run:
        from raymb.cli.dry_run import print_dry_run

        print_dry_run(preflight(spec, console))
        return 0
    checked = preflight(spec, console, beside_rows=import_ray)
    from raymb.launch import run

    return run(checked)

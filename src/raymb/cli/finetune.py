"""`raymb finetune`: check everything, then train on Ray."""

from __future__ import annotations

import typer

from raymb.spec.sections import RunSpec


def command(
    spec: RunSpec,
    dry_run: bool = typer.Option(
        False, "--dry_run", help="Check the input, print what would run, and stop before Ray.", show_default=False
    ),
) -> int:
    """Fine-tune a Hugging Face model and leave metrics and checkpoints in STORAGE_PATH/EXPERIMENT_NAME."""
    from rich.console import Console

    from raymb.driver.preflight import preflight

    checked = preflight(spec, Console(stderr=True))
    if dry_run:
        from raymb.cli.dry_run import print_dry_run

        print_dry_run(checked)
        return 0
    from raymb.launch import run

    return run(checked)

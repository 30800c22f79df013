"""`raymb export`: a run's checkpoint as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raymb.cli.generate import TRUST


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory: STORAGE_PATH/EXPERIMENT_NAME.")],
    checkpoint: Annotated[str, typer.Option(metavar="best|latest|STEP", help="Which checkpoint.")] = "latest",
    merge: Annotated[bool, typer.Option("--merge", help="Of a run with adapters also write the merged model.")] = False,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to, instead of RUN/hf or RUN/adapter.")] = None,
    export_dtype: Annotated[
        str | None, typer.Option("--export_dtype", metavar="source|bf16|fp16|fp32", help="Type of the tensors.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option("--push_to_hub", metavar="OWNER/NAME", help="Push it to the hub; private if new.")
    ] = None,
    hub_public: Annotated[bool, typer.Option("--hub_public", help="The repository is public.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust_remote_code", help=TRUST)] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="On Ray workers, in the checkpoint's layout: none has the whole model.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray_address", metavar="ADDRESS", help="Ray cluster for --ray; default: as for finetune."),
    ] = None,
) -> int:
    """Write a checkpoint of a finished or stopped run as a Hugging Face model, or as a PEFT adapter, whatever layout
    it was trained with. Takes no GPU.

    Examples:
      raymb export raymb-runs/my-run --checkpoint best
      raymb export raymb-runs/my-run --merge --to merged --export_dtype bf16
    """
    from rich.console import Console

    from raymb.driver.exporting import export
    from raymb.errors import SpecError
    from raymb.export.later import ExportRequest
    from raymb.spec import load_section
    from raymb.spec.sections import Checkpoint

    types = ("source", "bf16", "fp16", "fp32")
    if export_dtype not in (None, *types):
        raise SpecError(f"--export_dtype {export_dtype}: {', '.join(types)} is expected")
    load_section(Checkpoint, {"push_to_hub": push_to_hub})  # its form
    console = Console(stderr=True)
    request = ExportRequest(
        run,
        checkpoint,
        merge,
        to,
        export_dtype,
        overwrite,
        ray,
        ray_address,
        trust_remote_code=trust_remote_code,
        repository=push_to_hub,
        hub_public=hub_public,
    )
    findings = export(request, console)
    for directory in findings["directories"]:
        print(directory)
    return 0

"""`raymb doctor`: is this environment able to train?"""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    hf_model_path: Annotated[
        str | None, typer.Option("--hf_model_path", metavar="TEXT", help="Also: can this model be read or fetched?")
    ] = None,
    storage_path: Annotated[
        str, typer.Option("--storage_path", metavar="TEXT", help="Where runs will be written: a directory or URI.")
    ] = "raymb-runs",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray_address",
            metavar="TEXT",
            help="Also each node of this Ray cluster; default: the one that finetune would join; local: none.",
        ),
    ] = None,
    allreduce: Annotated[
        bool, typer.Option("--allreduce", help="Measure all-reduce: NCCL on the GPUs, gloo between CPU workers.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="For the cluster, and for --allreduce.")
    ] = 120.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Check versions, GPUs and driver, storage, hub and cluster: one line each, ok, warning or error with the fix.
    Trains nothing. Exit code 0 without errors (warnings allowed), 1 with an error."""
    from rich.console import Console

    from raymb.doctor.examination import Question, examine
    from raymb.doctor.finding import Printer, as_object, count
    from raymb.driver.ray_address import find_ray
    from raymb.errors import EXIT_FAILED, EXIT_OK

    question = Question(hf_model_path, storage_path, find_ray(ray_address).address, allreduce, timeout)
    printer, findings = Printer(Console()), []
    with Console(stderr=True).status("") as status:
        for finding in examine(question, lambda what: status.update(f"looking at {what}")):
            findings.append(finding)
            if not json:
                printer.show(finding)
    if json:
        from json import dumps

        print(dumps(as_object(findings)))
    else:
        printer.conclude(findings)
    return EXIT_FAILED if count(findings, "error") else EXIT_OK

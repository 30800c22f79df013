"""`raymb plan`: the layout, its memory and speed, or every broken rule, from config.json alone."""

from __future__ import annotations

import typer

from raymb.spec.sections import RunSpec


def command(
    spec: RunSpec,
    json: bool = typer.Option(False, "--json", help="Print the plan as one JSON object.", show_default=False),
) -> int:
    """Show how the workers would share the work, without starting anything. Takes finetune's flags; --gpu plans for a
    cluster that one is not on.

    Examples:
      raymb plan --hf_model_path Qwen/Qwen2.5-0.5B --num_workers 8 --gpu h100-80gb --gpus_per_node 8
      raymb plan --config run.yaml --num_workers 16 --tp 4 --pp 2 --json
    """
    from raymb.driver.preflight import checked_shape, local_backend, local_gpu
    from raymb.plan import make_plan

    shape = checked_shape(spec, "config")
    plan = make_plan(spec, shape, backend=local_backend(spec), gpu=local_gpu(spec))
    if json:
        from json import dumps

        print(dumps(plan.to_dict()))
    else:
        from raymb.plan.table import print_plan

        print_plan(plan, shape, spec)
    return 0

"""What `raymb finetune --dry_run` prints: the plan, the data, and the resolved spec as a file for --config."""

from __future__ import annotations

from raymb.driver.preflight import Preflight, validation_line
from raymb.plan.table import print_plan
from raymb.spec import spec_as_yaml


def print_dry_run(checked: Preflight) -> None:
    """Print to standard output; secret-looking environment variables are left out."""
    print_plan(checked.plan, checked.shape, checked.spec)
    print(f"\n{checked.prepared.summary()}")
    if line := validation_line(checked):
        print(line)
    print("\n# the resolved spec, as YAML for --config")
    print(spec_as_yaml(checked.spec), end="")

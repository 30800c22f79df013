"""What `raymb finetune --dry_run` prints: the plan, the data, and the resolved spec as a file for --config."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from raymb.plan.table import print_plan

if TYPE_CHECKING:
    from raymb.preflight import Preflight
    from raymb.spec.sections import RunSpec

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def print_dry_run(checked: Preflight) -> None:
    """Print to standard output; values of secret-looking environment variables are left out."""
    print_plan(checked.plan, checked.shape, checked.spec.model.hf_model_path)
    print(f"\n{checked.rows.summary()}")
    print("\n# the resolved spec, as YAML for --config")
    print(spec_as_yaml(checked.spec), end="")


def spec_as_yaml(spec: RunSpec) -> str:
    """The spec as YAML in the order of the schema."""
    import yaml

    content: dict[str, Any] = spec.model_dump(mode="json")
    content["cluster"]["env"] = {
        name: "***" if _SECRET.search(name) else value for name, value in spec.cluster.env.items()
    }
    return yaml.safe_dump(content, sort_keys=False, width=1000)

"""`raymb schema`: every flag, for editors (JSON Schema of the YAML) or for people (docs/reference.md)."""

from __future__ import annotations

import typer


def command(
    markdown: bool = typer.Option(
        False, "--markdown", help="Print the reference page instead of JSON Schema.", show_default=False
    ),
) -> int:
    """Print the JSON Schema of --config files. An editor finds it by a first line in the YAML:
    # yaml-language-server: $schema=PATH"""
    if markdown:
        from raymb.cli.reference import reference_page

        print(reference_page(), end="")
    else:
        from json import dumps

        from raymb.spec.schema import json_schema

        print(dumps(json_schema(), indent=1))
    return 0

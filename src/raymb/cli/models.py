"""`raymb models`: which models the installed Megatron-Bridge loads, and what raymb has tried with them."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    word: Annotated[str, typer.Argument(metavar="[WORD]", help="Only architectures with this word.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.", show_default=False)] = False,
) -> int:
    """Every architecture that the installed Megatron-Bridge loads: text or images, the parallel sizes it can have,
    packing, what adapters can lie on, and where it was proven (docs/families.md). Imports nothing of it."""
    from raymb.errors import ModelError
    from raymb.model.architectures import registered, support

    names = sorted(name for name in registered() if word.lower() in name.lower())
    rows = [{"architecture": name, **support(name)} for name in names]
    if not rows:
        raise ModelError(
            f"no architecture with {word!r} in its name" if word else "Megatron-Bridge is not installed here"
        )
    rows.sort(key=lambda row: ("CPU" not in row["proven"], row["proven"] == "refused", row["architecture"]))
    if json:
        from json import dumps

        print(dumps(rows))
        return 0
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0

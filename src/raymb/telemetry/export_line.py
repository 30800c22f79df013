"""The line that says how an export was verified."""

from __future__ import annotations

from pathlib import Path

from raymb.telemetry.records import Findings

_NOTABLE = 0.005
"""Share of the loss that an export may lose without a word."""


def exported_line(record: Findings) -> str:
    """An export's record, in words."""
    names = " and ".join(f"{Path(place).name}/" for place in record["directories"])
    if record["error"] is None or record["losses"] is None:
        return f"warning: {names}: tensors and tokenizer verified, logits not: {record['unmeasured']}"
    line = (
        f"{names} verified: logits within {record['error']:.1e} of the trained model's on {record['rows']} rows "
        f"({record['tolerance']:.0e} allowed)"
    )
    trained, exported = record["losses"]
    if abs(exported - trained) > _NOTABLE * trained:
        line += (
            f"; rounded to its type, it has a loss of {exported:.4f} there instead of {trained:.4f} "
            "(--export_dtype fp32 keeps what was trained)"
        )
    return line

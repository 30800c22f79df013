"""--max_time in words that job systems use."""

from __future__ import annotations

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """Seconds of 90, 90s, 90m, 2h, 1d, or [DAYS-]HH:MM[:SS]; the schema has checked the form."""
    days, _, clock = text.rpartition("-")
    if ":" in clock:
        hours, minutes, *seconds = (int(part) for part in clock.split(":"))
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + sum(seconds)
    return float(text.rstrip("smhd")) * _UNITS.get(text[-1], 1)

"""--max_time: every form that the schema allows has one meaning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raymb.spec.duration import seconds_of
from raymb.spec.sections import Resilience

PATTERN = next(
    item.pattern for item in Resilience.model_fields["max_time"].metadata if getattr(item, "pattern", None) is not None
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5", 1.5),
        ("90s", 90),
        ("90m", 5400),
        ("1.5h", 5400),
        ("2h", 7200),
        ("1d", 86400),
        ("0.5d", 43200),
        ("1:30", 5400),  # hours and minutes, as Slurm has it after days
        ("01:30:15", 5415),
        ("100:00:00", 360000),
        ("1-00:00", 86400),
        ("1-02:03:04", 93784),
        ("10-12:30", 909000),
    ],
)
def test_seconds_of(text: str, seconds: float) -> None:
    assert Resilience(max_time=text).max_time == text
    assert seconds_of(text) == seconds


@given(st.integers(0, 40), st.integers(0, 200), st.integers(0, 99), st.none() | st.integers(0, 99))
def test_a_clock_with_days(days: int, hours: int, minutes: int, seconds: int | None) -> None:
    text = f"{days}-{hours}:{minutes:02}" + ("" if seconds is None else f":{seconds:02}")
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + (seconds or 0)
    assert seconds_of(text) == expected
    assert seconds_of(text.partition("-")[2]) == expected - days * 86400


@given(st.from_regex(PATTERN, fullmatch=True))
def test_whatever_the_schema_lets_through_is_a_time(text: str) -> None:
    try:
        Resilience(max_time=text)
    except ValidationError:  # another regular expression engine: of `$`, for one
        return
    assert seconds_of(text) >= 0


@pytest.mark.parametrize(
    "text", ["", "h", "1w", "-5", "1-5", "1:5", "1:60:5:1", "1e3", "1 h", ".5h", "1-2-3:00", "inf"]
)
def test_what_is_no_time_is_refused_by_the_schema(text: str) -> None:
    with pytest.raises(ValidationError):
        Resilience(max_time=text)

"""Curves as SVG paths in a plot of 1000 x 1000, y downwards. Labels are not part of the SVG: the page places them in
percent, so that a plot can be stretched to any width while its text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Point = tuple[float, float | None]
"""(x, y); y is NaN where the value is not a number, and None where the curve is only interrupted."""
BUCKETS = 360
"""Columns of a plot in which the lowest and the highest value are kept: about a column a pixel or two."""
_SPIKE = 20.0  # times the median: more than that needs a logarithmic axis


@dataclass(frozen=True)
class Series:
    """
    Args:
        label: in the legend.
        style: CSS class.
        dots: whether each point is marked; such series are short and never thinned.
        note: in the legend, after the label.
        buckets: columns of the plot that keep their lowest and highest value.
    """

    label: str
    style: str
    points: list[Point]
    dots: bool = False
    note: str = ""
    buckets: int = BUCKETS


@dataclass(frozen=True)
class Mark:
    """A vertical line at x, such as a failure.

    Args:
        style: CSS class.
    """

    x: float
    style: str
    label: str


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """0 to 1000."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(value) if self.log else value
        return 1000 * (value - low) / (high - low)


@dataclass(frozen=True)
class Chart:
    """
    Args:
        unit: of the values.
        by: step, tokens or seconds.
        from_zero: whether the value axis begins at 0.
    """

    title: str
    unit: str
    by: str
    series: list[Series]
    marks: list[Mark] = field(default_factory=list)
    from_zero: bool = False

    @cached_property
    def x(self) -> Scale:
        values = [x for one in self.series for x, _ in one.points] + [mark.x for mark in self.marks]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        return Scale(low, high if high > low else low + 1)

    @cached_property
    def y(self) -> Scale:
        return value_scale([y for one in self.series for y in values_of(one.points)], self.from_zero)

    @property
    def empty(self) -> bool:
        return not any(one.points for one in self.series)

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """For each series: label, note, style, its path, and the thread that joins the dots of one that is all dots."""
        x, y = self.x, self.y
        return [
            {
                "label": one.label,
                "note": one.note,
                "style": f"{one.style} dots" if one.dots else one.style,
                "path": path(one.points if one.dots else thin(one.points, x, one.buckets), x, y, joined=not one.dots),
                "thread": path(one.points, x, y) if one.dots else "",
            }
            for one in self.series
        ]

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """(percent from the left, label)."""
        if self.by == "seconds":
            values = duration_ticks(self.x)
        else:
            values = [(value, short(value)) for value in ticks(self.x, 5) if value == int(value)]
        return [(self.x.place(value) / 10, label) for value, label in values]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """(percent from the top, label)."""
        values = log_ticks(self.y) if self.y.log else ticks(self.y, 5)
        return [(100 - self.y.place(value) / 10, short(value)) for value in values]

    @property
    def flags(self) -> list[tuple[float, str, str]]:
        """(percent from the left, style, label) of the marks."""
        return [(self.x.place(mark.x) / 10, mark.style, mark.label) for mark in self.marks]

    @property
    def holes(self) -> list[float]:
        """Where values are not numbers, in percent from the left; one for each column of the plot at most."""
        x = self.x
        places = {
            round(x.place(at) * BUCKETS / 1000)
            for one in self.series
            for at, y in one.points
            if y is not None and math.isnan(y)
        }
        return [100 * place / BUCKETS for place in sorted(places)]

    @property
    def summary(self) -> str:
        """The curves in words, for readers who cannot see them."""
        words = []
        for one in self.series:
            values = values_of(one.points)
            if values:
                words.append(
                    f"{one.label}: first {short(values[0])}, last {short(values[-1])}, "
                    f"lowest {short(min(values))}, highest {short(max(values))}"
                )
        return f"{self.title} by {self.by}. " + "; ".join(words)


def values_of(points: Iterable[Point]) -> list[float]:
    """Those that can be drawn."""
    return [y for _, y in points if y is not None and not math.isnan(y)]


def value_scale(values: Sequence[float], from_zero: bool) -> Scale:
    """The value axis: linear with a margin; logarithmic where a spike would flatten the rest."""
    if not values:
        return Scale(0.0, 1.0)
    low, high = min(values), max(values)
    middle = sorted(values)[len(values) // 2]
    if low > 0 and high > _SPIKE * middle and not from_zero:
        return Scale(low / 1.1, high * 1.1, log=True)
    low = min(0.0, low) if from_zero else low
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return Scale(low if from_zero else low - margin, high + margin)


def thin(points: list[Point], x: Scale, buckets: int = BUCKETS) -> list[Point]:
    """The lowest and the highest value of each column, so that every spike stays, and one hole of each kind."""
    if len(points) <= 2 * buckets:
        return points
    columns: dict[int, list[Point]] = {}
    for point in points:
        columns.setdefault(min(buckets - 1, int(x.place(point[0]) * buckets / 1000)), []).append(point)
    return [point for _, column in sorted(columns.items()) for point in _extremes(column)]


def _extremes(column: list[Point]) -> Iterable[Point]:
    known = [(y, index) for index, (_, y) in enumerate(column) if y is not None and not math.isnan(y)]
    holes = {str(y): index for index, (_, y) in enumerate(column) if y is None or math.isnan(y)}
    extremes = [min(known)[1], max(known)[1]] if known else []
    return [column[index] for index in sorted({*extremes, *holes.values()})]


def path(points: list[Point], x: Scale, y: Scale, joined: bool = True) -> str:
    """An SVG path; a new piece after each hole. A piece begins with a line of no length, which a round line end makes
    a dot: a point between two holes is seen, and points that are not joined are all dots."""
    words, connected = [], False
    for at, value in points:
        if value is None or math.isnan(value):
            connected = False
            continue
        place = f"{_number(x.place(at))} {_number(1000 - y.place(value))}"
        words.append(f"L{place}" if connected else f"M{place}h0")
        connected = joined
    return "".join(words)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ticks(scale: Scale, count: int) -> list[float]:
    """About so many round values."""
    step = _round_step((scale.high - scale.low) / count)
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * 0.999)


def log_ticks(scale: Scale) -> list[float]:
    """Powers of ten; with 2 and 5 times them where they are few."""
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    factors = (1, 2, 5) if scale.high < 1000 * scale.low else (1,)
    every = max(1, len(powers) // 6)
    values = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
    return [value for value in values if scale.low <= value <= scale.high]


_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration_ticks(scale: Scale) -> list[tuple[float, str]]:
    """Round numbers of days, hours, minutes or seconds."""
    size, unit = next((pair for pair in _UNITS if scale.high >= 2 * pair[0]), _UNITS[-1])
    units = ticks(Scale(scale.low / size, scale.high / size), 5)
    return [(value * size, f"{value:g} {unit}") for value in units]


def duration(seconds: float) -> str:
    """In words of two units."""
    seconds = max(0.0, seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(value: float | None) -> str:
    """A number in as few characters as say it."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g} M" if abs(value) < 1e9 else f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.3g}"

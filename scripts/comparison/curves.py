"""Plots as inline SVG: curves of training, and intervals. Colours come from the page's style sheet, by class."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 40
MOST_POINTS = 300


class Curve(NamedTuple):
    """One run's figures over the images seen; ``side`` is "a" or "b"."""

    side: str
    name: str
    points: Sequence[tuple[float, float]]


def plot(title: str, curves: Sequence[Curve]) -> str:
    """Draw curves over the images seen; hovering over one names its run."""
    shown = [curve._replace(points=_thinned(curve.points)) for curve in curves if curve.points]
    xs = [x for curve in shown for x, _ in curve.points]
    ys = [y for curve in shown for _, y in curve.points]
    across, up = _Axis(0.0, max(xs), LEFT, WIDTH - RIGHT), _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<text class="tick" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_number(x)}</text>'
        for x in across.ticks()
    ]
    for y in up.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for curve in shown:
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve.points)
        parts.append(
            f'<polyline class="line {curve.side}" points="{line}"><title>{escape(curve.name)}</title></polyline>'
        )
    label = f'<text class="tick" x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">images seen</text>'
    return _figure(title, HEIGHT, [*parts, label])


def forest(title: str, intervals: Mapping[str, tuple[float, float, float]]) -> str:
    """Draw intervals (low, middle, high) of a difference, a line each, around zero."""
    left, row = 190, 28
    height = TOP + row * len(intervals) + 24
    ends = [value for interval in intervals.values() for value in interval]
    across = _Axis(min(*ends, 0.0), max(*ends, 0.0), left, WIDTH - RIGHT)
    parts = [f'<line class="zero" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="{TOP}" y2="{height - 24}"/>']
    for place, (name, (low, middle, high)) in enumerate(intervals.items()):
        y = TOP + row * (place + 0.5)
        parts += [
            f'<text class="name" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>',
            f'<line class="bar" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<circle class="dot" cx="{across(middle):.1f}" cy="{y:.1f}" r="4"/>',
        ]
    parts += [
        f'<text class="tick" x="{across(x):.1f}" y="{height - 6}" text-anchor="middle">{_number(x)}</text>'
        for x in across.ticks()
    ]
    return _figure(title, height, parts)


def _figure(title: str, height: int, parts: Sequence[str]) -> str:
    drawing = "\n".join(parts)
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>\n"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">\n{drawing}\n</svg></figure>'
    )


class _Axis:
    """Maps values from low to high to places from start to end."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
        self.low = low if low == 0 else low - margin
        self.high, self.start, self.end = high + margin, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values."""
        rough = (self.high - self.low) / 5
        unit = 10.0 ** floor(log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = -floor(-self.low / step)
        return [k * step for k in range(first, floor(self.high / step) + 1)]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:.6g}" if abs(value) > 1e-12 else "0"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]

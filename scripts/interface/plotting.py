"""Curves with intervals as PNG files, drawn by matplotlib where the extra "plots" is installed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 2


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: of the curve.
        x, y: of its points.
        low, high: of the interval at each point; empty where there is none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Plot:
    """Some curves over the same axes.

    Attributes:
        title, x_label: in words.
        lines: the curves.
        is_logarithmic: whether the axis of x is.
    """

    title: str
    x_label: str
    lines: Sequence[Line] = field(default_factory=list)
    is_logarithmic: bool = False


def draw(plots: Sequence[Plot], path: Path) -> str:
    """Write plots beside each other into one picture; give a line that says where, or what it needs."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return "no plot: it needs the extra 'plots' (pip install -e .[plots])"
    rows = -(-len(plots) // COLUMNS)
    figure = Figure(figsize=(5.5 * min(COLUMNS, len(plots)), 4 * rows), layout="constrained")
    for place, plot in enumerate(plots, start=1):
        axes = figure.add_subplot(rows, min(COLUMNS, len(plots)), place)
        for number, line in enumerate(plot.lines):
            colour = f"C{number % 10}"
            axes.plot(line.x, line.y, color=colour, marker="o", markersize=3, label=line.label)
            if line.low:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        if plot.is_logarithmic:
            places = sorted({x for line in plot.lines for x in line.x})
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{x:g}" for x in places], fontsize=8)
            axes.set_xticks([], minor=True)
        axes.set_title(plot.title, fontsize=10)
        axes.set_xlabel(plot.x_label, fontsize=9)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    return f"plot: {path}"

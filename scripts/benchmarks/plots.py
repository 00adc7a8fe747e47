"""Figures as plots: PNG files, drawn by matplotlib where the extra "plots" is installed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.cells import PLUS_PLUS, Cell
from scripts.benchmarks.figures import Figures

COLUMNS = 2
Value = Callable[[Figures], float | None]
VALUES: dict[str, Value] = {
    "solver error (RMS of x0)": lambda figures: figures.get("solver_error"),
    "kernel distance": lambda figures: figures.get("kernel_distance", {}).get("value"),
    "pair right": lambda figures: float(figures["accuracy"]["pair"]["value"]),
    "single right": lambda figures: float(figures["accuracy"]["single"]["value"]),
}


def draw(cells: Sequence[Cell], found: Sequence[Figures], folder: Path) -> list[Path]:
    """Write a picture per part, ``samplers.png`` and ``guidance.png``; none, and a note, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("\nno plots: they need the extra 'plots' (pip install -e .[plots])")
        return []
    paths = []
    for part in ("samplers", "guidance"):
        pairs = [
            (cell, figures)
            for cell, figures in zip(cells, found, strict=True)
            if cell.part == part and cell.series != PLUS_PLUS
        ]
        shown = {
            name: value for name, value in VALUES.items() if any(value(figures) is not None for _, figures in pairs)
        }
        if not pairs:
            continue
        figure = Figure(figsize=(11, 4 * -(-len(shown) // COLUMNS)), layout="constrained")
        for place, (name, value) in enumerate(shown.items(), start=1):
            axes = figure.add_subplot(-(-len(shown) // COLUMNS), COLUMNS, place)
            _lines(axes, pairs, name, value, logarithmic=part == "samplers")
        handles, labels = figure.axes[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{part}.png", dpi=90)
        paths.append(folder / f"{part}.png")
    return paths


def _lines(axes: Any, pairs: Sequence[tuple[Cell, Figures]], name: str, value: Value, *, logarithmic: bool) -> None:
    """One line per series; over the calls that were made, or over the scale."""
    for number, series in enumerate(dict.fromkeys(cell.series for cell, _ in pairs)):
        points = [
            (figures["calls"] if cell.part == "samplers" else cell.at, value(figures))
            for cell, figures in pairs
            if cell.series == series and value(figures) is not None
        ]
        style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "marker": "o", "markersize": 3}
        axes.plot([x for x, _ in points], [y for _, y in points], label=series, **style)
    if logarithmic:
        places = sorted({int(cell.at) for cell, _ in pairs})
        axes.set_xscale("log")
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_xticks([], minor=True)
    if name.startswith("solver"):
        axes.set_yscale("log")
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("denoiser calls" if logarithmic else "guidance scale", fontsize=9)
    axes.grid(visible=True, which="both", alpha=0.3)

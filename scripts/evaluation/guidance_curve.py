"""The figures of a run over scales of guidance, as curves: what is gained in accuracy, and paid in diversity."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripts.interface.plotting import Line, Plot

Point = Mapping[str, Any]
Interval = Mapping[str, Any]
"""Of a figure: "value", "low" and "high"."""
Group = Mapping[str, Interval]


def _accuracies(point: Point) -> Group:
    """Prompts of the Shapes, by kind; of other pictures, whose nearest picture carries the caption asked for."""
    if "prompt_accuracy" in point:
        kinds: Group = point["prompt_accuracy"]
        return kinds
    spaces = point.get("spaces", {})
    return {f"{name}, held out": each["recalled"]["heldout"] for name, each in spaces.items() if "recalled" in each}


def _distances(point: Point) -> Group:
    return {each["name"]: each for each in point.get("distances", []) if each["name"].startswith("kernel")}


def _openness(point: Point) -> Group:
    found = {name: part for name, part in point.get("diversity", {}).items() if name != "prompt"}
    return {name: {"value": part["tv"], "low": part["low"], "high": part["high"]} for name, part in found.items()}


def _copies(point: Point) -> Group:
    found = {name: each["copies"] for name, each in point.get("spaces", {}).items() if "copies" in each}
    return {name: {**each, "value": each["share"]} for name, each in found.items()}


GROUPS: Mapping[str, Callable[[Point], Group]] = {
    "accuracy": _accuracies,
    "kernel distance": _distances,
    "diversity: distance to the world's law": _openness,
    "share of copies": _copies,
}


def table(points: Sequence[Point]) -> str:
    """Lay the figures out for a terminal, a row for each and a column for each scale."""
    rows = ["", f"{'guidance':<44}" + "".join(f"{point['guidance']:>22g}" for point in points)]
    for title, group in GROUPS.items():
        for name in group(points[0]):
            cells = [group(point)[name] for point in points]
            told = [f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in cells]
            rows.append(f"{title.split(':')[0] + ', ' + name:<44}" + "".join(f"{cell:>22}" for cell in told))
    return "\n".join(rows)


def plots(points: Sequence[Point]) -> list[Plot]:
    """Give a plot for each group of figures that there are."""
    scales = [point["guidance"] for point in points]
    found = []
    for title, group in GROUPS.items():
        lines = []
        for name in group(points[0]):
            columns = [[group(point)[name][end] for point in points] for end in ("value", "low", "high")]
            lines.append(Line(name, scales, *columns))
        if lines:
            found.append(Plot(title, "guidance scale", lines))
    return found

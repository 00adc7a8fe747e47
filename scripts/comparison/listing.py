"""Runs as a table to sort and to filter."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

from lab.errors import BadData, Refused
from lab.explanation import nearest
from lab.rundir import RunDir
from lab.yaml12 import read
from scripts.assembly import experiments
from scripts.comparison import evaluations

Value = str | float | None
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": ne, ">": gt, "<": lt, ">=": ge, "<=": le}
EMPTY = "-"


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        columns: that are shown; None where the run has no such figure.
        settings: every value of its configuration, by dotted key.
    """

    columns: Mapping[str, Value]
    settings: Mapping[str, Value]


def rows(folder: Path) -> list[Row]:
    """Look at every run below a folder, not at runs within runs.

    Raises:
        Refused: there is none.
    """
    places = sorted(path.parent for path in folder.rglob("config.yaml"))
    places = [place for place in places if not any(other in place.parents for other in places)]
    if not places:
        raise Refused(f"--list {folder}: no run below it; train one with scripts/train.py, or name another folder")
    return [_row(place, folder) for place in places]


def table(found: Sequence[Row], sort: str, where: Sequence[str], *, largest_first: bool = False) -> str:
    """Lay runs out as text.

    Args:
        found: the runs.
        sort: a column or dotted key; runs without a value come last.
        where: conditions, ``column>value``, all of which must hold.
        largest_first: the other way round.

    Raises:
        Refused: a condition cannot be read, or nothing has such a column.
    """
    conditions = [_condition(text) for text in where]
    kept = [row for row in found if all(_holds(_value(row, key), sign, value) for key, sign, value in conditions)]
    for name in (sort, *(name for name, _, _ in conditions)):
        _check(found, name)
    with_value = [row for row in kept if _value(row, sort) is not None]
    ordered = sorted(with_value, key=lambda row: _order(_value(row, sort)), reverse=largest_first)
    ordered += [row for row in kept if _value(row, sort) is None]
    asked = [
        name for name in dict.fromkeys([sort, *(name for name, _, _ in conditions)]) if name not in found[0].columns
    ]
    names = [*found[0].columns, *asked]
    lines = aligned(names, [[_shown(_value(row, name)) for name in names] for row in ordered])
    return "\n".join([*lines, f"{len(ordered)} of {len(found)} runs"])


def aligned(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Align a table: the first column to the left, the others to the right."""
    lines = [header, *cells] if header else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _row(place: Path, folder: Path) -> Row:
    run = RunDir.view(place)
    experiment, status = experiments.load(run.config_path, []), run.status()
    columns: dict[str, Value] = {
        "name": str(place.relative_to(folder)) if place != folder else place.name,
        "state": status.state if status else "begun",
        "seed": experiment.seed,
        "step": status.step if status else None,
        "images": status.seen if status else None,
        **dict.fromkeys(("minutes", "single", "pair", "combinations", "phrasings", "kernel"), None),
    }
    try:
        measured = evaluations.found(place)
    except BadData:
        measured = []
    if measured:
        best = max(measured, key=lambda each: (each.step, each.is_own, each.num))
        columns |= _figures(best.figures)
    return Row(columns, _flat(experiment.model_dump(mode="json")))


def _figures(figures: Mapping[str, Any]) -> dict[str, Value]:
    accuracy = {kind: float(share["value"]) for kind, share in figures["prompt_accuracy"].items()}
    kernel = [each["value"] for each in figures.get("distances", []) if each["name"].startswith("kernel")]
    seconds = figures["trained"].get("seconds")
    return {
        "minutes": seconds / 60 if seconds is not None else None,
        "single": accuracy.get("single"),
        "pair": accuracy.get("pair"),
        "combinations": accuracy.get("pair_heldout_combinations"),
        "phrasings": accuracy.get("pair_heldout_phrasings"),
        "kernel": kernel[0] if kernel else None,
    }


def _flat(node: Any, path: str = "") -> dict[str, Value]:
    if not isinstance(node, dict):
        return {path: node if isinstance(node, int | float) and not isinstance(node, bool) else _text(node)}
    found: dict[str, Value] = {}
    for key, value in node.items():
        found |= _flat(value, f"{path}.{key}" if path else key)
    return found


def _text(value: object) -> str:
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if value in (True, False, None)
        else str(value)
    )


def _condition(text: str) -> tuple[str, str, Value]:
    match = re.fullmatch(r"([\w.-]+)(!=|>=|<=|=|>|<)(.*)", text)
    if not match:
        raise Refused(f'--where {text!r}: must read column=value, as in train.batch=32 or "pair>0.5"')
    key, sign, given = match.groups()
    value = read(given)
    return key, sign, value if isinstance(value, int | float) and not isinstance(value, bool) else given


def _holds(value: Value, sign: str, wanted: Value) -> bool:
    if value is None:
        return False
    alike = isinstance(value, str) == isinstance(wanted, str)
    pair = (value, wanted) if alike else (str(value), str(wanted))
    return COMPARE[sign](*pair)


def _check(found: Sequence[Row], name: str) -> None:
    known = sorted({key for row in found for key in (*row.columns, *row.settings)})
    if name not in known:
        raise Refused(f"no run has {name}{nearest(name, known)}")


def _value(row: Row, name: str) -> Value:
    return row.columns[name] if name in row.columns else row.settings.get(name)


def _order(value: Value) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value or 0), "")


def _shown(value: Value) -> str:
    if value is None:
        return EMPTY
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)

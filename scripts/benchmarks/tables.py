"""Figures as Markdown tables, and their place in a page.

A page holds a pair of comments for each part, and what stands between them is replaced:

    <!-- benchmark: samplers -->
    ...
    <!-- end of benchmark: samplers -->
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.errors import Refused
from lab.storage import write_whole
from scripts.benchmarks.cells import PLUS_PLUS, Cell
from scripts.benchmarks.figures import Figures
from scripts.benchmarks.walks import KINDS

PARTS = ("samplers", "guidance")
Show = Callable[[Figures], str]


def everything(cells: Sequence[Cell], found: Sequence[Figures], what: Mapping[str, Any]) -> dict[str, str]:
    """Give the text of each part that has cells: what was measured, and a table per figure."""
    texts: dict[str, str] = {}
    for part in PARTS:
        pairs = [(cell, figures) for cell, figures in zip(cells, found, strict=True) if cell.part == part]
        if pairs:
            texts[part] = "\n\n".join([_caption(pairs, what), *_tables(pairs, part)])
    return texts


def table(pairs: Sequence[tuple[Cell, Figures]], title: str, show: Show) -> str:
    """Lay one figure out, a row per series and a column per place; a row without any is left out."""
    places = sorted({cell.at for cell, _ in pairs})
    shown = {(cell.series, cell.at): show(figures) for cell, figures in pairs}
    rows = [f"| {title} |" + "".join(f" {place:g} |" for place in places), "|---" * (len(places) + 1) + "|"]
    for series in dict.fromkeys(cell.series for cell, _ in pairs):
        values = [shown.get((series, place), "") for place in places]
        if any(values):
            rows.append(f"| {series} |" + "".join(f" {value} |" for value in values))
    return "\n".join(rows)


def read_page(path: Path, parts: Iterable[str]) -> str:
    """Read a page whose tables are to be renewed.

    Raises:
        Refused: it cannot be read, or has no place for one of the parts.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"--page {path} cannot be read as text: {error}") from None
    for part in parts:
        begin, end = _marks(part)
        if not 0 <= text.find(begin) < text.find(end):
            raise Refused(f"--page {path} has no place for {part}: add the lines {begin} and {end}")
    return text


def renew(path: Path, texts: Mapping[str, str]) -> None:
    """Write a page anew with these texts in their places.

    Raises:
        Refused: as in ``read_page``.
    """
    page = read_page(path, texts)
    for part, text in texts.items():
        begin, end = _marks(part)
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    write_whole(path, page.encode())


def _marks(part: str) -> tuple[str, str]:
    return f"<!-- benchmark: {part} -->", f"<!-- end of benchmark: {part} -->"


def _caption(pairs: Sequence[tuple[Cell, Figures]], what: Mapping[str, Any]) -> str:
    """What the tables of a part have in common."""
    cell, figures = next((pair for pair in pairs if pair[0].series != PLUS_PLUS), pairs[0])
    own = f"guidance {cell.sampling.guidance:g}"
    fixed = f"{cell.sampling.sampler}, {cell.sampling.spacing}, {figures['calls']} calls"
    prompts, reference = what["prompts"], what["reference"]
    near = f"; solver error on {reference['num']} of the pictures against {reference['steps']:,} steps of DDIM"
    return (
        f"Checkpoint `{what['checkpoint'][:12]}`, {what['precision']} on {what['device']}, "
        f"{what['threads']} thread(s); {own if cell.part == 'samplers' else fixed}; "
        f"{prompts['num']} prompts of each kind, seed {prompts['seed']}"
        f"{near if any('solver_error' in one for _, one in pairs) else ''}."
    )


def _tables(pairs: Sequence[tuple[Cell, Figures]], part: str) -> list[str]:
    place = "calls, at most" if part == "samplers" else "scale"
    shows: dict[str, Show] = {"solver error": _error, "kernel distance": _distance}
    shows |= {f"{kind} right": _share(kind) for kind in KINDS}
    if part == "samplers":
        shows |= {"calls / network evaluations": _cost, "ms per picture": _time}
    plain = [pair for pair in pairs if pair[0].series != PLUS_PLUS]
    plus_plus = [pair for pair in pairs if pair[0].series == PLUS_PLUS]
    made = [table(plain, f"{name}; {place}", show) for name, show in shows.items() if any(show(f) for _, f in plain)]
    if plus_plus:
        by_name = [
            (Cell(cell.part, name, cell.at, cell.sampling), {"shown": show(figures)})
            for name, show in shows.items()
            for cell, figures in plus_plus
        ]
        made.append(table(by_name, PLUS_PLUS, lambda figures: str(figures["shown"])))
    return made


def _error(figures: Figures) -> str:
    return f"{figures['solver_error']:.4f}" if "solver_error" in figures else ""


def _distance(figures: Figures) -> str:
    if "kernel_distance" not in figures:
        return ""
    found = figures["kernel_distance"]
    return f"{found['value']:.3f} ± {(found['high'] - found['low']) / 2:.3f}"


def _share(kind: str) -> Show:
    def show(figures: Figures) -> str:
        share = figures["accuracy"][kind]
        return f"{share['value']:.2f} ({share['low']:.2f} - {share['high']:.2f})"

    return show


def _cost(figures: Figures) -> str:
    return f"{figures['calls']} / {figures['evaluations']:g}"


def _time(figures: Figures) -> str:
    return f"{1000 * figures['seconds'] / figures['n']:.0f}"

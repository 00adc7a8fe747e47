"""How far a sweep is, what it costs, and what came out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion.pipeline import DRAWING
from diffusion.stage import DiffusionConfig
from lab.config import diff
from lab.data.shapes import ShapesConfig
from lab.errors import Refused
from lab.evaluation.ranking import rank
from lab.rundir import RunDir
from lab.training import checkpoint
from lab.training.budget import seconds_of
from scripts.assembly import assemble, experiments
from scripts.comparison import evaluations
from scripts.comparison.cells import Cell
from scripts.comparison.evaluations import DISTANCES, Evaluation
from scripts.comparison.listing import aligned
from scripts.evaluation.measure import KINDS

MISSING, BEGUN, TRAINED, DONE = "to train", "to go on with", "to evaluate", "done"


def title(name: str, vary: Sequence[str]) -> str:
    """Name a sweep's folder by its preset and what it varies."""
    return "-".join([name, *(text.partition("=")[0].rsplit(".", 1)[-1] for text in vary)] if vary else [name, "seeds"])


def check_figure(by: str, *, with_distances: bool) -> None:
    """Refuse to rank by what will not have been measured."""
    known = (*KINDS, *(DISTANCES if with_distances else ()))
    if by not in known:
        way_out = "; leave out --no-distances" if by in DISTANCES else ""
        raise Refused(f"--by {by}: name one of {', '.join(known)}{way_out}")


def state(cell: Cell, folder: Path, num: int) -> str:
    """Say what is left to do for a run."""
    path = folder / cell.name
    if not RunDir.is_run(path):
        return MISSING
    known, status = experiments.load(path / "config.yaml", []), RunDir.view(path).status()
    is_same = not diff(known, assemble.complete(cell.experiment, known))
    if not is_same or status is None or status.state != "finished":
        return BEGUN
    return DONE if not is_judged(cell) or evaluation(cell, folder, num) else TRAINED


def is_judged(cell: Cell) -> bool:
    """Whether evaluate.py can measure such a run."""
    experiment = cell.experiment
    return isinstance(experiment.data, ShapesConfig) and isinstance(experiment.stage, DiffusionConfig)


def evaluation(cell: Cell, folder: Path, num: int) -> Evaluation | None:
    """Find the evaluation of a run's last checkpoint with so many prompts, drawn as the run itself says."""
    run = RunDir.view(folder / cell.name)
    newest = checkpoint.latest(run.checkpoints, run.run_id)
    if newest is None:
        return None
    identity = checkpoint.identity(newest)
    for each in evaluations.found(run.path):
        wanted = {"run": run.run_id, "checkpoint": identity, "weights": "ema", "drawing": DRAWING}
        is_wanted = each.figures["origin"] == wanted
        if is_wanted and each.is_own and each.figures["prompt_accuracy"]["single"]["n"] == num:
            return each
    return None


def plan(cells: Sequence[Cell], folder: Path, num: int) -> str:
    """Say what a sweep will do, and what that costs."""
    states = {cell.name: state(cell, folder, num) for cell in cells}
    rows = [[cell.name, states[cell.name], f"{cell.images:,}"] for cell in cells]
    groups, seeds = {cell.group for cell in cells}, {cell.seed for cell in cells}
    waiting = [cell for cell in cells if states[cell.name] in (MISSING, BEGUN)]
    images = sum(cell.images for cell in waiting)
    return "\n".join(
        [
            f"{len(cells)} runs in {folder}: {len(groups)} configuration(s) x {len(seeds)} seed(s)",
            *aligned(["run", "state", "images"], rows),
            f"to train: {len(waiting)} runs, {images:,} images{_time(cells, waiting, folder)}; "
            f"to evaluate: {sum(each != DONE for each in states.values())} runs, {6 * num + num} pictures each",
        ]
    )


def _time(cells: Sequence[Cell], waiting: Sequence[Cell], folder: Path) -> str:
    """How long that takes, as far as it is known: by the budget, or by the speed of the runs that are finished."""
    budgets = [seconds_of(cell.experiment.train.budget) for cell in waiting]
    if waiting and all(budgets):
        return f", at most {sum(budgets) / 60:.0f} minutes"
    ended = [each for cell in cells if (each := _last(folder / cell.name)) is not None]
    if not waiting or not ended:
        return "" if not waiting else " (how long that takes is known after the first)"
    seconds = sum(s for s, _ in ended) / sum(seen for _, seen in ended) * sum(cell.images for cell in waiting)
    return f", about {seconds / 60:.1f} minutes at the speed of the runs that are there"


def _last(path: Path) -> tuple[float, int] | None:
    """Seconds and images of a finished run."""
    if not RunDir.is_run(path):
        return None
    status = RunDir.view(path).status()
    found = evaluations.found(path)
    if status is None or status.state != "finished" or not found:
        return None
    return found[0].figures["trained"]["seconds"], found[0].figures["trained"]["seen"]


def result(cells: Sequence[Cell], folder: Path, num: int, failures: Mapping[str, str], by: str) -> str:
    """Lay out what came out, a line per configuration, rank them by a figure, and say how to compare them."""
    lines = [f"{name}: {failure}" for name, failure in failures.items()]
    found: dict[str, dict[int, Evaluation]] = {cell.group: {} for cell in cells}
    for cell in cells:
        if is_judged(cell) and state(cell, folder, num) == DONE and (last := evaluation(cell, folder, num)) is not None:
            found[cell.group][cell.seed] = last
    rows, header = [], ["configuration", "runs"]
    for group, own in found.items():
        values = [each.figures["prompt_accuracy"] for each in own.values()]
        if not values:
            continue
        header = ["configuration", "runs", *values[0], "sd of pair"]
        means = [f"{np.mean([value[kind]['value'] for value in values]):.3f}" for kind in values[0]]
        pairs = [value["pair"]["value"] for value in values]
        rows.append([group, str(len(values)), *means, f"{np.std(pairs, ddof=1):.3f}" if len(pairs) > 1 else "-"])
    lines += aligned(header, rows) if rows else []
    lines += _ranking({group: own for group, own in found.items() if own}, by)
    sides = [f"{flag} {folder}/{group}-seed*" for flag, group in zip(("--a", "--b"), found, strict=False)]
    if len(sides) == 2:
        lines.append(f"is one better?  python scripts/compare.py {' '.join(sides)}")
    return "\n".join(lines)


def _ranking(found: Mapping[str, Mapping[int, Evaluation]], by: str) -> list[str]:
    """Which configuration comes first, over the seeds that all of them have."""
    seeds = sorted(set.intersection(*map(set, found.values()))) if len(found) > 1 else []
    if not seeds:
        return []
    values = {group: [own[seed].figure(by) for seed in seeds] for group, own in found.items()}
    ranking = rank(values, lower_is_better=by in DISTANCES)
    means, gaps = ranking.means, [f"{gap:.4f}" for gap in ranking.gaps] + ["-"]
    rows = [
        [group, *(f"{value:.4f}" for value in own), f"{means[group]:.4f}", gap]
        for (group, own), gap in zip(ranking.values.items(), gaps, strict=True)
    ]
    lines = ["", f"by {by}, the best first; to the next one there is a gap"]
    lines += aligned(["configuration", *(f"seed {seed}" for seed in seeds), "mean", "gap"], rows)
    if len(seeds) > 1:
        order = "the same" if ranking.is_stable else "not the same"
        clear = "every gap is" if ranking.is_clear else "not every gap is"
        lines.append(f"the order is {order} with every seed; {clear} above {ranking.spread:.4f}, the spread of seeds")
    return lines

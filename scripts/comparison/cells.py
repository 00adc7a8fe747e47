"""The runs of a sweep: every combination of the values that vary, with every seed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from lab.errors import Refused
from scripts.assembly import experiments
from scripts.assembly.experiments import AnyExperiment

TAKEN = ("seed", "name")  # keys that the sweep sets itself


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        group: of the runs that differ from it in the seed alone.
        seed: of the run.
        overrides: what is told to scripts/train.py.
        experiment: what that makes.
    """

    name: str
    group: str
    seed: int
    overrides: tuple[str, ...]
    experiment: AnyExperiment

    @property
    def images(self) -> int:
        """Samples that it trains on; with a budget of time, at most."""
        return self.experiment.train.steps * self.experiment.train.batch


def grid(preset: Path, overrides: Sequence[str], vary: Sequence[str], seeds: int, images: int | None) -> list[Cell]:
    """List the runs of a sweep, all configurations of the first seed before the next.

    Args:
        preset: a YAML file.
        overrides: "key=value", of every run.
        vary: "key=value,value" each; the grid is of all combinations.
        seeds: how many, counted from the preset's own; run k of every configuration has the same.
        images: samples that every run trains on, whatever its batch; ``None`` for what the configuration says.

    Raises:
        Refused: a mistake in a configuration, the same run twice, or runs of unequal length.
    """
    axes = [_axis(text) for text in vary]
    if seeds < 1:
        raise Refused(f"--seeds {seeds}: at least 1; 3 to compare configurations")
    first = experiments.load(preset, overrides).seed
    leaves = [key.rsplit(".", 1)[-1] for key, _ in axes]
    titles = leaves if len(set(leaves)) == len(leaves) else [key for key, _ in axes]
    cells = []
    for seed in range(first, first + seeds):
        for values in product(*(values for _, values in axes)):
            varied = [f"{key}={value}" for (key, _), value in zip(axes, values, strict=True)]
            parts = [f"{title}-{_slug(value)}" for title, value in zip(titles, values, strict=True)]
            cells.append(_cell(preset, [*overrides, *varied], "_".join(parts) or "base", seed, images))
    names = [cell.name for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Refused(f"--vary: two runs would be called {twice}; name each value once")
    _check_budget(cells, [key for key, _ in axes])
    return cells


def _cell(preset: Path, overrides: Sequence[str], group: str, seed: int, images: int | None) -> Cell:
    own = [*overrides, f"seed={seed}"]
    if images is not None:
        batch = experiments.load(preset, own).train.batch
        if images % batch or images < batch:
            raise Refused(
                f"--images {images} is no multiple of train.batch={batch}: take {max(images // batch, 1) * batch}"
            )
        own.append(f"train.steps={images // batch}")
    return Cell(f"{group}-seed{seed}", group, seed, tuple(own), experiments.load(preset, own))


def _axis(text: str) -> tuple[str, list[str]]:
    """Read "key=a,b"; commas within brackets or quotes belong to a value."""
    key, equals, values = text.partition("=")
    parts = re.findall(r"""(?:[^,\[\]{}"']|\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*')+""", values)
    if not equals or not key or not parts:
        raise Refused(f"--vary {text!r}: must read key=value,value, as in train.optimizer.rate=1e-3,3e-3")
    if key in TAKEN:
        raise Refused(f"--vary {key}: the sweep sets it; say how many seeds by --seeds")
    return key, parts


def _slug(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", value).strip("-.") or "empty"


def _check_budget(cells: Sequence[Cell], varied: Sequence[str]) -> None:
    """Refuse runs of unequal length, unless it is the length that varies."""
    if any(key in ("train.steps", "train.budget") for key in varied):
        return
    lengths = {cell.experiment.train.budget or cell.images: cell for cell in cells}
    if len(lengths) > 1:
        one, other = list(lengths.values())[:2]
        raise Refused(
            f"{one.group} would train on {one.images:,} images and {other.group} on {other.images:,}: "
            "give all the same by --images N, or by train.budget=10m"
        )

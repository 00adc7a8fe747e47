"""Pictures of two runs side by side: the same prompt from the same noise."""

import base64
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from lab.evaluation import outcomes
from scripts.comparison.evaluations import Evaluation

MOST = 48  # pairs on a page


class Pair(NamedTuple):
    """The same prompt drawn by a run of A and by one of B: two PNG files, two verdicts."""

    caption: str
    files: tuple[Path, Path]
    right: tuple[bool, bool]


def pairs(a: Sequence[Evaluation], b: Sequence[Evaluation], kind: str) -> list[Pair]:
    """Pair the first pictures of a list of prompts that scripts/evaluate.py kept; none was selected."""
    found = []
    for one, other in _partners(a, b):
        for index in count():
            files = (outcomes.picture_of(one.path, kind, index), outcomes.picture_of(other.path, kind, index))
            if not all(file.exists() for file in files):
                break
            line, twin = one.lines[kind][index], other.lines[kind][index]
            seeds = "" if len(a) == 1 else f" · seed {one.experiment.seed}"
            found.append(Pair(f"{line['prompt']}{seeds}", files, (line["right"], twin["right"])))
    return found[:MOST]


def embedded(path: Path) -> str:
    """Give a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _partners(a: Sequence[Evaluation], b: Sequence[Evaluation]) -> Iterator[tuple[Evaluation, Evaluation]]:
    """Runs of the same seed, or the first of each."""
    by_seed = {each.experiment.seed: each for each in b}
    same = [(each, by_seed[each.experiment.seed]) for each in a if each.experiment.seed in by_seed]
    yield from same or [(a[0], b[0])]

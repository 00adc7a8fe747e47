"""Draw several candidates, keep the best: more compute for better pictures.

What draws and what judges are given; nothing here knows what is drawn. Candidate j of an item is a function of j alone,
so the candidates of n = 8 contain those of n = 4.

With rounds, candidates are judged while they are unfinished, by a preview, and only the best go on (successive
halving): with n candidates of T steps and rounds at steps s_1 < s_2 ... that keep n_1 > n_2 ... of them,

    n s_1 + n_1 (s_2 - s_1) + ... + n_last (T - s_last)

steps are made instead of n T. A selection is only as good as its judge, and a figure by the judge that selected says
nothing: the maximum of n scores grows with n even where they are noise (for normal ones ``expected_maximum``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Candidate(NamedTuple):
    """Which candidate of which item."""

    item: int
    number: int


class Round(NamedTuple):
    """After how many steps candidates are judged by their preview, and which share of them goes on, at least one."""

    step: int
    keep: float


@dataclass(frozen=True)
class Selection:
    """What became of an item's candidates.

    Attributes:
        ranking: numbers of the candidates that were finished, the best first; of equals the lower number.
        images: (k, ...) in the order of the ranking.
        scores: of each candidate, by the step at which it was judged: [number][step].
        steps: that were made for all of them.
    """

    ranking: tuple[int, ...]
    images: Tensor
    scores: Sequence[dict[int, float]]
    steps: int


Grow = Callable[[Sequence[Candidate], int], Tensor]
"""Brings candidates to a step and gives their previews there, or at the last step the images: (k, ...)."""

Score = Callable[[Tensor, Sequence[int]], Sequence[float]]
"""Judges images (k, ...) of these items: the higher the better."""


def best_of_n(
    grow: Grow, score: Score, items: int, n: int, steps: int, rounds: Sequence[Round] = ()
) -> list[Selection]:
    """Find the best candidate of each item.

    Args:
        grow: draws; asked for the candidates of all items at once, and for no step before one that it was asked for.
        score: judges.
        items: how many.
        n: candidates of each, numbered from 0.
        steps: that make a finished image.
        rounds: at which candidates are given up; none by default.

    Raises:
        ValueError: ``n`` is not positive, or the rounds do not increase within the steps or keep no share of 0 to 1.
    """
    check(n, steps, rounds)
    alive = [list(range(n)) for _ in range(items)]
    scores: list[list[dict[int, float]]] = [[{} for _ in range(n)] for _ in range(items)]
    images: Tensor | None = None
    for step, keep in (*rounds, Round(steps, 1.0)):
        candidates = [Candidate(item, number) for item, numbers in enumerate(alive) for number in numbers]
        images = grow(candidates, step)
        for candidate, value in zip(candidates, score(images, [item for item, _ in candidates]), strict=True):
            scores[candidate.item][candidate.number][step] = float(value)
        alive = [
            sorted(numbers, key=lambda number: (-scores[item][number][step], number))[: _kept(len(numbers), keep)]
            for item, numbers in enumerate(alive)
        ]
    assert images is not None, "the last round is that of the finished images"
    place = {candidate: k for k, candidate in enumerate(candidates)}
    total = cost(n, steps, rounds)
    return [
        Selection(tuple(numbers), images[[place[Candidate(item, number)] for number in numbers]], scores[item], total)
        for item, numbers in enumerate(alive)
    ]


def cost(n: int, steps: int, rounds: Sequence[Round] = ()) -> int:
    """Steps that are made for one item, exactly."""
    total, before = 0, 0
    for step, keep in (*rounds, Round(steps, 1.0)):
        total, before, n = total + n * (step - before), step, _kept(n, keep)
    return total


def finished(n: int, rounds: Sequence[Round] = ()) -> int:
    """How many candidates come to their end."""
    for _, keep in rounds:
        n = _kept(n, keep)
    return n


def check(n: int, steps: int, rounds: Sequence[Round]) -> None:
    """Refuse what ``best_of_n`` refuses.

    Raises:
        ValueError: as there.
    """
    places = [0, *(step for step, _ in rounds), steps]
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if any(after <= before for before, after in pairwise(places)):
        raise ValueError(f"rounds must increase and lie between step 1 and {steps - 1}, got {places[1:-1]}")
    if not all(0 < keep < 1 for _, keep in rounds):
        raise ValueError(f"a round must keep a share between 0 and 1, got {[keep for _, keep in rounds]}")


def weighted(scores: Sequence[tuple[float, Score]]) -> Score:
    """Add up several judges, each with its weight.

    The scores are taken as they are. Standardised over an item's candidates, they would depend on n, and a judge that
    sees no difference would decide by its noise: give judges that disagree in scale other weights.
    """

    def score(images: Tensor, items: Sequence[int]) -> Sequence[float]:
        parts = [weight * np.asarray(judge(images, items), dtype=float) for weight, judge in scores]
        total: list[float] = np.sum(parts, axis=0).tolist()
        return total

    return score


def expected_maximum(n: int) -> float:
    """Give the mean of the largest of n independent standard normals: what selecting by pure noise seems to gain."""
    from scipy import integrate, special, stats

    def density(x: float) -> float:
        return float(x * n * stats.norm.pdf(x) * special.ndtr(x) ** (n - 1))

    return float(integrate.quad(density, -12, 12)[0])


def _kept(count: int, keep: float) -> int:
    return max(1, ceil(keep * count))

"""The best of several candidates, against brute force, exact costs and the expected maximum of normals."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.evaluation.best_of_n import Candidate, Round, best_of_n, cost, expected_maximum, weighted

STEPS = 10


class World:
    """Candidates whose value at a step is the final one and noise that falls to 0 with the steps."""

    def __init__(self, spread: float = 0.0) -> None:
        self.spread = spread
        self.reached: dict[Candidate, int] = {}
        self.made = 0

    def value(self, candidate: Candidate, step: int) -> float:
        rng = np.random.default_rng(list(candidate))
        return float(rng.normal() + self.spread * (1 - step / STEPS) * rng.normal())

    def grow(self, candidates: Sequence[Candidate], step: int) -> Tensor:
        for candidate in candidates:
            self.made += step - self.reached.get(candidate, 0)
            self.reached[candidate] = step
        return torch.tensor([[self.value(candidate, step)] for candidate in candidates], dtype=torch.float64)


def score(images: Tensor, items: Sequence[int]) -> list[float]:
    return images[:, 0].tolist()


def test_it_is_brute_force() -> None:
    world = World()
    for item, found in enumerate(best_of_n(world.grow, score, 50, 8, STEPS)):
        values = [world.value(Candidate(item, number), STEPS) for number in range(8)]
        assert found.ranking == tuple(np.argsort(values)[::-1])
        assert found.images[0].item() == max(values)
        assert found.images[:, 0].tolist() == sorted(values, reverse=True)
        assert found.scores == [{STEPS: value} for value in values]
        assert found.steps == 8 * STEPS


def test_the_candidates_of_eight_contain_those_of_four() -> None:
    few, many = (best_of_n(World().grow, score, 20, n, STEPS) for n in (4, 8))
    for four, eight in zip(few, many, strict=True):
        assert eight.scores[:4] == four.scores
        assert eight.images[0] >= four.images[0]


def test_of_equals_the_first_is_taken() -> None:
    found = best_of_n(World().grow, lambda images, items: [1.0] * len(images), 2, 5, STEPS, [Round(3, 0.5)])
    assert [each.ranking for each in found] == [(0, 1, 2), (0, 1, 2)]


ROUNDS = [
    [],
    [Round(5, 0.5)],
    [Round(2, 0.5), Round(6, 0.25)],
    [Round(1, 0.01)],
    [Round(3, 0.9), Round(4, 0.9), Round(9, 0.9)],
]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_halving_spends_what_it_says_and_never_more_than_all(n: int, rounds: list[Round]) -> None:
    world = World(spread=1.0)
    found = best_of_n(world.grow, score, 7, n, STEPS, rounds)
    assert world.made == 7 * cost(n, STEPS, rounds) == sum(each.steps for each in found)
    assert world.made <= 7 * n * STEPS
    for item, each in enumerate(found):
        assert len(each.scores) == n
        assert all(each.scores)  # every candidate was judged
        finished = {number for number, scores in enumerate(each.scores) if STEPS in scores}
        assert finished == set(each.ranking)
        assert each.images[0].item() == max(world.value(Candidate(item, number), STEPS) for number in finished)


def test_the_cost_by_hand() -> None:
    assert cost(8, 20) == 160
    assert cost(8, 20, [Round(5, 0.5), Round(10, 0.5)]) == 8 * 5 + 4 * 5 + 2 * 10
    assert cost(5, 20, [Round(10, 0.5)]) == 5 * 10 + 3 * 10  # a half of five is three


def test_a_preview_that_tells_all_loses_nothing() -> None:
    whole, halved = (best_of_n(World().grow, score, 30, 8, STEPS, rounds) for rounds in ([], [Round(2, 0.2)]))
    assert [each.ranking[0] for each in whole] == [each.ranking[0] for each in halved]


def test_selecting_by_noise_seems_to_gain_the_expected_maximum() -> None:
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(1 / np.sqrt(np.pi))
    assert expected_maximum(3) == pytest.approx(1.5 / np.sqrt(np.pi))
    for n in (4, 8):
        best = [each.images[0].item() for each in best_of_n(World().grow, score, 600, n, STEPS)]
        assert np.mean(best) == pytest.approx(expected_maximum(n), abs=4 * np.std(best) / np.sqrt(600))


def test_weighted_judges_add_up_as_they_are() -> None:
    judge = weighted([(1.0, score), (0.5, lambda images, items: [-item for item in items])])
    assert judge(torch.tensor([[2.0], [3.0]]), [4, 6]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("n", "rounds", "answer"),
    [
        (0, [], "n must be at least 1"),
        (4, [Round(0, 0.5)], "rounds must increase"),
        (4, [Round(STEPS, 0.5)], "rounds must increase and lie between step 1 and 9"),
        (4, [Round(5, 0.5), Round(5, 0.5)], "rounds must increase"),
        (4, [Round(5, 1.0)], "a round must keep a share between 0 and 1"),
        (4, [Round(5, 0.0)], "a round must keep a share between 0 and 1"),
    ],
)
def test_what_cannot_be(n: int, rounds: list[Round], answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        best_of_n(World().grow, score, 1, n, STEPS, rounds)

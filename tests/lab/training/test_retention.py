"""Which checkpoints stay: the rule alone, on checkpoints that are only said to be there."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from lab.training.retention import Found, Retention

FIGURES = {1: 3.0, 2: 9.0, 4: 1.0, 5: 9.0, 6: 2.0}


def found(steps: int, figures: Mapping[int, float] = FIGURES) -> list[Found]:
    """Checkpoints of steps 1 to ``steps``, newest first."""
    measured = {step: {"accuracy": figures[step]} if step in figures else {} for step in range(1, steps + 1)}
    return [Found(Path(f"step-{step}"), step, measured[step]) for step in range(steps, 0, -1)]


@pytest.mark.parametrize(
    ("keep", "broken", "stay"),
    [
        (Retention(), set(), [7, 8]),
        (Retention(4), set(), [5, 6, 7, 8]),
        (Retention(), {8}, [6, 7, 8]),
        (Retention(), {7, 5}, [6, 7, 8]),
        (Retention(3), {8, 6, 5, 4, 3, 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
        (Retention(every=3), set(), [3, 6, 7, 8]),
        (Retention(every=3), {3}, [3, 6, 7, 8]),
        (Retention(best="accuracy"), set(), [5, 7, 8]),
        (Retention(best="accuracy"), {5}, [2, 7, 8]),
        (Retention(best="accuracy"), {5, 2}, [1, 7, 8]),
        (Retention(best="-accuracy"), set(), [4, 7, 8]),
        (Retention(best="loss"), set(), [7, 8]),
        (Retention(every=4, best="accuracy"), set(), [4, 5, 7, 8]),
        (Retention(5, best="-accuracy"), set(), [4, 5, 6, 7, 8]),
    ],
)
def test_the_newest_the_milestones_and_the_best_stay(keep: Retention, broken: set[int], stay: list[int]) -> None:
    there = found(8)
    doomed = keep.doomed(there, lambda each: each.step not in broken)
    assert sorted(each.step for each in there if each not in doomed) == stay


@pytest.mark.parametrize("num", [0, 1, 2])
def test_two_are_never_too_many(num: int) -> None:
    assert Retention(every=1, best="accuracy").doomed(found(num), lambda _: True) == []


def test_no_more_is_read_than_the_rule_needs() -> None:
    read: list[int] = []
    Retention(best="accuracy").doomed(found(8), lambda each: (read.append(each.step), True)[1])
    assert read == [8, 7, 5]


def test_one_checkpoint_is_none() -> None:
    with pytest.raises(AssertionError, match="one checkpoint is none"):
        Retention(1)

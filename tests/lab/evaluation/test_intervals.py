"""The interval of a ratio of means: closed forms, and how often it covers."""

import math

import numpy as np
import pytest

from lab.evaluation.intervals import mean, ratio
from lab.randomness import key


def test_a_constant_ratio_is_known_exactly() -> None:
    below = [1.1, 1.4, 1.2, 1.9]
    found = ratio([0.5 * value for value in below], below)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)


def test_over_a_constant_it_is_the_interval_of_a_mean() -> None:
    above = [1.0, 2.0, 4.0, 3.5]
    found, plain = ratio(above, [2.0] * 4), mean(above)
    assert (found.value, found.low, found.high) == pytest.approx((plain.value / 2, plain.low / 2, plain.high / 2))


def test_its_ends_are_told_from_the_mean_by_student_at_just_five_percent() -> None:
    draw = key(0, "test", 0)
    below = draw.normal(1.0, 0.5, 30)
    above = 0.8 * below + draw.normal(0, 0.3, 30)
    found = ratio(above.tolist(), below.tolist())
    for end in (found.low, found.high):
        rest = mean((above - end * below).tolist())
        assert min(abs(rest.low), abs(rest.high)) == pytest.approx(0, abs=1e-9)


def test_where_the_mean_below_may_be_nothing_it_has_no_ends() -> None:
    found = ratio([1.0, 0.0, 1.0], [1.0, -1.0, 0.5])
    assert (found.low, found.high) == (-math.inf, math.inf)
    for pair in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, -1.0])):
        with pytest.raises(ValueError, match="a ratio needs"):
            ratio(*pair)


def test_it_covers_the_ratio_of_gains_of_right_pictures() -> None:
    """Prompts on which selection gains, loses or changes nothing, and giving up keeps nine tenths of it."""
    covered, times, n = 0, 1000, 500
    for trial in range(times):
        draw = key(1, "test", trial)
        single = draw.random(n) < 0.5
        whole = single | (draw.random(n) < 0.6)
        halved = np.where(draw.random(n) < 0.9, whole, single)
        gains = ((each.astype(float) - single).tolist() for each in (halved, whole))
        found = ratio(*gains)
        covered += found.low <= 0.9 <= found.high
    assert 0.93 <= covered / times <= 0.97

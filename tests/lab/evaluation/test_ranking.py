"""The order of configurations, and whether seeds agree on it."""

import numpy as np
import pytest

from lab.errors import Refused
from lab.evaluation.ranking import rank


def test_the_best_comes_first_and_gaps_are_between_neighbours() -> None:
    values = {"b": [0.30, 0.32], "c": [0.50, 0.56], "a": [0.10, 0.14]}
    ranking = rank(values, lower_is_better=True)
    assert list(ranking.means) == ["a", "b", "c"]
    np.testing.assert_allclose(ranking.gaps, [0.19, 0.22])
    variances = [np.var(own, ddof=1) for own in values.values()]
    assert ranking.spread == pytest.approx(np.sqrt(np.mean(variances)))
    assert ranking.is_stable
    assert ranking.is_clear
    assert list(rank(values, lower_is_better=False).means) == ["c", "b", "a"]


def test_seeds_that_disagree_are_told_and_so_are_gaps_within_their_spread() -> None:
    crossing = rank({"a": [0.1, 0.5], "b": [0.3, 0.4]}, lower_is_better=True)
    assert not crossing.is_stable
    assert not crossing.is_clear
    turned = rank({"a": [0.1, 0.9], "b": [0.2, 0.3]}, lower_is_better=True)  # each seed is in order, but not in one
    assert not turned.is_stable
    agreeing = rank({"a": [0.1, 0.5], "b": [0.2, 0.6]}, lower_is_better=True)
    assert agreeing.is_stable
    assert not agreeing.is_clear


def test_one_seed_has_no_spread_and_uneven_runs_have_no_ranking() -> None:
    alone = rank({"a": [0.1], "b": [0.2]}, lower_is_better=True)
    assert np.isnan(alone.spread)
    assert not alone.is_clear
    with pytest.raises(Refused, match=r"a 1, b 2"):
        rank({"a": [0.1], "b": [0.2, 0.3]}, lower_is_better=True)
    with pytest.raises(Refused, match="none"):
        rank({}, lower_is_better=True)

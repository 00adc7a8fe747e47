"""First of so many, against brute force."""

import pytest
import torch

from lab.errors import Refused
from lab.evaluation.retrieval import first_among, proportion, stands_out, strangers


def test_strangers_fit_in_neither_way_and_are_the_same_again() -> None:
    """Picture k is of all divisors of k + 2, and text k says that k + 2 is there."""

    def fits(item: int, other: int) -> bool:
        return (item + 2) % (other + 2) == 0

    found = strangers(60, 10, 3, fits)
    for item, row in enumerate(found.tolist()):
        assert len(set(row)) == 10
        assert not any(fits(item, other) or fits(other, item) for other in row)
    assert torch.equal(found, strangers(60, 10, 3, fits))
    assert not torch.equal(found, strangers(60, 10, 4, fits))
    with pytest.raises(Refused, match="of 60 held-out pictures only 0 have nothing to do with picture 0"):
        strangers(60, 58, 3, lambda item, other: True)


def test_first_among_is_brute_force() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, answers = torch.randn(30, 4, generator=draw), torch.randn(30, 4, generator=draw)
    others = strangers(30, 5, 0, lambda item, other: item == other)
    expected = [
        all((queries[i] @ answers[i]) > (queries[i] @ answers[j]) for j in row) for i, row in enumerate(others.tolist())
    ]
    assert first_among(queries, answers, others).tolist() == expected
    assert 0 < sum(expected) < 30


def test_equal_scores_tell_nothing_apart() -> None:
    assert stands_out(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist() == [False, True]


def test_scores_without_any_meaning_find_one_in_so_many() -> None:
    draw = torch.Generator().manual_seed(1)
    found = proportion(stands_out(torch.rand(4000, generator=draw), torch.rand(4000, 15, generator=draw)))
    assert found.low < 1 / 16 < found.high
    assert found.n == 4000

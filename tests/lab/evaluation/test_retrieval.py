"""First of so many, against brute force."""

import pytest
import torch

from lab.errors import Refused
from lab.evaluation.retrieval import first_among, proportion, stands_out, strangers


def test_strangers_say_something_else_and_are_the_same_again() -> None:
    meanings = [str(item % 20) for item in range(60)]
    found = strangers(meanings, 10, seed=3)
    for item, row in enumerate(found.tolist()):
        assert len(set(row)) == 10
        assert all(meanings[other] != meanings[item] for other in row)
    assert torch.equal(found, strangers(meanings, 10, seed=3))
    assert not torch.equal(found, strangers(meanings, 10, seed=4))
    with pytest.raises(Refused, match="of 60 held-out pictures only 57 say something else"):
        strangers(meanings, 58, seed=3)


def test_first_among_is_brute_force() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, answers = torch.randn(30, 4, generator=draw), torch.randn(30, 4, generator=draw)
    others = strangers([str(item) for item in range(30)], 5, seed=0)
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

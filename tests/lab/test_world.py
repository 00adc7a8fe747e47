"""Shares of a step, and what the exchanges of a lone process are: nothing. Those of several: test_processes.py."""

import pytest
import torch

from lab import world as module
from lab.errors import ProcessLost
from lab.world import ALONE, World, _buckets


@pytest.mark.parametrize(("batch", "size"), [(8, 1), (8, 2), (7, 2), (101, 4), (3, 3)])
def test_the_shares_of_a_step_are_consecutive_disjoint_and_even(batch: int, size: int) -> None:
    shares = [World(rank, size).share(batch) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert World(0, size).share(batch, size - 1) == shares[-1]


def test_a_lone_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with World.connect() as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
        values = torch.arange(3.0)
        world.sum_([values])
        world.beat("step 3")
        assert world.gather(values, 3) is values
        assert (world.largest(5), world.from_first(6)) == (5, 6)
    assert not torch.distributed.is_initialized()


def test_a_lone_process_makes_every_part_that_is_not_known_and_may_be_stopped_between_them() -> None:
    rows, polls = torch.zeros(5, 2), []
    missing = ALONE.fill_from_first(rows, 2, {1: torch.full((2, 2), 7.0)})
    assert missing == [0, 2]
    assert rows.tolist() == [[0, 0], [0, 0], [7, 7], [7, 7], [0, 0]]
    parts = [[1.0, 2.0], [3.0]]
    dealt = ALONE.deal(parts, lambda part: torch.tensor(part)[:, None], rows[:0], "numbers", lambda: polls.append(1))
    assert [made.tolist() for made in dealt] == [[[1.0], [2.0]], [[3.0]]]
    assert len(polls) == 2


def test_buckets_hold_tensors_of_one_type_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUCKET", 5)
    tensors = [torch.zeros(2), torch.zeros(3), torch.zeros(1), torch.zeros(9), torch.zeros(1).double()]
    assert [[t.numel() for t in bucket] for bucket in _buckets(tensors)] == [[2, 3], [1], [9], [1]]
    assert list(_buckets([])) == []


def test_a_process_that_meets_nobody_is_an_expected_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(*_: object, **__: object) -> None:
        raise RuntimeError("Connection reset by peer\nand much more")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(module, "rendezvous", alone)
    with pytest.raises(ProcessLost, match=r"process 1 did not meet the others \(Connection reset by peer\)"):
        World.connect()


def test_a_pulse_that_nobody_keeps_is_an_expected_failure() -> None:
    class Gone:
        def set(self, *_: object) -> None:
            raise RuntimeError("Broken pipe")

        def wait(self, *_: object) -> None:
            raise RuntimeError("Broken pipe")

    world = World(1, 2)
    world._pulses = Gone()  # type: ignore[assignment]
    with pytest.raises(ProcessLost, match=r"process 1 lost the others \(Broken pipe\); last seen: none of them"):
        world.beat("step 3")

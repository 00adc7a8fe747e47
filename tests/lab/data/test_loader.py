"""Batches are a function of the position alone."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable

import pytest
import torch

from lab.data.loader import Batch, Loader
from lab.data.source import Sample
from lab.errors import BadData
from lab.randomness import normal


class Counting:
    """A source whose sample is made of its slot."""

    fingerprint = "counting"

    def sample(self, seed: int, slot: int) -> Sample:
        return Sample(normal(seed, "pixels", [slot], (3, 4, 4))[0], f"number {slot}", f"{seed}-{slot}")

    def captions(self) -> Iterable[str]:
        return ["number"]


def take(loader: Loader, start: int, sizes: list[int], num: int) -> list[Batch]:
    batches = loader.batches(start, sizes)
    taken = list(itertools.islice(batches, num))
    batches.close()
    return taken


def test_a_batch_names_its_slots() -> None:
    (batch,) = take(Loader(Counting(), seed=5), 7, [3], 1)
    assert len(batch) == 3
    assert batch.images.shape == (3, 3, 4, 4)
    assert (batch.slots, batch.captions, batch.ids) == (
        (7, 8, 9),
        ("number 7", "number 8", "number 9"),
        ("5-7", "5-8", "5-9"),
    )
    assert batch.seed == 5


def test_sizes_go_round_and_leave_no_slot_out() -> None:
    slots = [batch.slots for batch in take(Loader(Counting(), seed=0), 10, [3, 3, 2], 4)]
    assert slots == [(10, 11, 12), (13, 14, 15), (16, 17), (18, 19, 20)]


def test_it_starts_anywhere_without_reading_what_comes_before() -> None:
    loader = Loader(Counting(), seed=1)
    late, alone = take(loader, 10**12, [2], 1)[0], loader.batch(range(10**12, 10**12 + 2))
    assert torch.equal(late.images, alone.images)
    assert late.slots == alone.slots


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(workers: int) -> None:
    alone, many = (take(Loader(Counting(), seed=2, workers=n), 4, [3, 2], 7) for n in (0, workers))
    assert [batch.slots for batch in many] == [batch.slots for batch in alone]
    for one, other in zip(alone, many, strict=True):
        assert torch.equal(one.images, other.images)


class Nameless(Counting):
    """Tells which process it works in."""

    def sample(self, seed: int, slot: int) -> Sample:
        return Sample(torch.zeros(3, 1, 1), "", str(os.getpid()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_outlive_a_signal_and_end_with_the_loader(number: int) -> None:
    batches = Loader(Nameless(), seed=0, workers=1).batches(0, [1])
    worker = int(next(batches).ids[0])
    assert worker != os.getpid()
    os.kill(worker, number)
    for _ in range(8):  # more than were prepared ahead
        assert next(batches).ids == (str(worker),)
    batches.close()
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(worker)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class Broken(Counting):
    """Fails, as code with a mistake does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def sample(self, seed: int, slot: int) -> Sample:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("a mistake"), BadData("nothing can be read")])
def test_an_error_in_a_worker_ends_the_workers(error: Exception) -> None:
    batches = Loader(Broken(error), seed=0, workers=1).batches(0, [1])
    with pytest.raises(type(error), match=str(error)) as caught:
        next(batches)
    assert isinstance(error, ValueError) or str(caught.value) == "nothing can be read"
    assert multiprocessing.active_children() == []

"""Randomness as a function of counters, not of state.

Everything random about sample slot ``i`` of a run comes from ``key(run_seed, stream, i)``: the noise, the noise level,
the caption that is dropped, the scene that is drawn. Nothing is advanced and nothing has to be saved, so any number of
workers, micro-batches or processes, and any restart, see the same samples with the same noise. Nothing else in the
house draws random numbers, except what draws from torch's global generator (initial weights, dropout): that is seeded.

The generators are NumPy's Philox, on the CPU: the numbers are the same whatever device the model runs on, and all 128
bits of a key count, where torch's own generator uses 32 bits of its seed and would repeat itself within 100,000 slots.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

MANY = 2**19  # numbers that are drawn by several threads, since a GPU waits for them; a row is the same by any
_DIGITS = 16  # binary digits that are shared out; those after them are independent


def number(seed: int, stream: str, counter: int) -> int:
    """Give the 128-bit number of one counter of one stream.

    Args:
        seed: the run's seed, any integer.
        stream: what the randomness is for ("noise", "t", "scene", ...); streams are independent of each other.
        counter: position within the stream, usually the sample slot.

    Returns:
        An integer in [0, 2^128), the first 16 bytes of BLAKE2b over the three.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{stream}/{counter}".encode(), digest_size=16).digest(), "little")


def key(seed: int, stream: str, counter: int) -> np.random.Generator:
    """Give a fresh generator for one counter of one stream; see ``number``."""
    return np.random.Generator(np.random.Philox(key=number(seed, stream, counter)))


def standard_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Draw a standard normal from a generator: float32 on the CPU."""
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def normal(seed: int, stream: str, slots: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Draw one standard normal per slot.

    Returns:
        (b, *shape) float32 on the CPU; row ``k`` depends on ``slots[k]`` alone.
    """
    streams = [key(seed, stream, slot) for slot in slots]
    drawn = np.empty((len(streams), *shape), np.float32)

    def draw(row: int) -> None:
        streams[row].standard_normal(out=drawn[row, ...], dtype=np.float32)

    if drawn.size < MANY:
        for row in range(len(streams)):
            draw(row)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # NumPy lets go of the interpreter's lock
            list(threads.map(draw, range(len(streams))))
    return torch.from_numpy(drawn)


def uniform(seed: int, stream: str, slots: Iterable[int]) -> Tensor:
    """Draw one number in [0, 1) per slot.

    Returns:
        (b,) float32 on the CPU; entry ``k`` depends on ``slots[k]`` alone.
    """
    # 24 bits: float32 represents every k / 2^24 exactly, so the result never rounds up to 1.
    return torch.tensor([(number(seed, stream, slot) >> 104) / (1 << 24) for slot in slots], dtype=torch.float32)


def stratified(seed: int, stream: str, slots: Iterable[int]) -> Tensor:
    """Draw one number in [0, 1) per slot, such that neighbouring slots share the interval out evenly.

    A van der Corput sequence under nested scrambling: of any 2^m slots that begin at a multiple of 2^m (m up to 16)
    exactly one falls into each of the 2^m equal parts of [0, 1), at a random place within it. Each number alone is
    uniform. As with ``uniform``, a number depends on its slot alone.

    Returns:
        (b,) float32 on the CPU.

    Source: Owen 1995, "Randomly permuted (t,m,s)-nets and (t,s)-sequences", in base 2.
    """

    def one(slot: int) -> float:
        digits = 0  # the bits of the slot, lowest first, each turned or not by a coin that hangs on those before it
        for place in range(_DIGITS):
            path = (1 << place) | (slot & ((1 << place) - 1))
            digits = digits << 1 | (slot >> place ^ number(seed, f"{stream}/turn", path)) & 1
        return ((digits << 24 - _DIGITS) | number(seed, stream, slot) >> 104 + _DIGITS) / (1 << 24)

    return torch.tensor([one(slot) for slot in slots], dtype=torch.float32)


def seed_torch(seed: int, stream: str, counter: int = 0) -> None:
    """Seed torch's global generators, for what draws from them whether we like it or not."""
    torch.manual_seed(number(seed, stream, counter) >> 65)


@contextmanager
def seeded(seed: int, stream: str, counter: int = 0) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    For what draws from the global generator whether we like it or not: initial weights and dropout.
    """
    with torch.random.fork_rng():
        seed_torch(seed, stream, counter)
        yield

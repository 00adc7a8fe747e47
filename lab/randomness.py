"""Randomness as a function of counters, not of state.

Everything random about sample slot ``i`` of a run comes from ``key(run_seed, stream, i)``: the noise, the noise level,
the caption that is dropped, the scene that is drawn. Nothing is advanced and nothing has to be saved, so any number of
workers, micro-batches or processes, and any restart, see the same samples with the same noise. Nothing else in the
house draws random numbers, except the initial weights, which are drawn under ``seeded``.

Generators live on the CPU: the numbers are the same whatever device the model runs on.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_MASK_63 = (1 << 63) - 1


def number(seed: int, stream: str, counter: int) -> int:
    """Give the 63-bit seed of one counter of one stream.

    Args:
        seed: the run's seed, any integer.
        stream: what the randomness is for ("noise", "t", "scene", ...); streams are independent of each other.
        counter: position within the stream, usually the sample slot.

    Returns:
        An integer in [0, 2^63), the first 8 bytes of BLAKE2b over the three.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{counter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK_63


def key(seed: int, stream: str, counter: int) -> torch.Generator:
    """Give a fresh CPU generator for one counter of one stream; see ``number``.

    Torch seeds it with the low 32 bits of the number: among n counters about n^2 / 2^33 pairs share their draws.
    """
    return torch.Generator("cpu").manual_seed(number(seed, stream, counter))


def normal(seed: int, stream: str, slots: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Draw one standard normal per slot.

    Returns:
        (b, *shape) float32 on the CPU; row ``k`` depends on ``slots[k]`` alone.
    """
    return torch.stack([torch.randn(shape, generator=key(seed, stream, slot)) for slot in slots])


def uniform(seed: int, stream: str, slots: Iterable[int]) -> Tensor:
    """Draw one number in [0, 1) per slot.

    Returns:
        (b,) float32 on the CPU; entry ``k`` depends on ``slots[k]`` alone.
    """
    # 24 bits: float32 represents every k / 2^24 exactly, so the result never rounds up to 1.
    return torch.tensor([(number(seed, stream, slot) >> 39) / (1 << 24) for slot in slots], dtype=torch.float32)


@contextmanager
def seeded(seed: int, stream: str, counter: int = 0) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it.

    For what draws from the global generator whether we like it or not: initial weights and dropout.
    """
    with torch.random.fork_rng():
        torch.manual_seed(number(seed, stream, counter))
        yield

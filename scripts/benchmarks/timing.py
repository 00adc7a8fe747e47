"""Alternating repetitions and their medians: what else a machine does meets all sides alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from tqdm import tqdm


def alternating(sides: Mapping[str, Callable[[], object]], repeats: int, desc: str) -> dict[str, list[float]]:
    """Time all sides in turn, in changing order, after one unmeasured call of each.

    Args:
        sides: what to call, by name.
        repeats: measured calls of each, at least 1.
        desc: names the progress bar.

    Returns:
        Seconds of each call, by name; entry k of all sides was measured in the same turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in tqdm(range(-1, repeats), unit="turn", desc=desc):
        for name in names if turn % 2 else reversed(names):
            taken = timed(sides[name])
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def timed(call: Callable[[], object]) -> float:
    """Give the seconds of one call, work on the GPU included."""
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def ratio(slow: list[float], fast: list[float]) -> str:
    """Say how many times as fast the second side is: the ratio of the medians, and the range over the turns."""
    turns = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{median(slow) / median(fast):.3f} (turns {min(turns):.3f} - {max(turns):.3f})"


def met(value: float, bar: float, *, at_least: bool) -> str:
    """Say whether a bar is met."""
    reached = value >= bar if at_least else value <= bar
    return f"bar: {'at least' if at_least else 'at most'} {bar:g}: {'met' if reached else 'missed'}"

"""Pictures of many ratios in shapes of about one area, and an order in which batches have one shape each.

A picture goes to the shape whose ratio is nearest to its own, in logarithms: twice as wide is as far as twice as high.
So little is cut off. No shape has more area than the square, so a batch of it fits where one of squares does.

An epoch is a permutation of the rows. Rearranged, it begins with whole batches of one shape, in random order; what is
left of each shape, less than a batch, comes at the end, shape by shape. Each row comes once. Where steps do not divide
an epoch, it is turned so that its batches are those of steps, and the step that spans two epochs has leftovers of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from lab.config import Config
from lab.images import Shape


class BucketsConfig(Config):
    """Which shapes pictures may have beside the square.

    Attributes:
        step: of their sides in pixels, which are multiples of it.
        ratio: of the longer side to the shorter one, at most.
    """

    step: int = Field(16, ge=1)
    ratio: float = Field(2.0, ge=1)

    def shapes(self, size: int) -> list[Shape]:
        """Give the shapes beside a square of ``size``, and the square, from the highest to the widest.

        Each shorter side has the longest one with which the area is no larger than the square's.
        """
        wide = [
            (short, long)
            for short in range(self.step, size + 1, self.step)
            if (long := size**2 // short // self.step * self.step) <= self.ratio * short
        ]
        return sorted({*wide, *((long, short) for short, long in wide)}, key=lambda shape: shape[1] / shape[0])


@dataclass(frozen=True)
class Buckets:
    """Which row of an index has which shape, and how many of a shape make a batch.

    Attributes:
        shapes: from the highest to the widest.
        numbers: (n,) the number of the shape of each row.
        batch: samples of a step.
    """

    shapes: Sequence[Shape]
    numbers: np.ndarray
    batch: int

    def shape(self, row: int) -> Shape:
        """Give the shape of a row."""
        return self.shapes[int(self.numbers[row])]

    def alike(self, rows: np.ndarray, row: int) -> np.ndarray:
        """Give those of some rows that have the shape of a row."""
        same: np.ndarray = rows[self.numbers[rows] == self.numbers[row]]
        return same

    def counts(self, rows: np.ndarray) -> dict[Shape, int]:
        """Count the rows of each shape."""
        return counted(self.numbers[rows], self.shapes)

    def order(self, rows: np.ndarray, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Give the order of an epoch.

        Args:
            rows: (n,) of the index.
            epoch: from 0; each takes n slots, and steps take ``batch`` slots from multiples of it on.
            rng: the order is a function of its state.

        Returns:
            (n,) the same rows; see the module's text.
        """
        shuffled = rng.permutation(rows)
        numbers = self.numbers[shuffled]
        counts = np.bincount(numbers, minlength=len(self.shapes))
        by_shape = np.argsort(numbers, kind="stable")
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # among those of the same shape
        is_whole = place < np.repeat(counts // self.batch * self.batch, counts)
        batches = rng.permutation(shuffled[by_shape[is_whole]].reshape(-1, self.batch))
        begun = -epoch * len(rows) % self.batch  # slots that the last step of the epoch before still lacks
        return np.roll(np.concatenate([batches.ravel(), shuffled[by_shape[~is_whole]]]), begun)


def counted(numbers: np.ndarray, shapes: Sequence[Shape]) -> dict[Shape, int]:
    """Count how often each shape has been chosen by its number."""
    return dict(zip(shapes, np.bincount(numbers, minlength=len(shapes)).tolist(), strict=True))


def listed(counts: Mapping[Shape, int]) -> str:
    """Say how many pictures have each shape, as in "12 of 80x48", width first."""
    return ", ".join(f"{number:,} of {width}x{height}" for (height, width), number in counts.items())


def nearest(sizes: np.ndarray, shapes: Sequence[Shape]) -> np.ndarray:
    """Give the number of the shape whose ratio is nearest to each picture's, in logarithms.

    Args:
        sizes: (n, 2) width and height of the pictures; one with a 0, which nobody could read, counts as a square.
        shapes: from the highest to the widest.

    Returns:
        (n,) uint16.
    """
    ratios = np.log([width / height for height, width in shapes])
    known = np.where(sizes.all(axis=1, keepdims=True), sizes, 1).astype(np.float64)
    own = np.log(known[:, 0]) - np.log(known[:, 1])
    return np.searchsorted((ratios[1:] + ratios[:-1]) / 2, own).astype(np.uint16)

"""What the loader needs to know of a data source."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One captioned image.

    Attributes:
        image: (3, H, W) float32 in [-1, 1].
        caption: what the image shows; "" where nothing is said.
        id: names the sample within its source, for messages and records.
    """

    image: Tensor
    caption: str
    id: str


class Source(Protocol):
    """A deterministic, captioned set of images, finite or not."""

    @property
    def fingerprint(self) -> str:
        """A short text that changes when the data does; part of a run's identity."""
        ...

    def sample(self, seed: int, slot: int) -> Sample:
        """Give the sample of one slot; everything random about it is a function of (seed, slot)."""
        ...

    def captions(self) -> Iterable[str]:
        """Give texts that together hold every word the source can say."""
        ...

"""What the loader needs to know of a data source."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

CAPTION = "caption"  # the kind of a caption of which no other is said


class BadSample(Exception):
    """A sample that cannot be used.

    Args:
        reason: a few words that such samples share, for counting: "broken image".
        detail: what is particular about this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Fault:
    """A sample that could not be delivered.

    Attributes:
        slot: that asked for it.
        id: names the sample within its source.
        reason, detail: as of ``BadSample``.
        sha256: of the bytes that were found, in hexadecimal digits; "" where there were none.
    """

    slot: int
    id: str
    reason: str
    detail: str
    sha256: str


@dataclass(frozen=True)
class Frame:
    """Which part of its original an image shows, for networks that are told: all in pixels of the original."""

    height: int
    width: int
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class Sample:
    """One captioned image.

    Attributes:
        image: (3, H, W) float32 in [-1, 1].
        caption: what the image shows; "" where nothing is said.
        id: names the sample within its source, for messages and records.
        kind: of the caption, such as "short" or "tags".
        frame: what was cut out of which original; ``None`` where nothing was.
        faults: samples in whose place this one stands.
    """

    image: Tensor
    caption: str
    id: str
    kind: str = CAPTION
    frame: Frame | None = None
    faults: tuple[Fault, ...] = ()


class Source(Protocol):
    """A deterministic, captioned set of images, finite or not."""

    @property
    def fingerprint(self) -> str:
        """A short text that changes when the data does; part of a run's identity."""
        ...

    @property
    def num(self) -> int | None:
        """How many different samples there are; ``None`` for an endless source."""
        ...

    def sample(self, seed: int, slot: int) -> Sample:
        """Give the sample of one slot; everything random about it is a function of (seed, slot).

        Raises:
            BadData: too many samples in a row cannot be used.
        """
        ...

    def captions(self) -> Iterable[str]:
        """Give texts that together hold every word the source can say."""
        ...

"""A finished scorer that judges pictures: its own, trained by a run, or a published one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lab.images import from_uint8, to_uint8
from lab.runtime import Runtime

CHUNK = 64  # pictures or texts per pass


class Directions(Protocol):
    """What a judge needs of a model: both halves, in evaluation mode and on the device."""

    def of_images(self, images: Tensor) -> Tensor:
        """Give the directions (b, d) of pictures (b, 3, H, W) in [-1, 1], of any size."""
        ...

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Give the directions (b, d) of texts."""
        ...

    def cut(self, texts: Sequence[str]) -> int:
        """Count the texts of which the end is not heard."""
        ...


@dataclass(frozen=True)
class Judge:
    """Says how well pictures fit texts.

    Attributes:
        model: gives their directions.
        runtime: where it computes.
        origin: which weights these are: a part of the recipe of every picture that it selects.
    """

    model: Directions
    runtime: Runtime
    origin: Mapping[str, str]

    def images(self, images: Tensor) -> Tensor:
        """Give the directions (n, d) of pictures (n, 3, H, W) as a PNG would hold them, on the CPU."""
        seen = from_uint8(to_uint8(images))
        parts = []
        for part in seen.split(CHUNK):
            with self.runtime.autocast():
                parts.append(self.model.of_images(self.runtime.batch(part)).cpu())
        return torch.cat(parts)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Give the directions (n, d) of texts, on the CPU."""
        parts = []
        for start in range(0, len(texts), CHUNK):
            with self.runtime.autocast():
                parts.append(self.model.of_texts(texts[start : start + CHUNK]).cpu())
        return torch.cat(parts)

    def cosines(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Give for each picture (n, 3, H, W) the cosine, -1 to 1, of the angle between it and its text."""
        return (self.images(images) * self.texts(texts)).sum(dim=1)

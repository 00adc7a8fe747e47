"""Decode a large latent tile by tile, in the memory of one tile.

The latent is cut into tiles; each is decoded with a margin around it, and what is near the edge of the margin is thrown
away. Where an output depends on a neighbourhood alone and the margin is as wide, every pixel is what the whole latent
gives. Where norms or attention see all positions, tiles differ in tone from the whole and from each other: there they
are blended over the margins, which hides the seams but does not make them exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FADE = 16  # latent positions over which tiles that differ in tone fade into each other; what lies further off is tone


@dataclass(frozen=True)
class Tiling:
    """How a latent is cut.

    Attributes:
        size: side of a tile in latent positions, without its margin.
        margin: in latent positions, on every side that is not the image's own.
        blend: whether neighbours fade into each other over their margins; otherwise each tile ends sharply.
    """

    size: int
    margin: int
    blend: bool

    def __post_init__(self) -> None:
        assert self.size >= 1
        assert self.margin >= 0

    def __call__(self, decode: Callable[[Tensor], Tensor], latents: Tensor, factor: int) -> Tensor:
        """Decode (b, c, h, w) latents to (b, 3, h factor, w factor) images.

        Args:
            decode: (b, c, h, w) -> (b, 3, h factor, w factor), for any h and w.
            latents: what to decode.
            factor: image side / latent side.
        """
        height, width = latents.shape[2:]
        images = latents.new_zeros(len(latents), 3, height * factor, width * factor)
        for rows, row_weights in self._spans(height, factor):
            for columns, column_weights in self._spans(width, factor):
                tile = decode(latents[:, :, rows, columns])
                weights = torch.outer(row_weights, column_weights).to(tile)
                y, x = (slice(each.start * factor, each.stop * factor) for each in (rows, columns))
                images[:, :, y, x] += tile * weights
        return images

    def _spans(self, length: int, factor: int) -> Iterator[tuple[slice, Tensor]]:
        """Give the tiles along one side, with margins, and each pixel's weight; over all tiles they add up to 1."""
        starts = range(0, length, self.size)
        for start in starts:
            end = min(start + self.size, length)
            low, high = max(0, start - self.margin), min(length, end + self.margin)
            pixels = (torch.arange(low * factor, high * factor, dtype=torch.float64) + 0.5) / factor
            rise = self._rise(pixels, start) if start > 0 else torch.ones_like(pixels)
            fall = self._rise(pixels, end) if end < length else torch.zeros_like(pixels)
            yield slice(low, high), rise - fall

    def _rise(self, pixels: Tensor, border: int) -> Tensor:
        """The share of what lies after a border, 0 well before it and 1 well after."""
        if self.blend and self.margin:
            return ((pixels - border) / (2 * self.margin) + 0.5).clamp(0, 1)
        return (pixels > border).double()

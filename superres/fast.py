"""A picture made larger in one pass.

    small picture -> [convolutions at its own size] -> details of each pixel's block
    large picture =  bicubic enlargement + details

All the work is done at the small size, where it is cheapest. Every output pixel depends on a neighbourhood alone:
norms are over the channels of a position and nothing attends, so that tiles are the whole (``vae.tiling``).

Source: Shi et al. 2016, arXiv:1609.05158, sec. 3, for the convolutions at the small size and the shuffle at the end;
Kim et al. 2016, arXiv:1511.04587, for the details on top of a bicubic enlargement.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.layers import ResidualBlock, edge, normalisation, zero_init
from lab.randomness import seeded
from lab.resampling import bicubic
from lab.runtime import Runtime
from vae.tiling import Tiling

BICUBIC_REACH = 2  # small pixels on either side that a bicubic enlargement looks at


class FastConfig(Config):
    """The shape of a fast decoder.

    Attributes:
        factor: how much larger; a power of two, at which a tile is enlarged to the last bit as it is within the whole.
        width: channels.
        depth: residual blocks.
    """

    factor: Literal[2, 4, 8] = 4
    width: int = Field(64, ge=1)
    depth: int = Field(8, ge=1)

    @property
    def reach(self) -> int:
        """How far, in small pixels, an output pixel sees: each 3x3 convolution looks one further."""
        return max(1 + 2 * self.depth + 1, BICUBIC_REACH)


class FastDecoder(nn.Module):
    """Enlarges pictures; at birth it is the bicubic filter.

    Args:
        config: its shape.
    """

    def __init__(self, config: FastConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = edge(nn.Conv2d(3, width, 3, padding=1))
        self.blocks = nn.Sequential(*(ResidualBlock(width, width, norm="position") for _ in range(config.depth)))
        last = edge(zero_init(nn.Conv2d(width, 3 * config.factor**2, 3, padding=1)))
        self.head = nn.Sequential(normalisation("position", width), nn.SiLU(), last, nn.PixelShuffle(config.factor))

    def forward(self, small: Tensor) -> Tensor:
        """Map (b, 3, h, w) in [-1, 1] to (b, 3, h factor, w factor) in about [-1, 1]; not clamped."""
        height, width = small.shape[2:]
        details: Tensor = self.head(self.blocks(self.stem(small)))
        return bicubic(small, (height * self.config.factor, width * self.config.factor)) + details.to(small)


@dataclass(frozen=True)
class Enlarger:
    """A trained decoder, and where it computes.

    Attributes:
        model: the decoder, in evaluation mode.
        runtime: where.
        tile: side in small pixels of the tiles that are enlarged one by one, in the memory of one; 0 enlarges the whole
            at once. The result is the same to rounding.
    """

    model: FastDecoder
    runtime: Runtime
    tile: int = 0

    @property
    def factor(self) -> int:
        """How much larger."""
        return self.model.config.factor

    @torch.no_grad()
    def __call__(self, small: Tensor) -> Tensor:
        """Enlarge (b, 3, h, w) in [-1, 1] to (b, 3, h factor, w factor), float32 on the CPU; not clamped."""
        if not self.tile:
            return self._enlarge(small)
        return Tiling(self.tile, self.model.config.reach, blend=False)(self._enlarge, small, self.factor)

    def _enlarge(self, small: Tensor) -> Tensor:
        with self.runtime.autocast():
            large: Tensor = self.model(self.runtime.batch(small))
        return large.float().cpu()


def build(config: FastConfig, seed: int) -> FastDecoder:
    """Build a decoder with initial weights drawn from the run's seed."""
    with seeded(seed, "weights"):
        return FastDecoder(config)

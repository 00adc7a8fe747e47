"""A picture made larger in one pass, or the latent of a small picture made a large one.

    small picture -> [convolutions at its own size] -> details of each pixel's block
    large picture =  bicubic enlargement + details

    latent        -> [convolutions at its own size] -> a block of the large picture for each position

All the work is done at the small size, where it is cheapest. Every output pixel depends on a neighbourhood alone:
norms are over the channels of a position and nothing attends, so that tiles are the whole (``vae.tiling``).

Source: Shi et al. 2016, arXiv:1609.05158, sec. 3, for the convolutions at the small size and the shuffle at the end;
Kim et al. 2016, arXiv:1511.04587, for the details on top of a bicubic enlargement.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffusion.pipeline import Poll
from lab.config import Config
from lab.layers import ResidualBlock, edge, normalisation, zero_init
from lab.randomness import seeded
from lab.resampling import bicubic
from lab.runtime import Runtime
from vae.codec import Codec, Pixels
from vae.tiling import Tiling

BICUBIC_REACH = 2  # small pixels on either side that a bicubic enlargement looks at


class FastConfig(Config):
    """The shape of a fast decoder.

    Attributes:
        factor: how much larger than the small picture; a power of two, at which a tile is enlarged to the last bit as
            it is within the whole.
        width: channels.
        depth: residual blocks.
    """

    factor: Literal[2, 4, 8] = 4
    width: int = Field(64, ge=1)
    depth: int = Field(8, ge=1)

    @property
    def reach(self) -> int:
        """How far, in small pixels or latent positions, an output sees: each 3x3 convolution looks one further."""
        return max(1 + 2 * self.depth + 1, BICUBIC_REACH)


class FastDecoder(nn.Module):
    """Enlarges pictures, and is the bicubic filter at birth; or decodes latents of small pictures, and knows nothing.

    Args:
        config: its shape.
        codec: of the small pictures: the pixels themselves, or an autoencoder's latents.

    Attributes:
        scale: side of a large picture / side of what is given.
    """

    def __init__(self, config: FastConfig, codec: Codec) -> None:
        super().__init__()
        self.config, self.scale = config, config.factor * codec.factor
        self.is_of_pixels = isinstance(codec, Pixels)
        width = config.width
        self.stem = edge(nn.Conv2d(codec.channels, width, 3, padding=1))
        self.blocks = nn.Sequential(*(ResidualBlock(width, width, norm="position") for _ in range(config.depth)))
        last = edge(zero_init(nn.Conv2d(width, 3 * self.scale**2, 3, padding=1)))
        self.head = nn.Sequential(normalisation("position", width), nn.SiLU(), last, nn.PixelShuffle(self.scale))

    def forward(self, given: Tensor) -> Tensor:
        """Map small pictures (b, 3, h, w) in [-1, 1], or latents (b, c, h, w), to large pictures; not clamped.

        Returns:
            (b, 3, h scale, w scale) in about [-1, 1].
        """
        height, width = given.shape[2:]
        made: Tensor = self.head(self.blocks(self.stem(given))).to(given)
        return bicubic(given, (height * self.scale, width * self.scale)) + made if self.is_of_pixels else made


@dataclass(frozen=True)
class Enlarger:
    """A trained decoder, and where it computes.

    Attributes:
        model: the decoder, in evaluation mode.
        runtime: where.
        tile: side in small pixels of the tiles that are enlarged one by one, in the memory of one; 0 enlarges the whole
            at once. The result is the same to rounding. An autoencoder encodes the whole in any case.
        codec: of the small pictures, as it was trained with.
    """

    model: FastDecoder
    runtime: Runtime
    tile: int = 0
    codec: Codec = field(default_factory=Pixels)

    @property
    def factor(self) -> int:
        """How much larger."""
        return self.model.config.factor

    @torch.no_grad()
    def __call__(self, small: Tensor, poll: Poll = lambda: None) -> Tensor:
        """Enlarge (b, 3, h, w) in [-1, 1] to (b, 3, h factor, w factor), float32 on the CPU; not clamped.

        For an autoencoder's latents pictures are continued by their border to sides that it takes.
        """
        height, width = small.shape[2:]
        below, right = (-side % self.codec.factor for side in (height, width))
        whole = F.pad(small, (0, right, 0, below), mode="replicate")
        large = self.decode(self.codec.posterior(self.runtime.batch(whole))[0], poll)
        return large[:, :, : height * self.factor, : width * self.factor]

    @torch.no_grad()
    def decode(self, given: Tensor, poll: Poll = lambda: None) -> Tensor:
        """Make large pictures of what the network takes: small ones, or latents; see ``FastDecoder.forward``.

        Args:
            given: (b, c, h, w).
            poll: called before every pass of the network; what it raises ends the work.
        """
        act = partial(self._pass, poll)
        if not self.tile:
            return act(given)
        positions = max(self.tile // self.codec.factor, 1)
        return Tiling(positions, self.model.config.reach, blend=False)(act, given.float().cpu(), self.model.scale)

    def _pass(self, poll: Poll, given: Tensor) -> Tensor:
        poll()
        with self.runtime.autocast():
            large: Tensor = self.model(self.runtime.batch(given))
        return large.float().cpu()


def build(config: FastConfig, codec: Codec, seed: int) -> FastDecoder:
    """Build a decoder with initial weights drawn from the run's seed."""
    with seeded(seed, "weights"):
        return FastDecoder(config, codec)

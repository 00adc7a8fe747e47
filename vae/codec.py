"""What diffusion works on: pixels, or the latents of an autoencoder, behind one contract."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from lab.config import Config
from lab.data.loader import Batch
from lab.randomness import normal


class Codec(Protocol):
    """Images to latents of unit scale and back.

    Attributes:
        channels: of the latent.
        factor: image side / latent side.
    """

    channels: int
    factor: int

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (b, 3, H, W) in [-1, 1] as mean and standard deviation, each (b, channels, H / factor, W / factor)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to (b, 3, H, W); not clamped."""
        ...


class PixelsConfig(Config):
    """Diffusion on the pixels themselves."""

    kind: Literal["pixels"] = "pixels"

    @property
    def factor(self) -> int:
        """Image side / latent side."""
        return 1


class Pixels:
    """The identity: diffusion on the pixels themselves."""

    channels = 3
    factor = 1

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give the images and a standard deviation of 0."""
        return images, torch.zeros_like(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Give the latents."""
        return latents


@torch.no_grad()
def latents(codec: Codec, batch: Batch) -> Tensor:
    """Draw each image's latent (b, c, h, w) from the codec's posterior, by its slot."""
    mean, std = codec.posterior(batch.images)
    if not std.any():
        return mean
    return mean + std * normal(batch.seed, "posterior", batch.slots, tuple(mean.shape[1:])).to(mean)

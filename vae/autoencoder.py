"""A convolutional autoencoder.

    images -> patch stem -> [levels down] -> middle -> features -> posterior
    latents -> middle -> [levels up] -> patch head -> images

A level is residual blocks at one resolution, and then the way to the next. By default every norm is over the channels
of one position, so that an output depends on a small neighbourhood of its input alone: a tile of a large latent is
decoded as it is within the whole (``vae.tiling``). Group norms and attention, which published autoencoders have, see
the whole image and give that up.
"""

from itertools import pairwise
from typing import Annotated, Literal

from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from lab.config import Config
from lab.layers import (
    Attention,
    Downsample,
    NormKind,
    Recomputable,
    ResidualBlock,
    Upsample,
    edge,
    normalisation,
)
from lab.randomness import seeded
from vae.posterior import Gaussian, Posterior
from vae.quantizer import Codebook, FiniteScalar, VectorQuantized

HEAD_WIDTH = 64
FACTORS = (2, 4, 8, 16, 32)

AnyLatent = Annotated[Gaussian | VectorQuantized | FiniteScalar, Field(discriminator="kind")]


class AutoencoderConfig(Config):
    """The shape of an autoencoder.

    Attributes:
        latent: what stands between encoder and decoder, and how many channels it has.
        patch: side of the pixel blocks that are folded into channels first, and unfolded last; 1 for none.
        widths: channels of each level, from fine to coarse, the same in encoder and decoder.
        depth: residual blocks per level.
        norm: "position" normalises the channels of each position, "group" groups of channels over all positions.
        middle_attention: whether the positions of the coarsest level attend to each other.
    """

    kind: Literal["convolutional"] = "convolutional"
    latent: AnyLatent = Gaussian()
    patch: int = Field(1, ge=1)
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field((64, 128, 256), min_length=1)
    depth: int = Field(1, ge=1)
    norm: NormKind = "position"
    middle_attention: bool = False

    @property
    def factor(self) -> int:
        """Image side / latent side."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def is_local(self) -> bool:
        """Whether an output depends on a neighbourhood alone, so that a tile is decoded as it is within the whole."""
        return self.norm == "position" and not self.middle_attention

    def reach(self) -> int:
        """Give how far, in latent positions, a pixel sees into the latent: its receptive field is 2 reach + 1 wide.

        Norms and attention aside; every 3x3 convolution sees one position further at its own resolution, and what a
        position sees at one resolution it sees at the next coarser one within half as many, rounded up.
        """
        reach = 1  # the last convolution
        for level in range(len(self.widths)):
            reach += 2 * self.depth
            if level < len(self.widths) - 1:
                reach = (reach + 1 + 1) // 2  # the convolution after the upsampling, then half, rounded up
        return reach + 4 + 1  # two blocks in the middle, and the first convolution

    @model_validator(mode="after")
    def _possible(self) -> "AutoencoderConfig":
        if self.factor not in FACTORS:
            raise ValueError(
                f"patch {self.patch} and {len(self.widths)} widths make an image side {self.factor} times the "
                f"latent's; it is to be one of {', '.join(map(str, FACTORS))}: patch doubles with every width but one"
            )
        if self.middle_attention and self.widths[-1] > HEAD_WIDTH and self.widths[-1] % HEAD_WIDTH:
            raise ValueError(f"middle_attention needs a last width that {HEAD_WIDTH} divides, got {self.widths[-1]}")
        return self


class PositionAttention(nn.Module):
    """Adds to every position what it hears of all the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width, max(1, width // HEAD_WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to the same shape."""
        h = self.attention(rearrange(x, "b c h w -> b (h w) c"))
        mixed: Tensor = x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[-2])
        return mixed


class Level(Recomputable):
    """Layers at one resolution, perhaps with the way to the next."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) through the layers."""
        mapped: Tensor = self.layers(x)
        return mapped


class Tower(nn.Module):
    """An encoder or a decoder: a stem, levels and a head.

    Args:
        stem, head: the first layers and the last.
        levels: in the order in which they compute.
    """

    def __init__(self, stem: nn.Module, levels: list[Level], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.levels, self.head = stem, nn.ModuleList(levels), head

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to what the head gives."""
        h = self.stem(x)
        for level in self.levels:
            assert isinstance(level, Level)
            h = level.run(h)
        mapped: Tensor = self.head(h)
        return mapped


class Autoencoder(nn.Module):
    """An encoder, what stands in the middle, and a decoder.

    Args:
        config: its shape, of which the attributes are a part.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels, self.factor = config.latent.channels, config.factor
        self.is_local, self.reach = config.is_local, config.reach()
        self.encoder = _encoder(config)
        self.latent = Codebook(config.latent) if isinstance(config.latent, VectorQuantized) else config.latent
        self.decoder = _decoder(config)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Give the reconstructions (b, 3, H, W) from sampled latents, and the posterior: the pass that trains.

        Args:
            images: (b, 3, H, W) in [-1, 1]; the factor divides H and W.
            noise: (b, c, H / factor, W / factor), standard normal.
        """
        posterior = self.encode(images)
        return self.decode(posterior.sample(noise)).to(images.dtype), posterior

    def encode(self, images: Tensor) -> Posterior:
        """Give the posterior of (b, 3, H, W) images in [-1, 1], in their number type."""
        posterior: Posterior = self.latent(self.encoder(images).to(images.dtype))
        return posterior

    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of the posterior of (b, 3, H, W) images in [-1, 1]."""
        posterior = self.encode(images)
        return posterior.mean, posterior.std

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (b, c, h, w) latents to (b, 3, H, W) images; not clamped."""
        images: Tensor = self.decoder(latents)
        return images


def build(config: AutoencoderConfig, seed: int) -> Autoencoder:
    """Build an autoencoder with initial weights drawn from the run's seed."""
    with seeded(seed, "weights"):
        return Autoencoder(config)


def _encoder(config: AutoencoderConfig) -> Tower:
    widths, pixels = config.widths, 3 * config.patch**2
    steps = [*pairwise(widths), (widths[-1], None)]
    levels = [Level(*_blocks(config, width), *([Downsample(width, to)] if to else [])) for width, to in steps]
    return Tower(
        nn.Sequential(nn.PixelUnshuffle(config.patch), edge(nn.Conv2d(pixels, widths[0], 3, padding=1))),
        [*levels, _middle(config)],
        _head(config, widths[-1], config.latent.features),
    )


def _decoder(config: AutoencoderConfig) -> Tower:
    widths, pixels = config.widths[::-1], 3 * config.patch**2
    steps = [*pairwise(widths), (widths[-1], None)]
    levels = [Level(*_blocks(config, width), *([Upsample(width, to)] if to else [])) for width, to in steps]
    return Tower(
        edge(nn.Conv2d(config.latent.channels, widths[0], 3, padding=1)),
        [_middle(config), *levels],
        nn.Sequential(_head(config, widths[-1], pixels), nn.PixelShuffle(config.patch)),
    )


def _blocks(config: AutoencoderConfig, width: int) -> list[nn.Module]:
    return [ResidualBlock(width, width, norm=config.norm) for _ in range(config.depth)]


def _middle(config: AutoencoderConfig) -> Level:
    width = config.widths[-1]
    attention = [PositionAttention(width)] if config.middle_attention else []
    first, last = (ResidualBlock(width, width, norm=config.norm) for _ in range(2))
    return Level(first, *attention, last)


def _head(config: AutoencoderConfig, width: int, outputs: int) -> nn.Module:
    return nn.Sequential(normalisation(config.norm, width), nn.SiLU(), edge(nn.Conv2d(width, outputs, 3, padding=1)))

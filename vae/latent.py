"""The codec of a trained autoencoder: latents of unit scale, whatever scale the encoder chose.

Mean and standard deviation of each channel are measured on posterior samples of the data and kept beside the weights;
no constant stands in for them.
"""

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor

from lab.config import Config
from lab.data.loader import Batch
from lab.errors import Refused
from lab.runtime import Runtime
from vae.codec import Codec, latents
from vae.tiling import FADE, Tiling


class Statistics(Config):
    """The scale of an autoencoder's latents, channel by channel.

    Attributes:
        mean, std: per channel, of posterior samples.
        num: images that they were measured on; 0 where they are told by the publisher.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num: int

    @model_validator(mode="after")
    def _possible(self) -> "Statistics":
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(f"std is to be as long as mean and positive, got {self.mean} and {self.std}")
        return self


class Origin(Config):
    """Which weights of which autoencoder.

    Attributes:
        run: id of its run.
        checkpoint: hash of its tensors.
        weights: "ema", "raw" or the name of another average.
        factor: image side / latent side.
    """

    run: str
    checkpoint: str
    weights: str
    factor: int


class LatentsConfig(Config):
    """Diffusion on the latents of an autoencoder that a run has trained.

    Attributes:
        run: the directory of that run; it may be moved, and trained further if the checkpoint is kept.
        weights: which of its weights, as of ``scripts/sample.py --weights``.
        tile: side in pixels of the tiles that are decoded one by one; 0 decodes the whole at once.
        cache: folder of finished latents, shared by all runs (``vae.cached``); none if null.
        origin: what was found there when the run started, filled in then.
        statistics: of the latents, filled in then.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    run: str = Field(min_length=1)
    weights: str = "ema"
    tile: int = Field(0, ge=0)
    cache: str | None = None
    origin: Origin | None = None
    statistics: Statistics | None = None

    @property
    def factor(self) -> int | None:
        """Image side / latent side, where it is known yet."""
        return self.origin.factor if self.origin else None


class Coder(Protocol):
    """A trained autoencoder, of ours or from elsewhere.

    Attributes:
        channels: of the latent.
        factor: image side / latent side.
        is_local: whether an output depends on a neighbourhood alone, ``reach`` latent positions to each side.
        reach: how far tiles overlap.
    """

    @property
    def channels(self) -> int: ...
    @property
    def factor(self) -> int: ...
    @property
    def is_local(self) -> bool: ...
    @property
    def reach(self) -> int: ...

    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation, each (b, c, h, w), of the latents of (b, 3, H, W) images in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (b, c, h, w) latents to (b, 3, H, W) images; not clamped."""
        ...


class Latents:
    """Diffusion on the standardised latents of an autoencoder.

    Args:
        model: a trained autoencoder, where it computes, in evaluation mode.
        statistics: of its latents, from ``measure``.
        tile: side in pixels of the tiles that are decoded one by one; 0 decodes the whole at once. The result is the
            same for an autoencoder that ``is_local``, and nearly for others.

    Raises:
        Refused: the tile is no multiple of the factor, or the statistics are of another autoencoder.
    """

    def __init__(self, model: Coder, statistics: Statistics, tile: int = 0) -> None:
        self.model, self.statistics = model, statistics
        self.channels, self.factor = model.channels, model.factor
        if len(statistics.mean) != self.channels:
            raise Refused(
                f"statistics of {len(statistics.mean)} channels for a latent of {self.channels}: measure them anew"
            )
        if tile % self.factor:
            raise Refused(f"a tile of {tile} pixels is no multiple of the autoencoder's factor {self.factor}")
        margin = model.reach if model.is_local else max(model.reach, FADE)
        self.tiling = Tiling(tile // self.factor, margin, not model.is_local) if tile else None
        self._mean, self._std = (
            rearrange(torch.tensor(each), "c -> c 1 1") for each in (statistics.mean, statistics.std)
        )

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode (b, 3, H, W) in [-1, 1] as mean and standard deviation, each (b, c, H / factor, W / factor).

        Raises:
            Refused: the factor does not divide H and W.
        """
        if any(side % self.factor for side in images.shape[2:]):
            height, width = images.shape[2:]
            raise Refused(
                f"images of {width}x{height} pixels do not fit the autoencoder, whose factor is {self.factor}: give "
                f"them sides that {self.factor} divides (data.size, data.buckets.step)"
            )
        mean, std = self.model.distribution(images)
        return (mean - self._mean.to(images)) / self._std.to(images), std / self._std.to(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode (b, c, h, w) standardised latents to (b, 3, H, W); not clamped."""
        own = latents * self._std.to(latents) + self._mean.to(latents)
        if self.tiling is None:
            return self.model.decode(own)
        return self.tiling(self.model.decode, own, self.factor)


@torch.no_grad()
def measure(model: Coder, batches: Iterable[Batch], runtime: Runtime) -> Statistics:
    """Measure the mean and the standard deviation of each channel of posterior samples.

    Args:
        model: a trained autoencoder, placed by the runtime, in evaluation mode.
        batches: the images; about a thousand are plenty.
        runtime: where to compute.

    Raises:
        Refused: a channel is the same everywhere, so there is nothing to standardise, or there are no images.
    """
    channels = model.channels
    codec: Codec = Latents(model, Statistics(mean=(0.0,) * channels, std=(1.0,) * channels, num=0))
    first, second, elements, num = torch.zeros(channels).double(), torch.zeros(channels).double(), 0, 0
    for batch in batches:
        with runtime.autocast():
            drawn = latents(codec, batch.with_images(runtime.batch(batch.images)))
        drawn = rearrange(drawn, "b c h w -> c (b h w)").cpu().double()
        first, second = first + drawn.sum(dim=1), second + drawn.square().sum(dim=1)
        elements, num = elements + drawn.shape[1], num + len(batch)
    if not num:
        raise Refused("no images to measure latents on: give at least one batch")
    mean = first / elements
    std = (second / elements - mean.square()).clamp(min=0).sqrt()
    if dead := [channel for channel, size in enumerate(std.tolist()) if size < 1e-6]:
        raise Refused(
            f"channels {dead} of the latent are the same in all {num} images: train with fewer channels, or with a "
            "smaller weight of the latent's penalty"
        )
    return Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()), num=num)

"""From a large picture to the small one that it is to be made from again.

    bicubic:  the antialiased bicubic filter alone, for pictures that were made small by a program
    blind:    blur, a resize by one of three filters, noise and JPEG, each drawn anew for each sample, for photographs

The small picture is rounded to bytes, as one that comes from a file. Everything random about a sample is a function of
its slot.

Source: Zhang et al. 2021, arXiv:2103.14006, and Wang et al. 2021, arXiv:2107.10833, whose first order this is.
"""

import io
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from lab.config import Config
from lab.images import from_uint8, to_uint8
from lab.randomness import key, standard_normal
from lab.resampling import bicubic, lanczos

LEAST_BLUR = 0.3  # pixels, where a Gaussian is 1 at its own pixel and 0.004 at the next


class Bicubic(Config):
    """An antialiased bicubic filter."""

    kind: Literal["bicubic"] = "bicubic"


class Blind(Config):
    """What may have happened to a photograph, drawn evenly between nothing and the limits.

    Attributes:
        blur: largest standard deviation of a Gaussian along either of its axes, in pixels of the large picture.
        noise: largest standard deviation of white noise, in levels of 255.
        quality: of JPEG, from the worst to the best.
    """

    kind: Literal["blind"] = "blind"
    blur: float = Field(3.0, ge=0)
    noise: float = Field(15.0, ge=0)
    quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (40, 95)

    @model_validator(mode="after")
    def _possible(self) -> "Blind":
        if self.quality[0] > self.quality[1]:
            raise ValueError(f"quality goes from the worst to the best, got {self.quality}")
        return self


AnyDegradation = Annotated[Bicubic | Blind, Field(discriminator="kind")]


def degrade(images: Tensor, factor: int, config: AnyDegradation, seed: int, slots: Sequence[int]) -> Tensor:
    """Make pictures small.

    Args:
        images: (b, 3, H, W) in [-1, 1]; the factor divides H and W.
        factor: how much smaller.
        config: how.
        seed: the run's.
        slots: b sample slots.

    Returns:
        (b, 3, H / factor, W / factor) in [-1, 1] in steps of 2/255; sample k depends on its image and its slot alone.
    """
    size = (images.shape[2] // factor, images.shape[3] // factor)
    if isinstance(config, Bicubic):
        return _in_bytes(bicubic(images, size)).to(images)
    spoilt = [
        _spoil(image, size, config, key(seed, "degrade", slot))
        for image, slot in zip(images.detach().cpu().float(), slots, strict=True)
    ]
    return torch.stack(spoilt).to(images)


def _in_bytes(images: Tensor) -> Tensor:
    return from_uint8(to_uint8(images))


def _spoil(image: Tensor, size: tuple[int, int], config: Blind, rng: np.random.Generator) -> Tensor:
    """Make one (3, H, W) picture small and worse."""
    first, second, angle, loudness, quality = rng.random(5).tolist()
    filters = (bicubic, lanczos, F.adaptive_avg_pool2d)
    resize = filters[int(rng.integers(len(filters)))]
    blurred = _blur(image, config.blur * first, config.blur * second, math.pi * angle)
    small = resize(blurred[None], size)[0]
    noisy = small + config.noise * loudness / 127.5 * standard_normal(rng, tuple(small.shape))
    worst, best = config.quality
    return _through_jpeg(noisy, round(worst + (best - worst) * quality))


def _blur(image: Tensor, first: float, second: float, angle: float) -> Tensor:
    """Convolve (3, H, W) with a Gaussian of two standard deviations in pixels, the first along an angle."""
    reach = math.ceil(3 * max(first, second))
    if reach == 0:
        return image
    line = torch.arange(-reach, reach + 1, dtype=torch.float32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    first, second = max(first, LEAST_BLUR), max(second, LEAST_BLUR)
    weights = torch.exp(-(along / first).square() / 2 - (across / second).square() / 2)
    weights = rearrange(weights / weights.sum(), "h w -> 1 1 h w")
    planes = F.pad(image[:, None], [reach] * 4, mode="replicate")
    blurred: Tensor = F.conv2d(planes, weights)[:, 0]
    return blurred


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    """What is left of (3, h, w) after it was saved as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(rearrange(to_uint8(image), "c h w -> h w c").numpy()).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=["JPEG"]) as picture:
        levels = torch.from_numpy(np.array(picture))
    return from_uint8(rearrange(levels, "h w c -> c h w").contiguous())

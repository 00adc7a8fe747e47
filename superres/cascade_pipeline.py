"""Small pictures to large ones by many steps: an ``Upscaler`` that draws the details.

The noise of a picture is drawn for all of it, by ``key(seed, "enlarged H x W", j)`` for picture j of its prompt, and it
is all of it that walks, however the network's work is cut into tiles. As when pictures are drawn from prompts, the
network runs at one fixed chunk size, the last chunk padded, so a picture does not depend on what came with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, gcd

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diffusion.guidance import guide
from diffusion.pipeline import Poll, Request, SamplingConfig, sampler_of, times_of
from diffusion.samplers import NoiseLike
from lab.config import Config
from lab.randomness import key, standard_normal
from lab.resampling import bicubic
from lab.runtime import Runtime
from superres.cascade import Cascade, Shown
from vae.tiling import Tiling

MARGIN = 32  # large pixels around a tile, over which it fades into its neighbours


class EnlargingConfig(Config):
    """How pictures are enlarged by a cascade, beside how its sampler walks.

    Attributes:
        grain: standard deviation of the noise that is put on the small picture, in units of [-1, 1]: the more, the less
            its single pixels are trusted.
        back_projection: how often the result, made small again, is compared with the small picture, and what it lacks
            added to it.
    """

    grain: float = Field(0.0, ge=0)
    back_projection: int = Field(0, ge=0)


@dataclass(frozen=True)
class CascadePipeline:
    """A cascade as an upscaler, with fixed weights; see ``superres.pipeline.Upscaler``.

    Attributes:
        model: in eval mode, on the runtime's device.
        sampling: how details are drawn.
        enlarging: what else is done.
        runtime: the precision that the network runs in.
        hears_text: whether prompts mean anything to it.
        tile: side in small pixels of the tiles that the network sees one by one, in the memory of one; 0 for the whole.
    """

    model: Cascade
    sampling: SamplingConfig
    enlarging: EnlargingConfig
    runtime: Runtime
    hears_text: bool = True
    tile: int = 0

    @property
    def factor(self) -> int:
        """Side of a result / side of a picture."""
        return self.model.scale.factor

    def within(self, chunk: int) -> "CascadePipeline":
        """Give the same with a chunk of at most so many; see ``superres.pipeline.Upscaler``."""
        smaller = self.sampling.model_copy(update={"chunk": min(self.sampling.chunk, chunk)})
        return replace(self, sampling=smaller)

    @torch.no_grad()
    def __call__(self, images: Tensor, requests: Sequence[Request], seed: int, poll: Poll) -> Tensor:
        """Enlarge pictures; ``poll`` is called before every call of the denoiser."""
        chunk, made = self.sampling.chunk, []
        if not self.hears_text:
            requests = [request._replace(prompt="", negative="") for request in requests]
        for start in range(0, len(images), chunk):
            few, wanted = images[start : start + chunk], list(requests[start : start + chunk])
            missing = chunk - len(wanted)
            whole = torch.cat([few, few[-1:].expand(missing, -1, -1, -1)])
            with self.runtime.autocast():
                large = self._chunk(whole, wanted + wanted[-1:] * missing, seed, poll)
            made.append(back_projected(large[: len(wanted)].float().cpu(), few, self.enlarging.back_projection))
        return torch.cat(made)

    def _chunk(self, small: Tensor, requests: Sequence[Request], seed: int, poll: Poll) -> Tensor:
        """Draw the details of one chunk: (b, 3, h, w) -> (b, 3, H, W)."""
        height, width = (self.factor * side for side in small.shape[2:])
        streams = [key(seed, f"enlarged {height} x {width}", request.number) for request in requests]
        noise = partial(_noise, streams)
        shown = self._shown(small, noise)
        denoiser = self.model.of(shown, self._tiling)
        times = times_of(self.sampling, denoiser.schedule, denoiser.parameterization)
        _, sigma = denoiser.schedule(times[:1])
        start = self.runtime.batch(sigma.item() * noise(shown.picture))
        cond = self.model.encode([request.prompt for request in requests])
        null = partial(self.model.encode, [request.negative for request in requests])
        guided = guide(denoiser, cond, null, self.sampling.guidance, times, self.sampling.guide)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            poll()
            return guided(x_t, t)

        details = sampler_of(self.sampling, noise)(denoise, start, times, denoiser.schedule)
        return self.model.scale.large(details, shown)[:, :, :height, :width]

    def _shown(self, small: Tensor, noise: NoiseLike) -> Shown:
        """What the network is shown: the pictures, continued by their border to a size that it takes."""
        unit = self.model.unit // gcd(self.model.unit, self.factor)
        below, right = (-side % unit for side in small.shape[2:])
        whole = self.runtime.batch(F.pad(small, (0, right, 0, below), mode="replicate"))
        return self.model.scale.show(whole, noise(whole), whole.new_full((len(whole),), self.enlarging.grain))

    @property
    def _tiling(self) -> Tiling | None:
        """How the network's work is cut, in large pixels."""
        if not self.tile:
            return None
        unit = self.model.unit
        size, margin = (ceil(pixels / unit) * unit for pixels in (self.tile * self.factor, MARGIN))
        return Tiling(size, margin, blend=True)


def back_projected(large: Tensor, small: Tensor, times: int) -> Tensor:
    """Bring large pictures closer to what they came from: made small again, they are to be the small ones.

    Args:
        large: (b, 3, H, W).
        small: (b, 3, h, w).
        times: how often what is missing is added.

    Source: Irani and Peleg 1991, CVGIP: Graphical Models and Image Processing 53(3), with bicubic filters.
    """
    little, much = ((images.shape[2], images.shape[3]) for images in (small, large))
    for _ in range(times):
        large = large + bicubic(small - bicubic(large, little), much)
    return large


def _noise(streams: Sequence[np.random.Generator], like: Tensor) -> Tensor:
    """Draw unit noise like (b, c, h, w), one stream per picture."""
    return torch.stack([standard_normal(stream, tuple(like.shape[1:])) for stream in streams]).to(like)

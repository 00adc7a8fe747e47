"""Prompts to images.

Image j of any prompt starts from ``key(seed, "sample", j)`` and draws all its later noise from the same generator. The
network, the text encoder and the codec always run at one fixed chunk size, the last chunk padded, so an image does not
depend on what it was asked for together with: matrix products round differently at different batch sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffusion.guidance import GuidanceConfig, guide
from diffusion.samplers import ddim, ddpm, uniform_times
from diffusion.text_to_image import TextToImage
from lab.config import Config
from lab.randomness import key, standard_normal
from lab.runtime import Runtime
from vae.codec import Codec


class SamplingConfig(Config):
    """How images are drawn; together with prompt, seed and number it determines an image.

    Attributes:
        sampler: "ddim" or "ddpm".
        steps: number of denoiser calls.
        guidance: classifier-free scale; 1 is off.
        guide: how the scale is used.
        eta: of ddim: share of the ancestral noise.
        variance: of ddpm: "upper" or "lower".
        chunk: images per pass of the network; a part of the recipe, since rounding depends on it.
    """

    sampler: Literal["ddim", "ddpm"] = "ddim"
    steps: int = Field(20, ge=1)
    guidance: float = 3.0
    guide: GuidanceConfig = GuidanceConfig()
    eta: float = Field(0.0, ge=0, le=1)
    variance: Literal["upper", "lower"] = "upper"
    chunk: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> "SamplingConfig":
        self.guide.check_sampler(self.sampler, self.eta)
        return self


class Request(NamedTuple):
    """One image that is wanted.

    Attributes:
        prompt: what it shows; "" for anything.
        number: j, which of the images of this prompt and seed.
        negative: what to move away from; "" for the null condition.
    """

    prompt: str
    number: int = 0
    negative: str = ""


@dataclass(frozen=True)
class Pipeline:
    """From prompts to images, with fixed weights.

    Attributes:
        model: in eval mode, on the runtime's device.
        codec: from latents to images.
        size: side of the images in pixels.
        runtime: the precision that the network runs in.
        offset_noise: the share of noise that is constant over a channel, as in training.
    """

    model: TextToImage
    codec: Codec
    size: int
    runtime: Runtime
    offset_noise: float = 0.0

    def draw(self, requests: Sequence[Request], seed: int, sampling: SamplingConfig) -> Iterator[Tensor]:
        """Draw images, chunk by chunk.

        Args:
            requests: what is wanted.
            seed: of the drawing.
            sampling: how.

        Yields:
            (k, 3, size, size) float32 on the CPU, not clamped, k at most ``sampling.chunk``, in the order of the
            requests.
        """
        chunk = sampling.chunk
        for start in range(0, len(requests), chunk):
            wanted = list(requests[start : start + chunk])
            with torch.no_grad(), self.runtime.autocast():
                images = self._chunk(wanted + wanted[-1:] * (chunk - len(wanted)), seed, sampling)
            yield images[: len(wanted)].float().cpu()

    def _chunk(self, requests: Sequence[Request], seed: int, sampling: SamplingConfig) -> Tensor:
        streams = [key(seed, "sample", request.number) for request in requests]

        def noise(like: Tensor) -> Tensor:
            drawn = torch.stack([standard_normal(stream, tuple(like.shape[1:])) for stream in streams])
            if self.offset_noise > 0:
                offsets = [standard_normal(stream, (like.shape[1], 1, 1)) for stream in streams]
                drawn = drawn + self.offset_noise * torch.stack(offsets)
            return drawn.to(like)

        side = self.size // self.codec.factor
        schedule, times = self.model.denoiser.schedule, uniform_times(sampling.steps)
        _, sigma = schedule(times[:1])
        x = self.runtime.batch(sigma.item() * noise(torch.empty(len(requests), self.codec.channels, side, side)))
        cond = self.model.encode([request.prompt for request in requests])
        null = self.model.encode([request.negative for request in requests])
        denoise = guide(self.model.denoiser, cond, null, sampling.guidance, times, sampling.guide)
        if sampling.sampler == "ddim":
            x = ddim(denoise, x, times, schedule, eta=sampling.eta, noise=noise)
        else:
            x = ddpm(denoise, x, times, schedule, noise=noise, variance=sampling.variance)
        return self.codec.decode(x)

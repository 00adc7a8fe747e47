"""Text-to-image diffusion as a stage of the one trainer: pixels or latents alike."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffusion.denoiser import Denoiser, per_image
from diffusion.loss import AnyTimes, UniformTimes, add_noise, square_error
from diffusion.parameterization import AnyParameterization, Eps, V
from diffusion.pipeline import Pipeline, Request, SamplingConfig
from diffusion.schedule import AnySchedule, Cosine
from diffusion.text_to_image import TextToImage
from diffusion.unet import UNet, UNetConfig
from lab.config import Config
from lab.data.loader import Batch
from lab.randomness import normal, seeded, uniform
from lab.runtime import Runtime
from lab.text.clip import ClipConfig, ClipText
from vae.codec import Codec


class DiffusionConfig(Config):
    """A text-to-image diffusion model and how it is trained.

    Attributes:
        unet: the network.
        schedule: how much noise at which time.
        parameterization: what the network predicts.
        times: where in time the training samples lie.
        caption_drop: share of captions replaced by the empty one, which teaches the null condition of guidance.
        sampling: how its images are drawn unless told otherwise.
    """

    kind: Literal["diffusion"] = "diffusion"
    unet: UNetConfig = UNetConfig()
    schedule: AnySchedule = Cosine()
    parameterization: AnyParameterization = V()
    times: AnyTimes = UniformTimes()
    caption_drop: float = Field(0.1, ge=0, le=1)
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _possible(self) -> "DiffusionConfig":
        alpha, _ = self.schedule(torch.ones(1))
        if isinstance(self.parameterization, Eps) and not alpha.all():
            raise ValueError(
                f"parameterization eps needs some signal at t = 1, but schedule {self.schedule.kind} has none there: "
                "predict v or x0"
            )
        return self


def build(config: DiffusionConfig, text: ClipConfig, codec: Codec, seed: int) -> TextToImage:
    """Build a model with initial weights drawn from the seed.

    Args:
        config: the model.
        text: its text encoder, with the vocabulary filled in.
        codec: says how many channels there are.
        seed: the run's.
    """
    with seeded(seed, "weights"):
        encoder = ClipText(text)
        network = UNet(config.unet, codec.channels, encoder.width, encoder.pooled_width)
    return TextToImage(Denoiser(network, config.schedule, config.parameterization), encoder)


class DiffusionStage:
    """Trains a ``TextToImage`` on the codec's latents of captioned images.

    Args:
        config: the model and its training.
        model: what is trained.
        codec: images to latents.
        size: side of the images in pixels, for previews.
        runtime: where previews are drawn.
    """

    def __init__(self, config: DiffusionConfig, model: TextToImage, codec: Codec, size: int, runtime: Runtime) -> None:
        self.config = config
        self.codec = codec
        self.size = size
        self.runtime = runtime
        self.players: MutableMapping[str, nn.Module] = {"model": model}
        self._tokenize = model.text.tokenize

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give the loss of each sample (b,) at its own time and noise, both functions of its slot."""
        config, slots = self.config, batch.slots
        x0 = self._latents(batch)
        drops = uniform(batch.seed, "caption_drop", slots).tolist()
        captions = [
            "" if drop < config.caption_drop else text for text, drop in zip(batch.captions, drops, strict=True)
        ]
        noised = add_noise(x0, slots, batch.seed, config.schedule, config.times)
        output, _ = self.players["model"](noised.x_t, noised.t, self._tokenize(captions).to(x0.device))
        target = config.parameterization.target(x0, noised.noise, per_image(noised.alpha), per_image(noised.sigma))
        return square_error(output, target), {}

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Draw one (3, H, W) image per caption, from the same noise every time."""
        requests = [Request(caption, number) for number, caption in enumerate(captions)]
        return torch.cat(list(self.pipeline(model).draw(requests, 0, self.config.sampling)))

    def pipeline(self, model: nn.Module) -> Pipeline:
        """Give what draws images with these weights, in eval mode."""
        assert isinstance(model, TextToImage)
        return Pipeline(model, self.codec, self.size, self.runtime)

    def findings(self) -> Mapping[str, float]:
        """Give the signal left at t = 1 and the share of empty captions."""
        alpha, _ = self.config.schedule(torch.ones(1, dtype=torch.float64))
        return {"alpha_at_1": alpha.item(), "caption_drop": self.config.caption_drop}

    def _latents(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            mean, std = self.codec.posterior(batch.images)
        if not std.any():
            return mean
        return mean + std * normal(batch.seed, "posterior", batch.slots, tuple(mean.shape[1:])).to(mean)

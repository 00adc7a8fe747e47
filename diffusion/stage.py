"""Text-to-image diffusion as a stage of the one trainer: pixels or latents alike."""

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffusion import effective_weight
from diffusion.denoiser import Denoiser, per_image
from diffusion.framing import FrameEmbedding, numbers
from diffusion.levels import logsnr
from diffusion.loss import LossConfig, Noised, add_noise, level_of, noised_at, square_error
from diffusion.parameterization import AnyParameterization, Eps, V
from diffusion.pipeline import Pipeline, Request, SamplingConfig
from diffusion.schedule import AnySchedule, Cosine, Table, terminal_signal
from diffusion.text_to_image import TextToImage
from diffusion.times import AnyTimes, LogNormalTimes, LossSecondMomentTimes, TimeTable, UniformTimes
from diffusion.unet import UNet, UNetConfig
from lab.config import Config
from lab.data.loader import Batch
from lab.randomness import seeded, uniform
from lab.runtime import CPU, Runtime
from lab.text import selection
from lab.text.encoder import placed
from lab.text.selection import AnyText
from vae.codec import Codec, PixelsConfig, latents
from vae.selection import AnyCodec

log = logging.getLogger(__name__)
SIGNAL_REFUSED = 0.075  # alpha(1), for a walk that starts from pure noise; DDPM's linear table of 500 steps has 0.080
SIGNAL_WARNED = 0.02  # Stable Diffusion's table has 0.068


class DenoisingConfig(Config):
    """What every diffusion model is told, whatever it is conditioned on.

    Attributes:
        kind: which model.
        schedule: how much noise at which time.
        parameterization: what the network predicts.
        times: where in time the training samples lie.
        loss: what is made of the error, and how samples are made noisy.
        caption_drop: share of captions replaced by the empty one, which teaches the null condition of guidance.
        sampling: how its images are drawn unless told otherwise.
    """

    kind: str
    schedule: AnySchedule = Cosine()
    parameterization: AnyParameterization = V()
    times: AnyTimes = UniformTimes()
    loss: LossConfig = LossConfig()
    caption_drop: float = Field(0.1, ge=0, le=1)
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        signal, kind = terminal_signal(self.schedule), self.schedule.kind
        if isinstance(self.parameterization, Eps) and signal == 0:
            raise ValueError(
                f"parameterization eps needs some signal at t = 1, but schedule {kind} has none there: predict v or x0"
            )
        if signal > SIGNAL_REFUSED:
            raise ValueError(
                f"schedule {kind} keeps {signal:.3f} of the signal at t = 1, but sampling starts from pure noise there "
                f"(at most {SIGNAL_REFUSED}): {more_noise(self.schedule)}"
            )
        times = self.times.base if isinstance(self.times, LossSecondMomentTimes) else self.times
        if isinstance(times, LogNormalTimes) and times.mass(self.schedule) < 0.5:
            raise ValueError(
                f"times.mean={times.mean} and times.std={times.std} lie mostly beyond the noise levels of "
                f"schedule {kind}: choose others, or a schedule that reaches them"
            )
        if self.sampling.variance == "optimal":
            raise ValueError(
                "sampling.variance=optimal is measured from a trained model, and previews are drawn while it trains: "
                "take upper or lower here, and ask sample.py or evaluate.py for --variance optimal"
            )
        for remark in self.remarks():
            log.warning("%s", remark)
        return self

    def remarks(self) -> list[str]:
        """List what is possible but seldom meant, one sentence each, with the remedy."""
        signal, kind = terminal_signal(self.schedule), self.schedule.kind
        remarks = []
        if signal > SIGNAL_WARNED:
            remarks.append(
                f"schedule {kind} keeps {signal:.3f} of the signal at t = 1, which sampling from pure noise lacks: "
                f"brightness will be off; {more_noise(self.schedule)}"
            )
        if signal == 0 and self.loss.weight.vanishes:
            remarks.append(
                f"loss.weight {self.loss.weight.kind} is 0 at t = 1, where schedule {kind} has no signal, so the first "
                "step of sampling is not learned: set loss.weight.floor=1"
            )
        return remarks


class TextToImageConfig(DenoisingConfig):
    """What every diffusion model is told that draws from prompts alone, whatever its network."""


class DiffusionConfig(TextToImageConfig):
    """A text-to-image diffusion model and how it is trained.

    Attributes:
        codec: what diffusion works on: pixels, or the latents of an autoencoder.
        unet: the network.
        frames: whether the network is told which part of which original a picture shows, for data of many sizes; what
            is drawn is told to be whole and of the size that is drawn.
    """

    kind: Literal["diffusion"] = "diffusion"
    codec: AnyCodec = PixelsConfig()
    unet: UNetConfig = UNetConfig()
    frames: bool = False


def more_noise(schedule: AnySchedule) -> str:
    """Say how to leave less signal at t = 1."""
    if isinstance(schedule, Table):
        rescaled = "" if schedule.steps == 1000 else f"multiply the betas by 1000 / {schedule.steps}, or "
        return f"{rescaled}set schedule.zero_terminal=true and predict v or x0"
    remedy = {"log_linear": "lower schedule.low", "karras": "raise schedule.sigma_max"}
    return remedy.get(schedule.kind, "set schedule.zero_terminal=true, or raise schedule.shift")


def build(config: DiffusionConfig, text: AnyText, codec: Codec, seed: int, runtime: Runtime = CPU) -> TextToImage:
    """Build a model with initial weights drawn from the seed.

    Args:
        config: the model.
        text: its text encoder, completed.
        codec: says how many channels there are.
        seed: the run's.
        runtime: where a frozen text encoder computes.

    Raises:
        Refused: pretrained weights of the encoder cannot be had.
    """
    with seeded(seed, "weights"):
        encoder = selection.build(text, runtime)
        network = UNet(config.unet, codec.channels, encoder.width, encoder.pooled_width)
        frame = FrameEmbedding(encoder.pooled_width) if config.frames else None
    return TextToImage(Denoiser(network, config.schedule, config.parameterization), encoder, frame)


def heard(batch: Batch, config: DenoisingConfig) -> list[str]:
    """Give the captions of a batch, some of them dropped, each by its slot."""
    drops = uniform(batch.seed, "caption_drop", batch.slots).tolist()
    return ["" if drop < config.caption_drop else text for text, drop in zip(batch.captions, drops, strict=True)]


def losses_of(output: Tensor, x0: Tensor, noised: Noised, config: DenoisingConfig) -> Tensor:
    """Give the loss of each sample (b,) for what a network said (b, c, h, w) of noised x0 (b, c, h, w)."""
    target = config.parameterization.target(x0, noised.noise, per_image(noised.alpha), per_image(noised.sigma))
    level = level_of(noised.t, config.schedule, config.times, config.parameterization)
    return config.loss(square_error(output, target), level)


def charts_of(config: DenoisingConfig) -> dict[str, Image.Image]:
    """Draw what the loss weighs at which noise level, where matplotlib is installed."""
    try:
        picture = effective_weight.chart(config.schedule, config.parameterization, config.loss.weight, config.times)
    except ModuleNotFoundError as error:
        log.warning("no picture of the effective weight (%s): pip install -e '.[plots]'", error)
        return {}
    return {"effective_weight": picture}


class DiffusionStage:
    """Trains a ``TextToImage`` on the codec's latents of captioned images.

    Args:
        config: the model and its training.
        model: what is trained.
        codec: images to latents.
        size: side of the images in pixels, for previews.
        runtime: where previews are drawn.
    """

    needs_whole_batch = False

    def __init__(
        self, config: TextToImageConfig, model: TextToImage, codec: Codec, size: int, runtime: Runtime
    ) -> None:
        self.config = config
        self.codec = codec
        self.size = size
        self.runtime = runtime
        self.players: MutableMapping[str, nn.Module] = {"model": model}
        self.table = TimeTable(config.times) if isinstance(config.times, LossSecondMomentTimes) else None
        self.memory: Mapping[str, Tensor] = self.table.memory if self.table else {}
        self._prepare = model.text.prepare

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give the loss of each sample (b,) at its own time and noise, both functions of its slot."""
        config = self.config
        x0 = latents(self.codec, batch)
        noised = add_noise(x0, batch.slots, batch.seed, config.schedule, config.times, config.loss, self.table)
        losses = self._losses(self.players["model"], batch, x0, heard(batch, config), noised)
        if self.table is None:
            return losses, {}
        return losses / self.table.rate(noised.quantile).to(losses), {"quantile": noised.quantile}

    def losses_by_level(self, model: nn.Module, batch: Batch, levels: int) -> Tensor:
        """Give the loss (b, levels) of each sample on a fixed grid, with every caption heard.

        Its columns stand for equally likely parts of the times that training draws, so the mean of a row estimates what
        training minimises. Noise and latent of a sample are functions of its slot.
        """
        config, slots = self.config, batch.slots
        x0 = latents(self.codec, batch)
        columns = []
        for k in range(levels):
            quantile = torch.full((len(batch),), (k + 0.5) / levels)
            noised = noised_at(quantile, x0, slots, batch.seed, config.schedule, config.times, config.loss)
            columns.append(self._losses(model, batch, x0, batch.captions, noised))
        return torch.stack(columns, dim=1)

    def logsnr_of_levels(self, levels: int) -> list[float]:
        """Give the log-SNR of each column of ``losses_by_level``."""
        quantile = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
        schedule = self.config.schedule
        found: list[float] = logsnr(*schedule(self.config.times(quantile, schedule))).tolist()
        return found

    def _losses(self, model: nn.Module, batch: Batch, x0: Tensor, captions: Sequence[str], noised: Noised) -> Tensor:
        frames = numbers(batch.frames, len(batch), self.size).to(x0)
        output, _ = model(noised.x_t, noised.t, placed(self._prepare(captions), x0.device), frames)
        return losses_of(output, x0, noised, self.config)

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Let the table of times, if there is one, learn from the step's losses."""
        if self.table is not None:
            self.table.learn(samples["quantile"], samples["loss"])

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Draw one (3, H, W) image per caption, from the same noise every time."""
        requests = [Request(caption, number) for number, caption in enumerate(captions)]
        return torch.cat(list(self.pipeline(model).draw(requests, 0, self.config.sampling)))

    def pipeline(self, model: nn.Module) -> Pipeline:
        """Give what draws images with these weights, in eval mode."""
        assert isinstance(model, TextToImage)
        return Pipeline(model, self.codec, self.size, self.runtime, self.config.loss.offset_noise)

    def findings(self) -> Mapping[str, float]:
        """Give the signal left at t = 1 and the share of empty captions."""
        return {"alpha_at_1": terminal_signal(self.config.schedule), "caption_drop": self.config.caption_drop}

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw what the loss weighs at which noise level, where matplotlib is installed."""
        return charts_of(self.config)

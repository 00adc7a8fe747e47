"""A cascade as a stage of the one trainer: diffusion of the details that small pictures lack.

Pictures of the data are the large ones; the small ones are made from them.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffusion.denoiser import Denoiser
from diffusion.loss import add_noise
from diffusion.pipeline import Request, SamplingConfig
from diffusion.schedule import terminal_signal
from diffusion.stage import DenoisingConfig, charts_of, heard, losses_of
from diffusion.times import LossSecondMomentTimes, TimeTable
from diffusion.unet import UNetConfig
from lab.data.loader import Batch
from lab.randomness import normal, seeded, uniform
from lab.resampling import bicubic
from lab.runtime import CPU, Runtime
from lab.text import selection
from lab.text.encoder import placed
from lab.text.selection import AnyText
from superres.cascade import Cascade, CascadeNetwork, Scale
from superres.cascade_pipeline import CascadePipeline, EnlargingConfig
from superres.degrade import AnyDegradation, Bicubic, degrade
from superres.pairs import pairs


class CascadeConfig(DenoisingConfig):
    """A cascade and how it is trained.

    Attributes:
        factor: how much larger its pictures are.
        unet: the network, at the size of the large pictures. In the layout of Imagen's it is efficient: ``patch`` 2, so
            that no block works on single pixels, more ``depths`` at the coarser levels, and a ``skip_scale`` of 0.7071.
        detail: standard deviation of what the bicubic enlargement of a small picture lacks, in units of [-1, 1]; the
            metric "detail" is that of a sample.
        degradation: how small pictures are made from large ones.
        crop: side in pixels of the part of a large picture that is trained on, another one each time; 0 for all of it.
        grain: largest standard deviation of the noise on small pictures, in units of [-1, 1]; that of a sample is drawn
            evenly between 0 and this.
        enlarging: how pictures are enlarged, unless told otherwise.
    """

    kind: Literal["cascade"] = "cascade"
    factor: Literal[2, 4, 8] = 4
    unet: UNetConfig = UNetConfig(patch=2, skip_scale=0.7071)
    detail: float = Field(0.1, gt=0)
    degradation: AnyDegradation = Bicubic()
    crop: int = Field(0, ge=0)
    grain: float = Field(0.1, ge=0)
    sampling: SamplingConfig = SamplingConfig(sampler="dpmpp_2m", guidance=1.0, chunk=4)
    enlarging: EnlargingConfig = EnlargingConfig()

    @property
    def hears_text(self) -> bool:
        """Whether prompts mean anything to it."""
        return self.caption_drop < 1

    @model_validator(mode="after")
    def _fits_together(self) -> "CascadeConfig":
        if self.crop % self.factor:
            raise ValueError(f"crop={self.crop} is no multiple of factor={self.factor}")
        if self.crop % self.unet.factor:
            raise ValueError(
                f"crop={self.crop} is no multiple of {self.unet.factor}, the network's factor (unet.patch, doubled by "
                "every level below the first)"
            )
        if self.enlarging.grain > self.grain:
            raise ValueError(
                f"enlarging.grain={self.enlarging.grain:g} is more than the network learns of, grain={self.grain:g}"
            )
        if self.loss.offset_noise > 0:
            raise ValueError(
                "loss.offset_noise is for brightness, which the small picture shows: set loss.offset_noise=0"
            )
        if not self.hears_text and self.sampling.guidance != 1:
            raise ValueError("sampling.guidance does nothing where all captions are dropped: set it to 1")
        return self


def build(config: CascadeConfig, text: AnyText, seed: int, runtime: Runtime = CPU) -> Cascade:
    """Build a cascade with initial weights drawn from the seed.

    Args:
        config: what is built.
        text: its text encoder, completed.
        seed: the run's.
        runtime: where a frozen text encoder computes.

    Raises:
        Refused: pretrained weights of the encoder cannot be had.
    """
    with seeded(seed, "weights"):
        encoder = selection.build(text, runtime)
        network = CascadeNetwork(config.unet, encoder.width, encoder.pooled_width)
    denoiser = Denoiser(network, config.schedule, config.parameterization)
    return Cascade(denoiser, encoder, Scale(config.factor, config.detail))


class CascadeStage:
    """Trains a ``Cascade`` on pairs of captioned pictures.

    Args:
        config: the model and its training.
        model: what is trained.
        seed: of the small pictures of previews.
        originals: gives the first so many large pictures (b, 3, H, W), for previews.
        runtime: where previews are made.
    """

    needs_whole_batch = False

    def __init__(
        self,
        config: CascadeConfig,
        model: Cascade,
        seed: int,
        originals: Callable[[int], Tensor],
        runtime: Runtime,
    ) -> None:
        self.config, self.seed, self.originals, self.runtime = config, seed, originals, runtime
        self.players: MutableMapping[str, nn.Module] = {"model": model}
        self.table = TimeTable(config.times) if isinstance(config.times, LossSecondMomentTimes) else None
        self.memory: Mapping[str, Tensor] = self.table.memory if self.table else {}
        self._prepare, self._scale = model.text.prepare, model.scale

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give the loss of each sample (b,), and the standard deviation of its details without their unit.

        Part, small picture, grain, time and noise of a sample are functions of its slot.
        """
        config, slots = self.config, batch.slots
        large, small = pairs(batch, config.crop, config.factor, config.degradation)
        noise = normal(batch.seed, "grain", slots, tuple(small.shape[1:])).to(small)
        grain = config.grain * uniform(batch.seed, "grain strength", slots).to(small)
        shown = self._scale.show(small, noise, grain)
        x0 = self._scale.details(large, shown)
        noised = add_noise(x0, slots, batch.seed, config.schedule, config.times, config.loss, self.table)
        prepared = placed(self._prepare(heard(batch, config)), x0.device)
        output, _ = self.players["model"](noised.x_t, noised.t, prepared, shown)
        losses = losses_of(output, x0, noised, config)
        missing = large - bicubic(small, (large.shape[2], large.shape[3]))
        metrics = {"detail": missing.square().flatten(1).mean(dim=1).sqrt()}
        if self.table is None:
            return losses, metrics
        return losses / self.table.rate(noised.quantile).to(losses), metrics | {"quantile": noised.quantile}

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Let the table of times, if there is one, learn from the step's losses."""
        if self.table is not None:
            self.table.learn(samples["quantile"], samples["loss"])

    def pipeline(self, model: nn.Module, tile: int = 0) -> CascadePipeline:
        """Give what enlarges pictures with these weights, in eval mode; see ``CascadePipeline``."""
        assert isinstance(model, Cascade)
        config = self.config
        return CascadePipeline(model, config.sampling, config.enlarging, self.runtime, config.hears_text, tile)

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Show the bicubic enlargement, what is drawn, and the original, side by side; the same noise every time."""
        large, slots = self.originals(len(captions)), range(len(captions))
        small = degrade(large, self.config.factor, self.config.degradation, self.seed, slots)
        requests = [Request(caption, number) for number, caption in enumerate(captions)]
        drawn = self.pipeline(model)(small, requests, 0, lambda: None)
        return torch.cat([bicubic(small, (large.shape[2], large.shape[3])), drawn, large], dim=-1)

    def findings(self) -> Mapping[str, float]:
        """Give the signal left at t = 1, the share of empty captions, and the factor."""
        signal = terminal_signal(self.config.schedule)
        return {"alpha_at_1": signal, "caption_drop": self.config.caption_drop, "factor": float(self.config.factor)}

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw what the loss weighs at which noise level, where matplotlib is installed."""
        return charts_of(self.config)

"""A fast decoder, and perhaps a critic, as a stage of the one trainer.

Pictures of the data are the large ones; the small ones are made from them, and seen as they are or as the latents of a
frozen autoencoder. Losses and critic are those of autoencoders, for both are a network whose output is to be a given
image.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn

from lab.config import Config
from lab.data.loader import Batch
from lab.evaluation.perceptual import Perceptual
from lab.resampling import bicubic
from lab.runtime import Runtime
from superres import fast
from superres.degrade import AnyDegradation, Bicubic, degrade
from superres.fast import FastConfig
from superres.pairs import pairs
from vae.codec import Codec, PixelsConfig, latents
from vae.critic import Contest, CriticConfig
from vae.loss import LossConfig, psnr
from vae.selection import AnyCodec


class FastStageConfig(Config):
    """A fast decoder and how it is trained.

    Attributes:
        decoder: the network.
        codec: what it is given of a small picture: its pixels, or the latents of an autoencoder.
        degradation: how small pictures are made from large ones.
        crop: side in pixels of the part of a large picture that is trained on, another one each time; 0 for all of it.
        loss: what is made of the difference between a large picture and what the decoder makes of the small one.
        critic: a second player that tells them apart; ``None`` for none.
    """

    kind: Literal["fast"] = "fast"
    decoder: FastConfig = FastConfig()
    codec: AnyCodec = PixelsConfig()
    degradation: AnyDegradation = Bicubic()
    crop: int = Field(0, ge=0)
    loss: LossConfig = LossConfig()
    critic: CriticConfig | None = None

    @property
    def factor(self) -> int:
        """Side of a large picture / side of what is given, as far as the autoencoder is known yet."""
        return self.decoder.factor * (self.codec.factor or 1)

    @model_validator(mode="after")
    def _possible(self) -> "FastStageConfig":
        if self.crop % self.decoder.factor:
            raise ValueError(f"crop={self.crop} is no multiple of decoder.factor={self.decoder.factor}")
        if self.loss.equivariance:
            raise ValueError("loss.equivariance is a property of latents, and there are none: set it to 0")
        return self


class FastStage:
    """Trains a fast decoder, and in turn with it the critic, if there is one.

    Args:
        config: the decoder and its training.
        seed: the run's, for initial weights.
        perceptual: the network of ``config.loss.perceptual``, where there is one.
        originals: gives the first so many large pictures (b, 3, H, W), for previews.
        runtime: where previews are made.
        codec: of the small pictures.

    Attributes:
        players: "model", the decoder, and maybe "critic".
        memory: what the contest with the critic remembers.
    """

    needs_whole_batch = False

    def __init__(
        self,
        config: FastStageConfig,
        seed: int,
        perceptual: Perceptual | None,
        originals: Callable[[int], Tensor],
        runtime: Runtime,
        codec: Codec,
    ) -> None:
        assert (perceptual is None) == (config.loss.perceptual is None)
        self.config, self.seed, self.runtime, self.codec = config, seed, runtime, codec
        self.perceptual, self.originals = perceptual, originals
        self.contest = Contest(config.critic, seed)
        self.players: MutableMapping[str, nn.Module] = {
            "model": fast.build(config.decoder, codec, seed),
            **self.contest.players,
        }
        self.memory = self.contest.memory

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give a player's loss of each sample (b,), and its parts; before the critic's first step it rests."""
        large, small = self._pairs(batch)
        given = latents(self.codec, batch.with_images(small))
        if player == "model":
            return self._model_loss(large, small, given)
        return self.contest.critic_loss(self.players, large, lambda: self.players["model"](given))

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Let the contest learn from the step."""
        self.contest.learn(samples)

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Show the bicubic enlargement, what the decoder makes, and the original, side by side."""
        large = self.runtime.batch(self.originals(len(captions)))
        small = degrade(large, self.config.decoder.factor, self.config.degradation, self.seed, range(len(captions)))
        with self.runtime.autocast():
            made: Tensor = model(self.codec.posterior(small)[0])
        return torch.cat([bicubic(small, (large.shape[2], large.shape[3])), made, large], dim=-1)

    def findings(self) -> Mapping[str, float]:
        """Give the factor, and how far the decoder sees in small pixels, or in positions of a latent."""
        return {"factor": float(self.config.decoder.factor), "reach": float(self.config.decoder.reach)}

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw nothing."""
        return {}

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        config = self.config
        return pairs(batch, config.crop, config.decoder.factor, config.degradation)

    def _model_loss(self, large: Tensor, small: Tensor, given: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        made = self.players["model"](given)
        losses, metrics = self.config.loss(made, large, self.perceptual)
        enlarged = bicubic(small, (large.shape[2], large.shape[3]))
        metrics["above_bicubic"] = metrics["psnr"] - psnr(enlarged, large)
        losses, said = self.contest.heard(self.players, losses, made)
        return losses, metrics | said

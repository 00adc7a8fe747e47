"""An autoencoder, and perhaps its critic, as a stage of the one trainer."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.data.crops import cropped
from lab.data.loader import Batch
from lab.evaluation.perceptual import Perceptual
from lab.randomness import key, normal
from lab.runtime import Runtime
from vae import autoencoder
from vae.autoencoder import Autoencoder, AutoencoderConfig
from vae.critic import Contest, CriticConfig
from vae.loss import LossConfig, halved
from vae.posterior import Posterior
from vae.quantizer import Codebook


class VaeConfig(Config):
    """An autoencoder and how it is trained.

    Attributes:
        autoencoder: the network and the kind of its latent.
        loss: what is made of the difference between an image and its reconstruction.
        critic: a second player that tells them apart; ``None`` for none.
        crop: side in pixels of the part of a picture that is trained on, another one each time; 0 for all of it.
    """

    kind: Literal["vae"] = "vae"
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    loss: LossConfig = LossConfig()
    critic: CriticConfig | None = None
    crop: int = Field(0, ge=0)


class AutoencoderStage:
    """Trains an autoencoder, and in turn with it the critic, if there is one.

    Args:
        config: the autoencoder and its training.
        seed: the run's, for initial weights and for the places where dead codes begin anew.
        perceptual: the network of ``config.loss.perceptual``, where there is one.
        originals: gives so many images (b, 3, H, W) for previews.
        runtime: where previews are made.

    Attributes:
        players: "model", the autoencoder, and maybe "critic".
        memory: what the contest with the critic remembers.
    """

    needs_whole_batch = False

    def __init__(
        self,
        config: VaeConfig,
        seed: int,
        perceptual: Perceptual | None,
        originals: Callable[[int], Tensor],
        runtime: Runtime,
    ) -> None:
        assert (perceptual is None) == (config.loss.perceptual is None)
        self.config, self.seed, self.runtime = config, seed, runtime
        self.perceptual, self.originals = perceptual, originals
        self.contest = Contest(config.critic, seed)
        self.players: MutableMapping[str, nn.Module] = {
            "model": autoencoder.build(config.autoencoder, seed),
            **self.contest.players,
        }
        self.memory = self.contest.memory

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give a player's loss of each sample (b,), and its parts; before the critic's first step it rests."""
        batch = batch.with_images(cropped(batch, self.config.crop))
        return self._model_loss(batch) if player == "model" else self._critic_loss(batch)

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Let the codebook and the contest learn from the step."""
        codebook = self._model.latent
        if isinstance(codebook, Codebook):
            codebook.learn(samples["vectors"].flatten(0, 1), key(self.seed, "revival", self.contest.step))
        self.contest.learn(samples)

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Show original, reconstruction (of the latent's mean) and their difference, on grey, side by side."""
        assert isinstance(model, Autoencoder)
        images = self.runtime.batch(self.originals(len(captions)))
        with self.runtime.autocast():
            reconstructions = model.decode(model.encode(images).mean).to(images.dtype)
        return torch.cat([images, reconstructions, reconstructions - images], dim=-1)

    def findings(self) -> Mapping[str, float]:
        """Give the factor, the latent's channels, and how many numbers of an image one of the latent stands for."""
        config = self.config.autoencoder
        channels = config.latent.channels
        return {
            "factor": float(config.factor),
            "latent_channels": float(channels),
            "compression": 3 * config.factor**2 / channels,
        }

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw nothing."""
        return {}

    @property
    def _model(self) -> Autoencoder:
        model = self.players["model"]
        assert isinstance(model, Autoencoder)
        return model

    def _reconstruct(self, batch: Batch) -> tuple[Tensor, Posterior, Tensor]:
        """Give the reconstructions of a batch, the posterior, and the latents that were drawn from it by slot."""
        images, config = batch.images, self.config.autoencoder
        shape = (config.latent.channels, *(side // config.factor for side in images.shape[2:]))
        noise = normal(batch.seed, "posterior", batch.slots, shape).to(images)
        reconstructions, posterior = self.players["model"](images, noise)
        return reconstructions, posterior, posterior.sample(noise)

    def _model_loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        config, images = self.config.loss, batch.images
        reconstructions, posterior, latents = self._reconstruct(batch)
        losses, metrics = config(reconstructions, images, self.perceptual)
        losses, said = self.contest.heard(self.players, losses, reconstructions)
        metrics |= {**posterior.metrics, **said}
        if config.equivariance:
            small = self._model.decode(halved(latents)).to(images.dtype)
            metrics["equivariance"] = config.error(small, halved(images))
            losses = losses + config.equivariance * metrics["equivariance"]
        return losses + posterior.penalty, metrics

    def _critic_loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.contest.critic_loss(self.players, batch.images, lambda: self._reconstruct(batch)[0])

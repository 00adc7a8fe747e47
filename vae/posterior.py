"""What an encoder says of an image's latent, and the Gaussian kind of it.

Every kind of latent, Gaussian or quantised, is a mean and a standard deviation per element, so that a latent is always

    latent = mean + std noise

and the codec of a trained autoencoder asks no questions; a quantised latent has std 0. What keeps latents orderly is
the penalty, one number per image that is added to its loss.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lab.config import Config

LOGVAR_LIMITS = (-30.0, 20.0)  # beyond them the exponential is 0 or infinite to float32's digits


class Posterior(NamedTuple):
    """The distribution of the latents of some images.

    Attributes:
        mean, std: (b, c, h, w).
        penalty: (b,), to be added to the loss.
        metrics: per image, as of ``Stage.loss``.
    """

    mean: Tensor
    std: Tensor
    penalty: Tensor
    metrics: Mapping[str, Tensor]

    def sample(self, noise: Tensor) -> Tensor:
        """Give the latents (b, c, h, w) that standard normal noise of that shape leads to."""
        return self.mean + self.std * noise


class Gaussian(Config):
    """A latent with a Gaussian posterior per element, pulled towards the standard normal.

    Attributes:
        channels: of the latent.
        weight: of the Kullback-Leibler divergence per element of the latent, so that it means the same at every size.

    Source: Kingma and Welling 2014, arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752, for the small weight.
    """

    kind: Literal["gaussian"] = "gaussian"
    channels: int = Field(4, ge=1)
    weight: float = Field(1e-4, ge=0)

    @property
    def features(self) -> int:
        """Channels that the encoder gives."""
        return 2 * self.channels

    def __call__(self, features: Tensor) -> Posterior:
        """Read (b, 2 c, h, w) features as mean and logarithm of the variance, which is clamped."""
        mean, logvar = features.chunk(2, dim=1)
        logvar = logvar.clamp(*LOGVAR_LIMITS)
        divergence = kl(mean, logvar)
        return Posterior(mean, (0.5 * logvar).exp(), self.weight * divergence, {"kl": divergence})


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Give the divergence of Gaussians from the standard normal, per element, in nats.

    Args:
        mean, logvar: (b, c, h, w).

    Returns:
        (b,), the mean over elements of (mean^2 + variance - 1 - logvar) / 2.

    Source: Kingma and Welling 2014, arXiv:1312.6114, appendix B.
    """
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar).flatten(1).mean(dim=1)

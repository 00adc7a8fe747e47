"""What is made of the difference between images and their reconstructions.

All parts are means per pixel or position, one number per image, so that their weights mean the same at every size.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lab.config import Config
from lab.evaluation.perceptual import AnyPerceptual, Perceptual


class LossConfig(Config):
    """What an autoencoder is trained to make small, beside the penalty of its latent and what a critic says.

    Attributes:
        pixel: "l1" the mean absolute difference, "l2" the mean square.
        perceptual: a distance in the features of a frozen network, added with its weight; ``None`` for none.
        equivariance: weight of the same pixel loss at half size: the latent, averaged over 2 x 2 positions, is to be
            decoded as the image averaged over 2 x 2 pixels. It takes from the latent what diffusion finds hard.

    Source: Kouzelis et al. 2025, arXiv:2502.09509, for the equivariance, here of scale alone.
    """

    pixel: Literal["l1", "l2"] = "l1"
    perceptual: AnyPerceptual | None = None
    equivariance: float = Field(0.0, ge=0)

    def error(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Give the pixel loss (b,) of (b, 3, H, W) images."""
        difference = reconstructions - images
        return (difference.abs() if self.pixel == "l1" else difference.square()).flatten(1).mean(dim=1)

    def __call__(
        self, reconstructions: Tensor, images: Tensor, perceptual: Perceptual | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the loss (b,) of reconstructions, and its parts: "pixel", "psnr" in dB, and maybe "perceptual".

        Args:
            reconstructions: (b, 3, H, W).
            images: (b, 3, H, W) in [-1, 1].
            perceptual: the network of ``self.perceptual``.
        """
        losses = self.error(reconstructions, images)
        metrics = {"pixel": losses, "psnr": psnr(reconstructions.detach(), images)}
        if self.perceptual is not None:
            assert perceptual is not None
            metrics["perceptual"] = perceptual(reconstructions, images)
            losses = losses + self.perceptual.weight * metrics["perceptual"]
        return losses, metrics


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Give the peak signal-to-noise ratio (b,) in dB of (b, 3, H, W) images whose range is 2; at most 120."""
    return -10 * ((reconstructions - images).square().flatten(1).mean(dim=1) / 4).clamp(min=1e-12).log10()


def halved(maps: Tensor) -> Tensor:
    """Average (b, c, h, w) over 2 x 2 positions."""
    return F.avg_pool2d(maps, 2)

"""From a batch of large pictures to pairs of a large one and the small one that it is to be made from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.data.loader import Batch
from lab.randomness import key
from superres.degrade import AnyDegradation, degrade


def pairs(batch: Batch, crop: int, factor: int, degradation: AnyDegradation) -> tuple[Tensor, Tensor]:
    """Give large pictures, perhaps parts of them, and the small ones made from them; all by slot.

    Args:
        batch: the large pictures, (b, 3, H, W).
        crop: side in pixels of the part that is taken, another one for each slot; 0 for all of it.
        factor: how much smaller the small ones are.
        degradation: how they are made.
    """
    large = batch.images
    if crop:
        shares = [key(batch.seed, "crop", slot).random(2).tolist() for slot in batch.slots]
        large = torch.stack([_part(image, crop, share) for image, share in zip(large, shares, strict=True)])
    return large, degrade(large, factor, degradation, batch.seed, batch.slots)


def _part(image: Tensor, side: int, shares: Sequence[float]) -> Tensor:
    """Cut a square out of (3, H, W), at two shares in [0, 1) of the way that it can go down and right."""
    top, left = (int(share * (length - side + 1)) for share, length in zip(shares, image.shape[1:], strict=True))
    return image[:, top : top + side, left : left + side]

"""Parts of the pictures of a batch, another for each slot: what local networks learn from where wholes are large."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.data.loader import Batch
from lab.randomness import key


def cropped(batch: Batch, side: int) -> Tensor:
    """Cut (b, 3, side, side) out of pictures (b, 3, H, W), placed by the slot of each; side 0 for all of it."""
    if not side:
        return batch.images
    shares = [key(batch.seed, "crop", slot).random(2).tolist() for slot in batch.slots]
    return torch.stack([_part(image, side, share) for image, share in zip(batch.images, shares, strict=True)])


def _part(image: Tensor, side: int, shares: Sequence[float]) -> Tensor:
    """Cut a square out of (3, H, W), at two shares in [0, 1) of the way that it can go down and right."""
    top, left = (int(share * (length - side + 1)) for share, length in zip(shares, image.shape[1:], strict=True))
    return image[:, top : top + side, left : left + side]

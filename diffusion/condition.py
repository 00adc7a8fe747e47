"""What a denoiser is told beside the state: encoded text, and its empty twin."""

from typing import NamedTuple

import torch
from torch import Tensor


class Cond(NamedTuple):
    """Encoded text of a batch.

    Attributes:
        tokens: (b, l, d), one vector per token.
        mask: (b, l) bool, True = real token.
        pooled: (b, p), one vector per text.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


def stack(*conds: Cond) -> Cond:
    """Put several conditions into one batch, so that they take one pass of the network."""
    return Cond(*(torch.cat(parts) for parts in zip(*conds, strict=True)))

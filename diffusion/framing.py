"""Which part of which original a picture shows, as something that a network is told.

A small original was enlarged, and of a wide one the sides were cut off. A network that is told so learns from such
pictures too, and is asked for pictures that are neither: whole, and of the size that is drawn.

Source: Podell et al. 2023, arXiv:2307.01952, section 2.2; here sides in octaves and cuts in shares of a side.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from lab.data.source import Frame
from lab.layers import zero_init

NUMBERS = 4  # of a frame
WAVES = 6  # a sine and a cosine each, the longest of 32 octaves and the shortest of one, or of a side


def numbers(frames: Sequence[Frame | None], num: int, size: int) -> Tensor:
    """Give what frames say as numbers (num, 4): octaves of height and width above ``size``, and shares cut off.

    Args:
        frames: one per picture, ``None`` for a whole one of ``size``; or none at all.
        num: pictures.
        size: side in pixels of what the network draws.
    """
    whole = Frame(size, size)
    found = [frame or whole for frame in frames] or [whole] * num
    rows = [(math.log2(f.height / size), math.log2(f.width / size), f.top / f.height, f.left / f.width) for f in found]
    return torch.tensor(rows, dtype=torch.float32)


class FrameEmbedding(nn.Module):
    """Turn what a frame says into something to be added to a pooled text; nothing at birth.

    Args:
        width: of the pooled text.
    """

    multiples: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("multiples", math.pi / 16 * 2.0 ** torch.arange(WAVES), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 * NUMBERS * WAVES, width), nn.SiLU(), zero_init(nn.Linear(width, width))
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Embed (b, 4) numbers as (b, width)."""
        phase = rearrange(frames, "b n -> b n 1") * self.multiples.to(frames.dtype)
        waves = rearrange([phase.cos(), phase.sin()], "two b n k -> b (two n k)")
        embedded: Tensor = self.layers(waves)
        return embedded

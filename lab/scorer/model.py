"""Two towers into one space: a picture and a text that fit point in the same direction.

The towers are open_clip's: its vision transformer, and the text encoder of the run, which is its text transformer over
the words of the data, or a frozen one. Each is followed by a projection to the common space, as in open_clip's
CustomTextCLIP.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lab.config import Config
from lab.layers import edge
from lab.randomness import seeded
from lab.resampling import bicubic
from lab.runtime import Runtime
from lab.text import selection
from lab.text.encoder import Prepared, TextEncoder, placed
from lab.text.selection import AnyText

INITIAL_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # of the cosines, as in CLIP


class TowerConfig(Config):
    """The vision transformer.

    Attributes:
        patch: side of a patch in pixels; each is a token.
        width, layers, heads: of the transformer.
        mlp_ratio: width of the layer between each block's two linear layers, in multiples of ``width``.
    """

    patch: int = Field(4, ge=1)
    width: int = Field(128, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "TowerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


class Scorer(nn.Module):
    """Pictures and texts as directions in one space.

    Args:
        tower: of pictures.
        text: the text encoder, a module.
        size: side of the pictures in pixels.
        width: of the common space.

    Attributes:
        size: see above.
        log_scale: (1,), logarithm of what cosines are multiplied by in the loss.

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision",
    arXiv:2103.00020.
    """

    text: TextEncoder

    def __init__(self, tower: TowerConfig, text: TextEncoder, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.image = _tower(tower, size)
        self.text = text
        self.from_image = edge(nn.Linear(tower.width, width, bias=False))
        self.from_text = edge(nn.Linear(text.pooled_width, width, bias=False))
        self.log_scale = nn.Parameter(torch.full((1,), math.log(INITIAL_SCALE)))

    def forward(self, images: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor, Tensor]:
        """Make the pass that trains.

        Args:
            images: (b, 3, H, W) in [-1, 1].
            prepared: of k texts.

        Returns:
            Directions (b, d) of the pictures and (k, d) of the texts, and the scale (1,) of their cosines.
        """
        with _attention(images):
            pictures = self.image(images)
        texts = self.text(prepared).pooled
        return _unit(self.from_image(pictures)), _unit(self.from_text(texts)), self.log_scale.exp()

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Tensor:
        """Give the directions (b, d) of pictures (b, 3, H, W) in [-1, 1], of any size."""
        if images.shape[-2:] != (self.size, self.size):
            images = bicubic(images, (self.size, self.size))
        with _attention(images):
            return _unit(self.from_image(self.image(images)))

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Give the directions (b, d) of texts."""
        prepared = placed(self.text.prepare(texts), self.log_scale.device)
        return _unit(self.from_text(self.text(prepared).pooled))

    def cut(self, texts: Sequence[str]) -> int:
        """Count the texts of which the end is not heard."""
        return sum(num > self.text.context for num in self.text.count(texts))


def build(tower: TowerConfig, text: AnyText, size: int, width: int, seed: int, runtime: Runtime) -> Scorer:
    """Build a scorer with initial weights drawn from the seed.

    Args:
        tower, size, width: as of ``Scorer``.
        text: the text encoder, completed.
        seed: the run's.
        runtime: where a frozen text encoder computes.
    """
    with seeded(seed, "weights"):
        return Scorer(tower, selection.build(text, runtime), size, width)


def _tower(config: TowerConfig, size: int) -> nn.Module:
    """open_clip's vision transformer, without its projection."""
    from open_clip.transformer import VisionTransformer

    tower: Any = VisionTransformer(
        image_size=size,
        patch_size=config.patch,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        output_dim=config.width,
    )
    edge(tower.conv1)
    tower.proj = None
    made: nn.Module = tower
    return made


def _attention(images: Tensor) -> AbstractContextManager[None]:
    """Plain products: on a CPU the backward pass of the fused attention takes longer than all else."""
    return sdpa_kernel(SDPBackend.MATH) if images.device.type == "cpu" else nullcontext()


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, in float32 at least."""
    return nn.functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)

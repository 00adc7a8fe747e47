"""The text-conditioned UNet.

    image -> patch stem -> [levels down] -> middle -> [levels up, with skips] -> patch head -> image

Every level is residual blocks, scaled and shifted by the noise level and the pooled text (FiLM); at the levels named in ``attention`` each block
is followed by self-attention among positions and cross-attention from positions to text *tokens*. A patch stem of p folds p x p pixels into
channels first, which makes large images cheap. Any input works whose sides are divisible by ``factor``.
"""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffusion.condition import Cond
from lab.config import Config
from lab.layers import (
    GROUP_WIDTH,
    Downsample,
    LevelEmbedding,
    PlaceEmbedding,
    ResidualBlock,
    Transformer,
    Upsample,
    zero_init,
)

Tap = Callable[[str, Tensor], None]
"""Is shown named features while the network runs: (name, (b, c, h, w))."""


class UNetConfig(Config):
    """The shape of a UNet.

    Attributes:
        patch: side of the pixel blocks that the stem folds into channels; 1 for none.
        widths: channels of each level, from fine to coarse; each a multiple of 16.
        depth: residual blocks per level on the way down; the way up has one more.
        attention: the levels with attention, counted from 0 at the finest.
        head_width: channels per attention head.
        dropout: probability inside residual blocks.
    """

    kind: Literal["unet"] = "unet"
    patch: int = Field(1, ge=1)
    widths: tuple[int, ...] = (128, 256, 256)
    depth: int = Field(2, ge=1)
    attention: tuple[int, ...] = (1, 2)
    head_width: int = Field(32, ge=8)
    dropout: float = Field(0.0, ge=0, lt=1)

    @property
    def factor(self) -> int:
        """What the sides of an image must be divisible by."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _consistent(self) -> "UNetConfig":
        if not self.widths or any(width < 1 or width % GROUP_WIDTH for width in self.widths):
            raise ValueError(f"widths must be positive multiples of {GROUP_WIDTH}, got {list(self.widths)}")
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ValueError(f"attention names level {level}, but the levels are 0 to {len(self.widths) - 1}")
            if self.widths[level] % self.head_width:
                raise ValueError(f"head_width {self.head_width} does not divide the {self.widths[level]} channels of level {level}")
        return self


class Stack(nn.Module):
    """One residual block and, where the level has attention, one transformer block."""

    def __init__(self, inputs: int, outputs: int, embedding: int, config: UNetConfig, context: int | None) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, embedding, config.dropout)
        self.transformer = None if context is None else Transformer(outputs, outputs // config.head_width, context)

    def forward(self, x: Tensor, embedding: Tensor, cond: Cond) -> Tensor:
        x = self.residual(x, embedding)
        if self.transformer is not None:
            x = self.transformer(x, cond.tokens, cond.mask)
        return x


class UNet(nn.Module):
    """A UNet over images or latents, told a noise level and a text.

    Args:
        config: its shape.
        channels: of the image or latent.
        text_width: width of the text tokens.
        pooled_width: width of the pooled text.
    """

    def __init__(self, config: UNetConfig, channels: int, text_width: int, pooled_width: int) -> None:
        super().__init__()
        self.factor = config.factor
        widths, embedding = config.widths, 4 * config.widths[0]
        folded = channels * config.patch**2
        self.level = LevelEmbedding(embedding)
        self.text = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, embedding))
        self.fold = Rearrange("b c (h p) (w q) -> b (c p q) h w", p=config.patch, q=config.patch)
        self.stem = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.place = PlaceEmbedding(widths[0])

        def stack(inputs: int, level: int) -> Stack:
            context = text_width if level in config.attention else None
            return Stack(inputs, widths[level], embedding, config, context)

        levels = range(len(widths))
        self.down = nn.ModuleList(nn.ModuleList(stack(widths[i], i) for _ in range(config.depth)) for i in levels)
        self.shrink = nn.ModuleList(Downsample(widths[i], widths[i + 1]) for i in levels[:-1])
        self.middle = nn.ModuleList(stack(widths[-1], levels[-1]) for _ in range(2))
        self.up = nn.ModuleList(nn.ModuleList(stack(2 * widths[i], i) for _ in range(config.depth + 1)) for i in levels)
        self.grow = nn.ModuleList(Upsample(widths[i + 1], widths[i]) for i in levels[:-1])
        self.head = nn.Sequential(
            nn.GroupNorm(widths[0] // GROUP_WIDTH, widths[0]),
            nn.SiLU(),
            zero_init(nn.Conv2d(widths[0], folded, 3, padding=1)),
            Rearrange("b (c p q) h w -> b c (h p) (w q)", p=config.patch, q=config.patch),
        )

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, tap: Tap | None = None) -> Tensor:
        """Map a noisy image to what the parameterization wants to hear of it.

        Args:
            x: (b, c, h, w) of about unit variance; h and w divisible by ``factor``.
            angle: (b,), the noise level in [0, pi/2].
            cond: encoded text of the batch.
            tap: is shown "down0" .. , "middle" and "up0" .. as they are computed.

        Returns:
            (b, c, h, w).

        Raises:
            ValueError: a side is not divisible by ``factor``.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"image of {x.shape[-2]} x {x.shape[-1]} is not divisible by the network's factor {self.factor}")
        embedding = nn.functional.silu(self.level(angle) + self.text(cond.pooled))
        h = self.stem(self.fold(x))
        h = h + self.place(*h.shape[-2:])
        skips = [h]
        for i, stacks in enumerate(self.down):
            if i:
                h = self.shrink[i - 1](h)
                skips.append(h)
            for stack in stacks:
                h = stack(h, embedding, cond)
                skips.append(h)
            if tap:
                tap(f"down{i}", h)
        for stack in self.middle:
            h = stack(h, embedding, cond)
        if tap:
            tap("middle", h)
        for i, stacks in reversed(list(enumerate(self.up))):
            if i < len(self.grow):
                h = self.grow[i](h)
            for stack in stacks:
                h = stack(torch.cat([h, skips.pop()], dim=1), embedding, cond)
            if tap:
                tap(f"up{i}", h)
        image: Tensor = self.head(h)
        return image

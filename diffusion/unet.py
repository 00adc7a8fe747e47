"""The text-conditioned UNet.

    image -> patch stem -> [levels down] -> coarsest level -> [levels up, each with its skip] -> patch head -> image

Every level is residual blocks, scaled and shifted by the noise level and the pooled text (FiLM); at the levels named in
``attention`` each block is followed by self-attention among positions and cross-attention from positions to text
*tokens*. A patch stem of p folds p x p pixels into channels first, which makes large images cheap. Any input works
whose sides are divisible by ``factor``.
"""

from typing import Annotated, Literal

import torch
from einops.layers.torch import Rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Features, Tap
from lab.config import Config
from lab.layers import (
    GROUP_WIDTH,
    Downsample,
    LevelEmbedding,
    PlaceEmbedding,
    Recomputable,
    ResidualBlock,
    Transformer,
    Upsample,
    edge,
    zero_init,
)


class UNetConfig(Config):
    """The shape of a UNet.

    Attributes:
        patch: side of the pixel blocks that the stem folds into channels; 1 for none.
        widths: channels of each level, from fine to coarse; each a multiple of 16.
        depth: residual blocks per level, on the way down and again on the way up.
        depths: the same where levels differ, one number for each but the coarsest; none for ``depth`` everywhere.
        middle: residual blocks at the coarsest level.
        attention: the levels with attention, counted from 0 at the finest.
        head_width: channels per attention head.
        dropout: probability inside residual blocks.
        skip_scale: factor on what the way up of a level is given by its way down.

    Source: depths and skip_scale: Saharia et al. 2022, arXiv:2205.11487, app. B.1, with more blocks at the coarser
    levels and a scale of 1 / sqrt(2).
    """

    kind: Literal["unet"] = "unet"
    patch: int = Field(1, ge=1)
    widths: tuple[int, ...] = (128, 256, 256)
    depth: int = Field(2, ge=1)
    depths: tuple[Annotated[int, Field(ge=1)], ...] = ()
    middle: int = Field(4, ge=1)
    attention: tuple[int, ...] = (1, 2)
    head_width: int = Field(32, ge=8)
    dropout: float = Field(0.0, ge=0, lt=1)
    skip_scale: float = Field(1.0, gt=0)

    @property
    def depth_of_levels(self) -> tuple[int, ...]:
        """Residual blocks on either way of each level but the coarsest."""
        return self.depths or (self.depth,) * (len(self.widths) - 1)

    @property
    def factor(self) -> int:
        """What the sides of an image must be divisible by."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _consistent(self) -> "UNetConfig":
        if not self.widths or any(width < 1 or width % GROUP_WIDTH for width in self.widths):
            raise ValueError(f"widths must be positive multiples of {GROUP_WIDTH}, got {list(self.widths)}")
        if len(self.depth_of_levels) != len(self.widths) - 1:
            raise ValueError(
                f"depths names {len(self.depths)} levels, but beside the coarsest there are {len(self.widths) - 1}"
            )
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ValueError(f"attention names level {level}, but the levels are 0 to {len(self.widths) - 1}")
            if self.widths[level] % self.head_width:
                raise ValueError(
                    f"head_width {self.head_width} does not divide the {self.widths[level]} channels of level {level}"
                )
        return self


class Stack(Recomputable):
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
        beside: channels of pictures that come with the state, as its last ones.

    Attributes:
        factor: what the sides of an image must be divisible by.
        last: the shape of the features that the head sees.
    """

    def __init__(self, config: UNetConfig, channels: int, text_width: int, pooled_width: int, beside: int = 0) -> None:
        super().__init__()
        self.factor = config.factor
        self.last = Features(config.widths[0], config.patch)
        self.skip_scale = config.skip_scale
        widths, embedding, area = config.widths, 4 * config.widths[0], config.patch**2
        self.level = LevelEmbedding(embedding)
        self.text = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, embedding))
        self.fold = Rearrange("b c (h p) (w q) -> b (c p q) h w", p=config.patch, q=config.patch)
        self.stem = edge(nn.Conv2d((channels + beside) * area, widths[0], 3, padding=1))
        self.place = PlaceEmbedding(widths[0])

        def stack(inputs: int, level: int) -> Stack:
            context = text_width if level in config.attention else None
            return Stack(inputs, widths[level], embedding, config, context)

        coarsest, depths = len(widths) - 1, config.depth_of_levels
        self.down = nn.ModuleList(nn.ModuleList(stack(widths[i], i) for _ in range(depths[i])) for i in range(coarsest))
        self.shrink = nn.ModuleList(Downsample(widths[i], widths[i + 1]) for i in range(coarsest))
        self.middle = nn.ModuleList(stack(widths[-1], coarsest) for _ in range(config.middle))
        self.grow = nn.ModuleList(Upsample(widths[i + 1], widths[i]) for i in range(coarsest))
        self.up = nn.ModuleList(
            nn.ModuleList(stack((1 if k else 2) * widths[i], i) for k in range(depths[i])) for i in range(coarsest)
        )
        self.head = nn.Sequential(
            nn.GroupNorm(widths[0] // GROUP_WIDTH, widths[0]),
            nn.SiLU(),
            edge(zero_init(nn.Conv2d(widths[0], channels * area, 3, padding=1))),
            Rearrange("b (c p q) h w -> b c (h p) (w q)", p=config.patch, q=config.patch),
        )

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, tap: Tap | None = None) -> Tensor:
        """Map a noisy image to what the parameterization wants to hear of it.

        Args:
            x: (b, c + beside, h, w) of about unit variance; h and w divisible by ``factor``.
            angle: (b,), the noise level in [0, pi/2].
            cond: encoded text of the batch.
            tap: is shown "down0" .. , "middle" and "up0" .. as they are computed, and "last", what the head sees.

        Returns:
            (b, c, h, w).

        Raises:
            ValueError: a side is not divisible by ``factor``.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"image of {x.shape[-2]} x {x.shape[-1]} is not divisible by the network's factor {self.factor}"
            )
        embedding = nn.functional.silu(self.level(angle) + self.text(cond.pooled))
        h = self.stem(self.fold(x))
        h = h + self.place(*h.shape[-2:])

        def run(stacks: nn.Module, h: Tensor, name: str) -> Tensor:
            for stack in stacks.children():
                assert isinstance(stack, Stack)
                h = stack.run(h, embedding, cond)
            if tap:
                tap(name, h)
            return h

        skips = []
        for i, (stacks, shrink) in enumerate(zip(self.down, self.shrink, strict=True)):
            h = run(stacks, h, f"down{i}")
            skips.append(h if self.skip_scale == 1 else self.skip_scale * h)
            h = shrink(h)
        h = run(self.middle, h, "middle")
        for i in reversed(range(len(self.up))):
            h = run(self.up[i], torch.cat([self.grow[i](h), skips[i]], dim=1), f"up{i}")
        if tap:
            tap("last", h)
        image: Tensor = self.head(h)
        return image

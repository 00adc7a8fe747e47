"""A trained denoiser grown to twice its resolution: the trunk stays as it is, new levels say what it cannot.

For a state x_t = alpha x0 + sigma noise of large images, the means of 2 x 2 pixels are

    pooled(x_t) = alpha pooled(x0) + (sigma / 2) noise'

with white noise' of unit variance: a state of small images, whose log-SNR is 2 log 2 higher. The trunk is asked there,
on its own schedule, with the state scaled to it. What the means leave out, the detail d = x_t - up(pooled(x_t)) with up
the nearest neighbour, is a signal of its own at the level (alpha, sigma), and the new levels predict it as EDM's
preconditioning has it, for details of a known standard deviation:

    x0_hat = up(trunk's x0_hat) + skip d + out new(x_t, up(trunk's x0_hat), trunk's features)

At birth new = 0. Then the means of x0_hat are the trunk's x0_hat exactly, at much noise x0_hat is the trunk's by
nearest neighbour, and at little noise the details of x_t come through by the best linear estimate. ``new`` is not bound
to details: it may also mend the means, of which x_t says more than its own means do.

The network speaks in a parameterization like any other, and is told the angle of the level alone, so that what is grown
is a ``Denoiser``: it samples on any schedule, and can be the trunk of the next.
"""

import math
from typing import Any

import torch
from einops import reduce, repeat
from einops.layers.torch import Rearrange
from pydantic import Field, field_validator
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoiser, Features, Tap, per_image
from diffusion.levels import float64, logsnr
from diffusion.parameterization import Edm, Parameterization
from lab.config import Config
from lab.errors import Refused
from lab.frozen import Frozen
from lab.layers import GROUP_WIDTH, LevelEmbedding, Recomputable, ResidualBlock, Upsample, edge, zero_init

EDGE = 1e-6  # angles nearer to data or noise count as this one: log-SNR of 27.6, beyond every schedule's limit
JUST_AFTER_0 = 1e-9  # at t = 0 itself schedules jump to pure data, of which no network has seen anything


class UpLevelsConfig(Config):
    """The shape of what is grown.

    Attributes:
        widths: channels of each new level, from coarse to fine; multiples of 16. The first has twice the positions of
            the trunk's last features per side, each further one twice those of the one before.
        depth: residual blocks per level.
        dropout: probability inside residual blocks.
        detail: standard deviation of what the means of 2 x 2 pixels leave out of an image, in units of [-1, 1].
    """

    widths: tuple[int, ...] = Field((64,), min_length=1)
    depth: int = Field(2, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    detail: float = Field(0.1, gt=0)

    @field_validator("widths")
    @classmethod
    def _whole_groups(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 1 or width % GROUP_WIDTH for width in widths):
            raise ValueError(f"widths must be positive multiples of {GROUP_WIDTH}, got {list(widths)}")
        return widths


def pooled(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels: (b, c, 2 h, 2 w) -> (b, c, h, w)."""
    return reduce(x, "b c (h p) (w q) -> b c h w", "mean", p=2, q=2)


def doubled(x: Tensor) -> Tensor:
    """Nearest neighbour: (b, c, h, w) -> (b, c, 2 h, 2 w)."""
    return repeat(x, "b c h w -> b c (h p) (w q)", p=2, q=2)


def ask(trunk: Denoiser, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Ask a denoiser at a level that is not of its schedule.

    A level beyond those of its schedule counts as its first or last one. There the state is scaled so that what
    dominates it, signal or noise, has the strength that the denoiser knows.

    Args:
        trunk: whom.
        x: (b, c, h, w), states alpha x0 + sigma noise.
        alpha, sigma: (b,), above 0.
        cond: what the images show.

    Returns:
        x0_hat (b, c, h, w), and the network's last features.
    """
    level = logsnr(float64(alpha), float64(sigma))
    t = trunk.schedule.t_of(level).clamp(min=JUST_AFTER_0).to(x)
    own_alpha, own_sigma = trunk.schedule(t)
    scale = torch.where((level > 0).to(x.device), own_alpha / alpha, own_sigma / sigma)
    tapped: dict[str, Tensor] = {}
    x0_hat: Tensor = trunk(per_image(scale) * x, t, cond, tapped.__setitem__)
    return x0_hat, tapped["last"]


class UpLevel(Recomputable):
    """One new level: doubles the features that it is given and reads the state at its own size.

    Args:
        inputs, width: channels of the features before and after.
        embedding: width of the conditioning vector.
        folded: channels of the state with its pixels folded in.
        patch: side of the squares of pixels that are folded.
        config: depth and dropout.
    """

    def __init__(
        self, inputs: int, width: int, embedding: int, folded: int, patch: int, config: UpLevelsConfig
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(inputs // GROUP_WIDTH, inputs)
        self.grow = Upsample(inputs, width)
        self.fold = Rearrange("b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch)
        self.stem = edge(nn.Conv2d(folded, width, 3, padding=1))
        self.blocks = nn.ModuleList(ResidualBlock(width, width, embedding, config.dropout) for _ in range(config.depth))

    def forward(self, features: Tensor, state: Tensor, embedding: Tensor) -> Tensor:
        """Map (b, inputs, h, w) features to (b, width, 2 h, 2 w)."""
        h: Tensor = self.grow(self.norm(features)) + self.stem(self.fold(state))
        for block in self.blocks:
            h = block(h, embedding)
        return h


class GrownNetwork(nn.Module):
    """The network of a grown denoiser: a frozen trunk and new levels, of which alone it consists.

    Args:
        config: of the new levels.
        trunk: the denoiser that is grown, where it computes; its network taps "last" and says so in ``last``.
        parameterization: what the output means.
        channels: of the image.
        pooled_width: width of the pooled text.

    Attributes:
        factor: what the sides of an image must be divisible by.
        last: the shape of the features that the head sees.

    Raises:
        Refused: more levels than there are pixels left.
    """

    def __init__(
        self,
        config: UpLevelsConfig,
        trunk: Frozen[Denoiser],
        parameterization: Parameterization,
        channels: int,
        pooled_width: int,
    ) -> None:
        super().__init__()
        network: Any = trunk.module.network
        below: Features = network.last
        patches = [2 * below.patch / 2 ** (i + 1) for i in range(len(config.widths))]
        if patches[-1] < 1 or patches[-1] % 1:
            raise Refused(
                f"stage.levels.widths={list(config.widths)}: each level halves the pixels per position, which are "
                f"{below.patch} in the source's features and twice that in the grown image's: name fewer levels"
            )
        self.trunk, self.parameterization = trunk, parameterization
        self.detail = Edm(sigma_data=math.sqrt(4 / 3) * config.detail)  # of the three dimensions in four that d has
        self.factor: int = 2 * network.factor
        self.last = Features(config.widths[-1], int(patches[-1]))
        embedding = 4 * config.widths[0]
        self.level = LevelEmbedding(embedding)
        self.text = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, embedding))
        inputs = (below.width, *config.widths)
        self.up = nn.ModuleList(
            UpLevel(before, width, embedding, 3 * channels * int(patch) ** 2, int(patch), config)
            for before, width, patch in zip(inputs, config.widths, patches, strict=False)
        )
        patch, width = self.last.patch, self.last.width
        self.head = nn.Sequential(
            nn.GroupNorm(width // GROUP_WIDTH, width),
            nn.SiLU(),
            edge(zero_init(nn.Conv2d(width, channels * patch**2, 3, padding=1))),
            Rearrange("b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch),
        )

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, tap: Tap | None = None) -> Tensor:
        """Say what the parameterization wants to hear of a noisy image.

        Args:
            x: (b, c, 2 h, 2 w), as the parameterization scales it; sides divisible by ``factor``.
            angle: (b,), the noise level in [0, pi/2].
            cond: encoded text of the batch.
            tap: is shown "up0" .., from coarse to fine, and "last", what the head sees.

        Returns:
            (b, c, 2 h, 2 w).

        Raises:
            ValueError: a side is not divisible by ``factor``.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"image of {x.shape[-2]} x {x.shape[-1]} is not divisible by the network's factor {self.factor}"
            )
        inside = angle.clamp(EDGE, math.pi / 2 - EDGE)
        alpha, sigma = inside.cos(), inside.sin()
        scales, detail = self.parameterization(alpha, sigma), self.detail(alpha, sigma)
        x = x / per_image(scales.into)  # of variance alpha^2 + sigma^2 = 1
        means = pooled(x)
        d = x - doubled(means)
        x0_hat, features = ask(self.trunk.module, means, alpha, sigma / 2, cond)
        state = torch.cat([x, per_image(detail.into) * d, doubled(x0_hat)], dim=1)
        new = self._new(features, state, angle, cond, tap)
        # x0_hat = up(trunk's) + detail.skip d + detail.out new, solved for the output of x0_hat = skip x + out output
        kept = doubled((x0_hat - per_image(scales.skip) * means) / per_image(scales.out))
        through, size = (detail.skip - scales.skip) / scales.out, detail.out / scales.out
        return kept + per_image(through) * d + per_image(size) * new

    def _new(self, features: Tensor, state: Tensor, angle: Tensor, cond: Cond, tap: Tap | None) -> Tensor:
        """What the new levels say, (b, c, 2 h, 2 w)."""
        embedding = nn.functional.silu(self.level(angle) + self.text(cond.pooled))
        h = features
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            h.requires_grad_()  # on CPUs torch before 2.14 ends where a norm's input needs no gradient
        for i, level in enumerate(self.up):
            assert isinstance(level, UpLevel)
            h = level.run(h, state, embedding)
            if tap:
                tap(f"up{i}", h)
        if tap:
            tap("last", h)
        new: Tensor = self.head(h)
        return new.to(state)

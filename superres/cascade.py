"""The details that a small picture lacks, drawn by diffusion: what a cascade adds to a picture of the model before it.

A small picture y is shown to the network with some grain on it, white noise n, and made as large by the bicubic filter:

    shown = up(y + grain n)

Of a large picture x, what is diffused is what is missing there, in units of how much of it is to be expected,

    details = (x - shown) / spread,      spread^2 = detail^2 + grain^2

which has about unit variance, so that schedules, parameterizations and times mean what they mean for images. The
network sees the noisy details with what was shown beside them as channels, and is told the grain by its own angle,
atan(grain). Grain that is drawn anew for each sample of training keeps the network from trusting every pixel of what
another model has drawn (noise-conditioning augmentation).

With a picture bound to it, it is a ``Denoiser`` of details like any other. What is drawn is x = shown + spread details.

Source: Ho et al. 2021, arXiv:2106.15282, sec. 4, for the cascade and the augmentation; Saharia et al. 2022,
arXiv:2205.11487, app. B, for the layout of the network; Li et al. 2021, arXiv:2104.14951, for diffusing the difference
to an enlarged picture.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoiser, Tap, per_image
from diffusion.parameterization import Scales
from diffusion.unet import UNet, UNetConfig
from lab.layers import LevelEmbedding
from lab.resampling import bicubic
from lab.text.encoder import Prepared, TextEncoder, placed
from vae.codec import Pixels
from vae.tiling import Tiling

CHANNELS = Pixels.channels
TOLD = 64  # width of what the network is told of the grain


class Shown(NamedTuple):
    """Small pictures as a network is shown them.

    Attributes:
        picture: (b, 3, H, W), with their grain, and as large as the result.
        grain: (b,), standard deviation of the noise on the small ones, in units of [-1, 1].
    """

    picture: Tensor
    grain: Tensor


class Scale(NamedTuple):
    """How details and pictures become each other.

    Attributes:
        factor: side of a large picture / side of a small one.
        detail: standard deviation of what the bicubic enlargement of a small picture lacks, in units of [-1, 1].
    """

    factor: int
    detail: float

    def show(self, small: Tensor, noise: Tensor, grain: Tensor) -> Shown:
        """Show small pictures (b, 3, h, w) with unit noise of their shape, of a strength (b,)."""
        size = (self.factor * small.shape[2], self.factor * small.shape[3])
        return Shown(bicubic(small + per_image(grain) * noise, size), grain)

    def details(self, large: Tensor, shown: Shown) -> Tensor:
        """Give what large pictures (b, 3, H, W) have beyond what was shown, of about unit variance."""
        return (large - shown.picture) / self._spread(shown)

    def large(self, details: Tensor, shown: Shown) -> Tensor:
        """Give the large pictures (b, 3, H, W) that have these details; not clamped."""
        return shown.picture + self._spread(shown) * details

    def _spread(self, shown: Shown) -> Tensor:
        return per_image((self.detail**2 + shown.grain**2).sqrt())


class CascadeNetwork(nn.Module):
    """A UNet over noisy details and the picture that lacks them.

    Args:
        config: its shape.
        text_width, pooled_width: of the text tokens and of the pooled text.

    Attributes:
        factor: what the sides of an image must be divisible by.
    """

    def __init__(self, config: UNetConfig, text_width: int, pooled_width: int) -> None:
        super().__init__()
        self.grain = LevelEmbedding(TOLD)
        self.unet = UNet(config, CHANNELS, text_width, pooled_width + TOLD, beside=CHANNELS)
        self.factor = self.unet.factor

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, shown: Shown, tap: Tap | None = None) -> Tensor:
        """Say what the parameterization wants to hear of noisy details.

        Args:
            x: (b, 3, H, W) of about unit variance; H and W divisible by ``factor``.
            angle: (b,), the noise level in [0, pi/2].
            cond: encoded text of the batch.
            shown: the pictures that lack the details.
            tap: see ``UNet``.

        Returns:
            (b, 3, H, W).

        Raises:
            ValueError: a side is not divisible by ``factor``.
        """
        told = torch.cat([cond.pooled, self.grain(shown.grain.atan())], dim=1)
        picture = shown.picture / per_image((1 + shown.grain**2).sqrt())
        said: Tensor = self.unet(torch.cat([x, picture], dim=1), angle, cond._replace(pooled=told), tap)
        return said


class Bound(nn.Module):
    """A cascade's network to which the pictures are bound, so that it takes what any network of a ``Denoiser`` takes.

    Args:
        network: of the cascade.
        shown: b pictures; a batch of k b states, as guidance makes them, sees them k times.
        tiling: how pictures are cut that are too large for the network's memory: what it says of the tiles is blended
            into what it says of the whole, at each level of noise, so that all tiles walk in one field of noise.
    """

    def __init__(self, network: nn.Module, shown: Shown, tiling: Tiling | None = None) -> None:
        super().__init__()
        self.network, self.shown, self.tiling = network, shown, tiling

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, tap: Tap | None = None) -> Tensor:
        """Give what the network says (k b, 3, H, W) of states (k b, 3, H, W)."""
        copies = len(x) // len(self.shown.grain)
        shown = Shown(*(repeat(part, "b ... -> (k b) ...", k=copies) for part in self.shown))

        def say(pair: Tensor) -> Tensor:
            x, picture = pair.split(CHANNELS, dim=1)
            said: Tensor = self.network(x, angle, cond, shown._replace(picture=picture), tap)
            return said

        pair = torch.cat([x, shown.picture], dim=1)
        return say(pair) if self.tiling is None else self.tiling(say, pair, 1)


class Cascade(nn.Module):
    """A denoiser of details with its text encoder: what is trained, averaged and sampled from.

    Args:
        denoiser: of a ``CascadeNetwork``; which pictures it enlarges is said at each call.
        text: prompts to token states, a module; what of it is trained, is trained with the denoiser.
        scale: how details and pictures become each other.

    Attributes:
        unit: what the sides of a large picture must be divisible by.
    """

    text: TextEncoder

    def __init__(self, denoiser: Denoiser, text: TextEncoder, scale: Scale) -> None:
        super().__init__()
        self.denoiser, self.text, self.scale = denoiser, text, scale
        network: Any = denoiser.network
        self.unit: int = network.factor

    def of(self, shown: Shown, tiling: Tiling | None = None) -> Denoiser:
        """Give the denoiser of the details of these pictures; see ``Bound``."""
        unbound = self.denoiser
        return Denoiser(Bound(unbound.network, shown, tiling), unbound.schedule, unbound.parameterization)

    def forward(self, x_t: Tensor, t: Tensor, prepared: Prepared, shown: Shown) -> tuple[Tensor, Scales]:
        """Give the network's own output for (b, 3, H, W) states, (b,) times, b texts and b pictures: what trains."""
        return self.of(shown).predict(x_t, t, Cond(*self.text(prepared)))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts; the empty prompt is the null condition."""
        device = next(self.parameters()).device
        return Cond(*self.text(placed(self.text.prepare(prompts), device)))

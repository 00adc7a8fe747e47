"""The one thing that samplers, guidance and losses know of a model: (x_t, t, cond) -> x0_hat."""

from collections.abc import Callable
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.parameterization import Parameterization, Scales
from diffusion.schedule import Schedule, angle

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (b, c, h, w), t (b,)) -> x0_hat (b, c, h, w); condition and guidance already inside."""


def per_image(values: Tensor) -> Tensor:
    """Shape (b,) numbers so that they multiply (b, c, h, w)."""
    return rearrange(values, "b -> b 1 1 1")


class Denoiser(nn.Module):
    """A network, a schedule and a parameterization: together the conditional mean of x0.

    Args:
        network: (x (b, c, h, w) of unit variance, angle (b,), cond) -> (b, c, h, w). It is told the angle of the level,
            never the time, so that the schedule can be exchanged.
        schedule: t -> (alpha, sigma).
        parameterization: what the network's output means.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, parameterization: Parameterization) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.parameterization = parameterization

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Scales]:
        """Give the network's own output (b, c, h, w), in the type of x_t, and what it means."""
        alpha, sigma = self.schedule(t)
        scales = self.parameterization(alpha, sigma)
        output: Any = self.network(per_image(scales.into) * x_t, angle(alpha, sigma), cond)
        return output.to(x_t.dtype), scales

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Give x0_hat (b, c, h, w) for the states x_t (b, c, h, w) at times t (b,)."""
        output, scales = self.predict(x_t, t, cond)
        return per_image(scales.skip) * x_t + per_image(scales.out) * output

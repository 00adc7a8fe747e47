"""The one thing that samplers, guidance and losses know of a model: (x_t, t, cond) -> x0_hat."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.parameterization import Parameterization, Scales
from diffusion.schedule import Schedule, angle

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (b, c, h, w), t (b,)) -> x0_hat (b, c, h, w); condition and guidance already inside.

The times may lie on the CPU whatever the device of the states. Samplers give them so: what follows from a time is a few
numbers, and a GPU takes longer to be told to compute them than a CPU to do it.
"""

Tap = Callable[[str, Tensor], None]
"""Is shown named features while the network runs: (name, (b, c, h, w))."""


class Features(NamedTuple):
    """The shape of what a network taps as "last".

    Attributes:
        width: channels.
        patch: side of the square of pixels that one position stands for.
    """

    width: int
    patch: int


def per_image(values: Tensor) -> Tensor:
    """Shape (b,) numbers so that they multiply (b, c, h, w)."""
    return rearrange(values, "b -> b 1 1 1")


def beside(x: Tensor, *numbers: Tensor) -> tuple[Tensor, ...]:
    """Give tensors of one shape and type on the device of x, in one transfer if they lie elsewhere."""
    return numbers if numbers[0].device == x.device else torch.stack(numbers).to(x.device, non_blocking=True).unbind()


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

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, tap: Tap | None = None) -> tuple[Tensor, Scales]:
        """Give the network's own output (b, c, h, w), in the type of x_t, and what it means; see ``forward``."""
        alpha, sigma = self.schedule(t)
        *numbers, level = beside(x_t, *self.parameterization(alpha, sigma), angle(alpha, sigma))
        scales = Scales(*numbers)
        told = (per_image(scales.into) * x_t, level, cond)
        output: Any = self.network(*told) if tap is None else self.network(*told, tap)
        return output.to(x_t.dtype), scales

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond, tap: Tap | None = None) -> Tensor:
        """Give x0_hat (b, c, h, w) for the states x_t (b, c, h, w) at times t (b,).

        Args:
            x_t, t, cond: what is asked.
            tap: is shown the network's features; for networks that have any.
        """
        output, scales = self.predict(x_t, t, cond, tap)
        return per_image(scales.skip) * x_t + per_image(scales.out) * output

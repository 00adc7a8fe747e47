"""The one loss: the mean square over the network's own target.

For a sample x0, a time t and noise, the state is x_t = alpha x0 + sigma noise and

    loss = mean((network output - target)^2)        per sample, mean over c, h, w

which is the mean square of the error in x0, divided by out^2. The time and the noise of a sample are functions of its
slot, so the loss of a slot does not depend on the batch it came in.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from diffusion.denoiser import per_image
from diffusion.schedule import Schedule
from lab.config import Config
from lab.randomness import normal, uniform


class UniformTimes(Config):
    """Times uniform in [0, 1]; the schedule decides which levels get how much of them."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, u: Tensor) -> Tensor:
        """Map (b,) uniform numbers in [0, 1) to (b,) times in (0, 1]."""
        return 1 - u


class LogitNormalTimes(Config):
    """Times whose logit is normal: the middle levels get most of them.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)

    def __call__(self, u: Tensor) -> Tensor:
        """Map (b,) uniform numbers in [0, 1) to (b,) times in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))).to(u)


AnyTimes = Annotated[UniformTimes | LogitNormalTimes, Field(discriminator="kind")]


class Noised(NamedTuple):
    """Samples brought to their noise levels.

    Attributes:
        x_t: (b, c, h, w).
        noise: (b, c, h, w).
        t, alpha, sigma: (b,).
    """

    x_t: Tensor
    noise: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


def add_noise(x0: Tensor, slots: Sequence[int], seed: int, schedule: Schedule, times: AnyTimes) -> Noised:
    """Draw each slot's time and noise and mix.

    Args:
        x0: (b, c, h, w).
        slots: the sample slot of each row.
        seed: the run's seed.
        schedule: t -> (alpha, sigma).
        times: maps uniform numbers to times.
    """
    t = times(uniform(seed, "t", slots)).to(x0)
    noise = normal(seed, "noise", slots, tuple(x0.shape[1:])).to(x0)
    alpha, sigma = schedule(t)
    return Noised(per_image(alpha) * x0 + per_image(sigma) * noise, noise, t, alpha, sigma)


def square_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean square per sample: (b, c, h, w) twice -> (b,)."""
    return (output - target).square().flatten(1).mean(dim=1)

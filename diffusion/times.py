"""Where in time the training samples lie.

A distribution maps uniform numbers to times, and says how densely the samples lie in log-SNR: two schedules with the
same density train the same model, whatever their t means. Numbers that run from 0 to 1 give times that run from noise
to data.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffusion.levels import Schedule, float64, logsnr
from lab.config import Config


class UniformTimes(Config):
    """Times uniform in [0, 1]; the schedule decides which levels get how much of them."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Map (b,) uniform numbers in [0, 1) to (b,) times in (0, 1]."""
        return 1 - u

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Give the density of log-SNR at times (b,) in (0, 1); infinite where the schedule stands still."""
        return 1 / schedule.slope(t).abs()


class LogitNormalTimes(Config):
    """Times whose logit is normal: the middle levels get most of them.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Map (b,) uniform numbers in [0, 1) to (b,) times in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))).to(u)

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Give the density of log-SNR at times (b,) in (0, 1); infinite where the schedule stands still."""
        return _normal(torch.logit(t), self.mean, self.std) / (t * (1 - t)) / schedule.slope(t).abs()


class LogNormalTimes(Config):
    """Noise levels whose log(sigma / alpha) is normal, on whatever schedule, cut off where it ends.

    Attributes:
        mean, std: of log(sigma / alpha); EDM's are for data of standard deviation 0.5.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 ("noise distribution").
    """

    kind: Literal["log_normal"] = "log_normal"
    mean: float = -1.2
    std: float = Field(1.2, gt=0)

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Map (b,) uniform numbers in [0, 1) to (b,) times in (0, 1]."""
        low, high = self._ends(schedule)
        share = (low + float64(u) * (high - low)).clamp(1e-12, 1 - 1e-12)
        level = -2 * (self.mean - self.std * torch.special.ndtri(share))
        return schedule.t_of(level).to(u)

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Give the density of log-SNR at times (b,) in (0, 1)."""
        return _normal(logsnr(*schedule(t)), -2 * self.mean, 2 * self.std) / self.mass(schedule)

    def mass(self, schedule: Schedule) -> float:
        """Give the share of the uncut distribution that lies within the schedule's levels."""
        low, high = self._ends(schedule)
        return high - low

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        """How much of the normal lies below the schedule's lowest and below its highest log-SNR."""
        level = logsnr(*schedule(torch.tensor([1, 1e-12], dtype=torch.float64)))
        low, high = torch.special.ndtr((level / 2 + self.mean) / self.std).tolist()
        return low, high


AnyTimes = Annotated[UniformTimes | LogitNormalTimes | LogNormalTimes, Field(discriminator="kind")]


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))

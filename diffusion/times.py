"""Where in time the training samples lie.

A distribution maps uniform numbers to times, and says how densely the samples lie in log-SNR: two schedules with the
same density train the same model, whatever their t means. Numbers that run from 0 to 1 give times that run from noise
to data.

A ``TimeTable`` draws some parts of a distribution more often than others, and learns in training which.
"""

import math
from collections.abc import Mapping
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


AnyBase = Annotated[UniformTimes | LogitNormalTimes | LogNormalTimes, Field(discriminator="kind")]


class LossSecondMomentTimes(Config):
    """Importance sampling: times of a base distribution, drawn the more often the larger the loss is there.

    The loss is divided by how much more often, so its mean and the mean of its gradient stay those of the base; only
    their noise is another. As a distribution this is its base, and what is drawn is up to a ``TimeTable``.

    Attributes:
        base: what the loss is about.
        bins: equally likely parts of the base, each drawn at its own rate.
        history: latest losses of each bin that its rate is made of; until every bin has so many, all rates are 1.
        floor: rate that no bin falls below, so that none starves; no loss is multiplied by more than 1 / floor.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 18, with 10 losses of each of 4000 steps; their code calls
    it "loss-second-moment" and has a floor of 0.001, at which a rare bin of a short run is never seen again.
    """

    kind: Literal["loss_second_moment"] = "loss_second_moment"
    base: AnyBase = UniformTimes()
    bins: int = Field(64, ge=2, le=4096)
    history: int = Field(10, ge=1)
    floor: float = Field(0.1, gt=0, le=1)

    def __call__(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Map (b,) uniform numbers in [0, 1) to (b,) times of the base."""
        return self.base(u, schedule)

    def density(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Give the base's density of log-SNR at times (b,)."""
        return self.base.density(t, schedule)


AnyTimes = Annotated[
    UniformTimes | LogitNormalTimes | LogNormalTimes | LossSecondMomentTimes, Field(discriminator="kind")
]


class TimeTable:
    """How often each part of a base distribution is drawn, by the losses seen there.

    It changes in ``learn`` alone, which belongs between two steps: within a step what is drawn for a slot is a function
    of the slot, whatever the micro-batches.

    Args:
        config: how many bins, and what is remembered of each.

    Attributes:
        memory: all that it knows: "losses" (bins, history) float64, a ring per bin, and "counts" (bins,) int64.
    """

    def __init__(self, config: LossSecondMomentTimes) -> None:
        self.config = config
        self.memory: Mapping[str, Tensor] = {
            "losses": torch.zeros(config.bins, config.history, dtype=torch.float64),
            "counts": torch.zeros(config.bins, dtype=torch.int64),
        }

    def rates(self) -> Tensor:
        """Give how often each bin is drawn, relative to the base: (bins,) float64, 1 on average."""
        size = self.memory["losses"].square().mean(dim=1).sqrt()
        if self.memory["counts"].min() < self.config.history or not size.any():
            return torch.ones_like(size)
        return (1 - self.config.floor) * size / size.mean() + self.config.floor

    def quantile(self, u: Tensor) -> Tensor:
        """Map (b,) uniform numbers in [0, 1) to (b,) others in [0, 1), in which each bin is as frequent as its rate."""
        edges = torch.nn.functional.pad(self.rates().cumsum(0) / self.config.bins, (1, 0))
        k = torch.searchsorted(edges, u.double(), right=True).clamp(1, self.config.bins) - 1
        within = (u.double() - edges[k]) / (edges[k + 1] - edges[k])
        return ((k + within) / self.config.bins).to(u).clamp(0, 1 - 2**-24)

    def rate(self, quantile: Tensor) -> Tensor:
        """Give the rates (b,) at quantiles (b,) of the base; the loss is divided by them."""
        return self.rates()[self._bin(quantile)]

    def learn(self, quantile: Tensor, losses: Tensor) -> None:
        """Take in the losses (b,) of a step, as divided by the rates, at quantiles (b,), in the order of the slots."""
        whole = losses.cpu().double() * self.rate(quantile)
        rings, counts = self.memory["losses"].numpy(), self.memory["counts"].numpy()  # views of the same memory
        for k, loss in zip(self._bin(quantile).tolist(), whole.tolist(), strict=True):
            rings[k, counts[k] % self.config.history] = loss
            counts[k] += 1

    def _bin(self, quantile: Tensor) -> Tensor:
        return (quantile.cpu().double() * self.config.bins).long()


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))

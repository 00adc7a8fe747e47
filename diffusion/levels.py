"""The noise level: what every schedule, closed form or table, says and is asked.

At time t in [0, 1] the state is x_t = alpha(t) x0 + sigma(t) noise. What the level means is the ratio of the two alone:
a shift by s multiplies sigma by s against alpha, which lowers log-SNR by 2 log(s) everywhere, on any schedule.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

LOGSNR_LIMIT = 20.0  # curved schedules run through log-SNR in [-20, 20], and are exactly data at t = 0


class Schedule(Protocol):
    """A function from time to (alpha, sigma), with its inverse and its speed."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        ...

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        ...

    def slope(self, t: Tensor) -> Tensor:
        """Give d logsnr / dt, which is negative, shaped like ``t`` in (0, 1); 0 where log-SNR is held at a limit."""
        ...


def angle(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Give the level as atan2(sigma, alpha), in [0, pi/2]: 0 at data, pi/2 at pure noise."""
    return torch.atan2(sigma, alpha)


def logsnr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Give the level as 2 log(alpha / sigma); infinite where one of the two is 0."""
    return 2 * (alpha.log() - sigma.log())


def float64(values: Tensor) -> Tensor:
    """The values in float64, on the CPU where their own device has none (Apple's MPS)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def preserving(level: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of a log-SNR with alpha^2 + sigma^2 = 1."""
    return torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt()


def curve(level: Tensor, t: Tensor, shift: float, zero_terminal: bool) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of a variance-preserving curve: limited, shifted, and exact at the ends.

    Args:
        level: log-SNR at ``t``, before shift and limits; what stands at t = 0 does not matter.
        t: in [0, 1], float64, shaped like ``level``.
        shift: lowers log-SNR by 2 log(shift).
        zero_terminal: whether alpha(1) is exactly 0.
    """
    level = level.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT) - 2 * math.log(shift)
    # Exactly data at t = 0: a sampler's last step must add no noise.
    level = torch.where(t > 0, level, torch.inf)
    return preserving(torch.where(t < 1, level, -torch.inf) if zero_terminal else level)


def limited_slope(slope: Tensor, level: Tensor) -> Tensor:
    """Give the derivative of a curve whose log-SNR, before the shift, is held within its limits: 0 beyond them."""
    return torch.where(level.abs() < LOGSNR_LIMIT, slope, 0.0)


def terminal_signal(schedule: Schedule) -> float:
    """Give the share of data in the state at t = 1: alpha / sqrt(alpha^2 + sigma^2), for data of unit variance.

    A sampler starts from pure noise, so this is what the model was trained to see there and does not find.
    """
    alpha, sigma = schedule(torch.ones(1, dtype=torch.float64))
    return (alpha / torch.hypot(alpha, sigma)).item()

"""How much data and how much noise there is at each time.

At time t in [0, 1] the state is x_t = alpha(t) x0 + sigma(t) noise; t = 0 is data (alpha 1, sigma 0) and t = 1 is
noise. A schedule is a small frozen configuration and its own function t -> (alpha, sigma). Three numbers say the same
thing:

    logsnr = 2 log(alpha / sigma)        the level, +inf at data, -inf at pure noise
    angle  = atan2(sigma, alpha)         the level again, finite at both ends: what networks are told

Everything here is variance preserving (alpha^2 + sigma^2 = 1) except ``Flow``. A schedule only says how fast time runs
through the levels, so a model trained on one samples on any other at equal log-SNR.

Curved schedules compute in float64 inside; the result has the type and the device of ``t``.
"""

import math
from functools import cached_property
from typing import Annotated, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from lab.config import Config

Array = npt.NDArray[np.float64]

LOGSNR_LIMIT = 20.0  # cosine runs through log-SNR in [-20, 20], and is exactly data at t = 0


class Schedule(Protocol):
    """A function from time to (alpha, sigma), with its inverse."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        ...

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        ...


def angle(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Give the level as atan2(sigma, alpha), in [0, pi/2]: 0 at data, pi/2 at pure noise."""
    return torch.atan2(sigma, alpha)


def logsnr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Give the level as 2 log(alpha / sigma); infinite where one of the two is 0."""
    return 2 * (alpha.log() - sigma.log())


def _float64(values: Tensor) -> Tensor:
    """The values in float64, on the CPU where their own device has none (Apple's MPS)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def _preserving(level: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of a log-SNR with alpha^2 + sigma^2 = 1."""
    return torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt()


class Cosine(Config):
    """alpha(t) = cos(a(t)) / cos(a(0)) with a(t) = (t + s) / (1 + s) pi/2.

    Attributes:
        s: keeps the first step from being vanishingly small.
        shift: lowers log-SNR by 2 log(shift) everywhere; above 1 for larger images, or where the layout is to get more
            of the time.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17; shift: Hoogeboom et al. 2023, arXiv:2301.11093, sec.
    3.1.
    """

    kind: Literal["cosine"] = "cosine"
    s: float = Field(0.008, gt=0, le=0.1)
    shift: float = Field(1.0, gt=0)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        exact = _float64(t)
        start, now = self._phase(torch.zeros_like(exact)), self._phase(exact)
        # 1 - alpha^2 = sin(now - start) sin(now + start) / cos(start)^2, without the cancellation at small t.
        signal, noise = now.cos().clamp_min(0) ** 2, (now - start).sin() * (now + start).sin()
        level = (signal.log() - noise.log()).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT) - 2 * math.log(self.shift)
        # Exactly data at t = 0: a sampler's last step must add no noise.
        alpha, sigma = _preserving(torch.where(exact > 0, level, torch.inf))
        return alpha.to(t), sigma.to(t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        level = _float64(logsnr) + 2 * math.log(self.shift)
        start = self._phase(torch.zeros_like(level))
        now = torch.acos(torch.sigmoid(level).sqrt() * start.cos())
        t = now * 2 / math.pi * (1 + self.s) - self.s
        return t.clamp(0, 1).to(logsnr)

    def _phase(self, t: Tensor) -> Tensor:
        return (t + self.s) / (1 + self.s) * (math.pi / 2)


class Linear(Config):
    """A DDPM table with betas linear in the step.

    Attributes:
        steps: length of the table. The two betas are for 1,000 steps; another length needs others (times 1000 / steps
            keeps the levels).
        first, last: beta of the first and of the last step.

    Source: Ho et al. 2020, arXiv:2006.11239, sec. 4.
    """

    kind: Literal["linear"] = "linear"
    steps: int = Field(1000, ge=2)
    first: float = Field(1e-4, gt=0, lt=1)
    last: float = Field(0.02, gt=0, lt=1)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        return _from_table(self._angles, t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        return _table_time(self._angles, logsnr)

    @cached_property
    def _angles(self) -> Array:
        return _table_angles(np.linspace(self.first, self.last, self.steps))


class Quadratic(Config):
    """A DDPM table with betas linear in their square root.

    The default constants are DDIM's; Stable Diffusion's "scaled linear" is the same class with 0.00085 and 0.012.

    Attributes:
        steps: length of the table.
        first, last: beta of the first and of the last step.

    Source: Song et al. 2021, arXiv:2010.02502, appendix D.3 ("quad"); Rombach et al. 2022, arXiv:2112.10752.
    """

    kind: Literal["quadratic"] = "quadratic"
    steps: int = Field(1000, ge=2)
    first: float = Field(1e-4, gt=0, lt=1)
    last: float = Field(0.02, gt=0, lt=1)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        return _from_table(self._angles, t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        return _table_time(self._angles, logsnr)

    @cached_property
    def _angles(self) -> Array:
        return _table_angles(np.linspace(self.first**0.5, self.last**0.5, self.steps) ** 2)


# A DDPM table of T betas as a continuous schedule: step k of the table is time k / T, k = 1 .. T (diffusers' timestep k
# - 1), exact there; between the knots, and between data and the first knot, the angle is interpolated.


def _table_angles(betas: Array) -> Array:
    """Angles (T + 1,) at the knots k / T, k = 0 .. T."""
    log_signal = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])  # log alpha^2
    angles: Array = np.arctan2(np.sqrt(-np.expm1(log_signal)), np.exp(log_signal / 2))
    return angles


def _from_table(angles: Array, t: Tensor) -> tuple[Tensor, Tensor]:
    at = np.interp(t.detach().cpu().double().numpy(), np.linspace(0, 1, len(angles)), angles)
    return torch.as_tensor(np.cos(at)).to(t), torch.as_tensor(np.sin(at)).to(t)


def _table_time(angles: Array, logsnr: Tensor) -> Tensor:
    level = np.arctan(np.exp(-logsnr.detach().cpu().double().numpy() / 2))
    return torch.as_tensor(np.interp(level, angles, np.linspace(0, 1, len(angles)))).to(logsnr)


class Flow(Config):
    """alpha(t) = 1 - t, sigma(t) = t: straight lines between data and noise.

    Attributes:
        shift: runs time as s t / (1 + (s - 1) t), which lowers log-SNR by 2 log(shift) everywhere.

    Source: Lipman et al. 2022, arXiv:2210.02747; shift: Esser et al. 2024, arXiv:2403.03206, eq. 23.
    """

    kind: Literal["flow"] = "flow"
    shift: float = Field(1.0, gt=0)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        total = 1 + (self.shift - 1) * t
        return (1 - t) / total, self.shift * t / total

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        return torch.sigmoid(-logsnr / 2 - math.log(self.shift))


AnySchedule = Annotated[Cosine | Linear | Quadratic | Flow, Field(discriminator="kind")]

"""How much data and how much noise there is at each time.

At time t in [0, 1] the state is x_t = alpha(t) x0 + sigma(t) noise; t = 0 is data (alpha 1, sigma 0) and t = 1 is
noise. A schedule is a small frozen configuration and its own function t -> (alpha, sigma). Three numbers say the same
thing:

    logsnr = 2 log(alpha / sigma)        the level, +inf at data, -inf at pure noise
    angle  = atan2(sigma, alpha)         the level again, finite at both ends: what networks are told

Everything here is variance preserving (alpha^2 + sigma^2 = 1) except ``Flow`` (alpha + sigma = 1) and ``Karras`` (alpha
= 1), so sampling starts from noise of standard deviation sigma(1). A schedule only says how fast time runs through the
levels, so a model trained on one samples on any other at equal log-SNR. DDPM's tables are in ``diffusion.tables``.

Curved schedules compute in float64 inside; the result has the type and the device of ``t``.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffusion.levels import LOGSNR_LIMIT, Schedule, angle, curve, float64, limited_slope, logsnr, terminal_signal
from diffusion.tables import Linear, Quadratic, Table
from lab.config import Config

__all__ = [
    "LOGSNR_LIMIT",
    "AnySchedule",
    "Cosine",
    "Flow",
    "Karras",
    "Linear",
    "LogLinear",
    "Quadratic",
    "Schedule",
    "Sigmoid",
    "Table",
    "angle",
    "logsnr",
    "terminal_signal",
]


class Cosine(Config):
    """alpha(t) = cos(a(t)) / cos(a(0)) with a(t) = (t + s) / (1 + s) pi/2.

    Attributes:
        s: keeps the first step from being vanishingly small.
        shift: lowers log-SNR by 2 log(shift) everywhere; above 1 for larger images, or where the layout is to get more
            of the time.
        zero_terminal: whether alpha(1) is exactly 0, where log-SNR would end at its limit.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17; shift: Hoogeboom et al. 2023, arXiv:2301.11093, sec.
    3.1.
    """

    kind: Literal["cosine"] = "cosine"
    s: float = Field(0.008, gt=0, le=0.1)
    shift: float = Field(1.0, gt=0)
    zero_terminal: bool = False

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        exact = float64(t)
        signal, noise = self._parts(exact)
        alpha, sigma = curve(signal.log() - noise.log(), exact, self.shift, self.zero_terminal)
        return alpha.to(t), sigma.to(t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        level = float64(logsnr) + 2 * math.log(self.shift)
        start = self._phase(torch.zeros_like(level))
        now = torch.acos(torch.sigmoid(level).sqrt() * start.cos())
        t = now * 2 / math.pi * (1 + self.s) - self.s
        return t.clamp(0, 1).to(logsnr)

    def slope(self, t: Tensor) -> Tensor:
        """Give d logsnr / dt, shaped like ``t``."""
        exact = float64(t)
        now, (signal, noise) = self._phase(exact), self._parts(exact)
        slope = -(2 * now.tan() + (2 * now).sin() / noise) * math.pi / 2 / (1 + self.s)
        return limited_slope(slope, signal.log() - noise.log()).to(t)

    def _phase(self, t: Tensor) -> Tensor:
        return (t + self.s) / (1 + self.s) * (math.pi / 2)

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha^2 and sigma^2, both times cos(a(0))^2."""
        start, now = self._phase(torch.zeros_like(t)), self._phase(t)
        # 1 - alpha^2 = sin(now - start) sin(now + start) / cos(start)^2, without the cancellation at small t.
        return now.cos().clamp_min(0) ** 2, (now - start).sin() * (now + start).sin()


class Sigmoid(Config):
    """alpha(t)^2 falls from 1 to 0 along a stretch of the logistic curve.

    Attributes:
        start, end: where on the logistic curve the stretch begins and ends.
        tau: temperature; smaller is steeper in the middle.
        shift: lowers log-SNR by 2 log(shift) everywhere.
        zero_terminal: whether alpha(1) is exactly 0, where log-SNR would end at its limit.

    Source: Jabri et al. 2023, arXiv:2212.11972, appendix; Chen 2023, arXiv:2301.10972, algorithm 1.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = Field(-3.0, ge=-20, le=20)
    end: float = Field(3.0, ge=-20, le=20)
    tau: float = Field(1.0, ge=0.05)
    shift: float = Field(1.0, gt=0)
    zero_terminal: bool = False

    @model_validator(mode="after")
    def _rising(self) -> "Sigmoid":
        if self.start >= self.end:
            raise ValueError(f"start must be below end, got {self.start} and {self.end}")
        return self

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        exact = float64(t)
        alpha, sigma = curve(self._level(exact), exact, self.shift, self.zero_terminal)
        return alpha.to(t), sigma.to(t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        level = float64(logsnr) + 2 * math.log(self.shift)
        first, now, last = self._ends(level)
        alpha2, sigma2 = torch.sigmoid(level), torch.sigmoid(-level)
        ends = torch.tensor([first, last], dtype=torch.float64, device=level.device)
        passed, to_come = torch.sigmoid(ends), torch.sigmoid(-ends)
        now = (alpha2 * passed[0] + sigma2 * passed[1]).log() - (alpha2 * to_come[0] + sigma2 * to_come[1]).log()
        return ((now - first) / (last - first)).clamp(0, 1).to(logsnr)

    def slope(self, t: Tensor) -> Tensor:
        """Give d logsnr / dt, shaped like ``t``."""
        exact = float64(t)
        first, now, last = self._ends(exact)
        slope = -(last - first) / 2 * (1 / ((last - now) / 2).tanh() + 1 / ((now - first) / 2).tanh())
        return limited_slope(slope, self._level(exact)).to(t)

    def _level(self, t: Tensor) -> Tensor:
        """Log-SNR before shift and limits."""
        first, now, last = self._ends(t)
        # The difference of two logistic values is sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)): no cancellation.
        to_come, passed = ((last - now) / 2).sinh().log(), ((now - first) / 2).sinh().log()
        return to_come - passed + math.log(math.cosh(first / 2) / math.cosh(last / 2))

    def _ends(self, t: Tensor) -> tuple[float, Tensor, float]:
        """Where the stretch begins, where it is at t, and where it ends."""
        first, last = self.start / self.tau, self.end / self.tau
        return first, first + t * (last - first), last


class LogLinear(Config):
    """Log-SNR falls in a straight line; exactly data at t = 0.

    Attributes:
        high: log-SNR just after t = 0.
        low: log-SNR at t = 1.
        shift: lowers both by 2 log(shift).

    Source: Kingma et al. 2021, arXiv:2107.00630, whose learned schedule is near it, with both ends fixed.
    """

    kind: Literal["log_linear"] = "log_linear"
    high: float = 13.3
    low: float = -10.0
    shift: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _falling(self) -> "LogLinear":
        if not -LOGSNR_LIMIT <= self.low < self.high <= LOGSNR_LIMIT:
            raise ValueError(
                f"low must be below high, both within {LOGSNR_LIMIT:g} of 0, got {self.low} and {self.high}"
            )
        return self

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        exact = float64(t)
        alpha, sigma = curve(self.high + exact * (self.low - self.high), exact, self.shift, zero_terminal=False)
        return alpha.to(t), sigma.to(t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        level = float64(logsnr) + 2 * math.log(self.shift)
        return ((self.high - level) / (self.high - self.low)).clamp(0, 1).to(logsnr)

    def slope(self, t: Tensor) -> Tensor:
        """Give d logsnr / dt, shaped like ``t``."""
        return torch.full_like(t, self.low - self.high)


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

    def slope(self, t: Tensor) -> Tensor:
        """Give d logsnr / dt, shaped like ``t``."""
        return -2 / (t * (1 - t))


class Karras(Config):
    """Variance exploding: alpha = 1, sigma(t)^(1/rho) is linear in t; exactly data at t = 0.

    Equal steps in t are the noise levels of EDM's sampler. The state at t = 1 has standard deviation near sigma_max.

    Attributes:
        sigma_min: sigma just after t = 0.
        sigma_max: sigma at t = 1.
        rho: how much of the time goes to low noise; 1 is linear in sigma.
        shift: multiplies sigma, which lowers log-SNR by 2 log(shift) everywhere.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    kind: Literal["karras"] = "karras"
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, ge=1)
    shift: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _rising(self) -> "Karras":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}")
        return self

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        exact, (low, high) = float64(t), self._roots()
        sigma = self.shift * (low + exact * (high - low)) ** self.rho
        return torch.ones_like(t), torch.where(exact > 0, sigma, 0.0).to(t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        low, high = self._roots()
        root = ((-float64(logsnr) / 2).exp() / self.shift) ** (1 / self.rho)
        return ((root - low) / (high - low)).clamp(0, 1).to(logsnr)

    def slope(self, t: Tensor) -> Tensor:
        """Give d logsnr / dt, shaped like ``t``."""
        low, high = self._roots()
        return -2 * self.rho * (high - low) / (low + t * (high - low))

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)


AnySchedule = Annotated[Cosine | Linear | Quadratic | Sigmoid | LogLinear | Flow | Karras, Field(discriminator="kind")]

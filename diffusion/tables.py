"""DDPM's tables of betas as continuous schedules.

Step k of a table of T betas is time k / T, k = 1 .. T (diffusers' timestep k - 1), and is exact there; between the
knots, and between data and the first knot, the angle atan2(sigma, alpha) is interpolated.
"""

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from lab.config import Config

Array = npt.NDArray[np.float64]


class Table(Config, ABC):
    """What the tables share: everything but their betas.

    Attributes:
        kind: which table.
        steps: length of the table. The two betas are for 1,000 steps; another length needs others (times 1000 / steps
            keeps the levels).
        first, last: beta of the first and of the last step.
        zero_terminal: shifts and stretches alpha so that it is exactly 0 at the last step and unchanged at the first.
        shift: lowers log-SNR by 2 log(shift) everywhere; above 1 for larger images.

    Source: zero_terminal: Lin et al. 2024, arXiv:2305.08891, algorithm 1; shift: Hoogeboom et al. 2023,
    arXiv:2301.11093, sec. 3.1.
    """

    kind: str
    steps: int = Field(1000, ge=2)
    first: float = Field(1e-4, gt=0, lt=1)
    last: float = Field(0.02, gt=0, lt=1)
    zero_terminal: bool = False
    shift: float = Field(1.0, gt=0)

    @abstractmethod
    def betas(self) -> Array:
        """Give the variance that each step adds: (steps,)."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give alpha and sigma, each shaped like ``t``."""
        angles = _angles(self)
        at = np.interp(_array(t), _knots(self.steps), angles)
        alpha, sigma = np.where(at < math.pi / 2, np.cos(at), 0.0), np.sin(at)
        if self.shift != 1:
            sigma = self.shift * sigma
            total = np.hypot(alpha, sigma)
            alpha, sigma = alpha / total, sigma / total
        return torch.as_tensor(alpha).to(t), torch.as_tensor(sigma).to(t)

    def t_of(self, logsnr: Tensor) -> Tensor:
        """Give the time at which a log-SNR is reached, limited to [0, 1]."""
        angles = _angles(self)
        at = np.arctan(np.exp(-_array(logsnr) / 2) / self.shift)
        return torch.as_tensor(np.interp(at, angles, _knots(self.steps))).to(logsnr)

    def slope(self, t: Tensor) -> Tensor:
        """Give d logsnr / dt, shaped like ``t``; at a knot, that of the interval that ends there."""
        angles, times = _angles(self), _array(t)
        at = np.interp(times, _knots(self.steps), angles)
        interval = np.clip(np.searchsorted(_knots(self.steps), times) - 1, 0, self.steps - 1)
        with np.errstate(divide="ignore"):
            speed = -4 / np.sin(2 * at) * np.diff(angles)[interval] * self.steps
        return torch.as_tensor(speed).to(t)


class Linear(Table):
    """A DDPM table with betas linear in the step; ``Table`` lists its settings.

    Source: Ho et al. 2020, arXiv:2006.11239, sec. 4.
    """

    kind: Literal["linear"] = "linear"

    def betas(self) -> Array:
        """Give the variance that each step adds: (steps,)."""
        return np.linspace(self.first, self.last, self.steps)


class Quadratic(Table):
    """A DDPM table with betas linear in their square root; ``Table`` lists its settings.

    The default constants are DDIM's; Stable Diffusion's "scaled linear" is the same class with 0.00085 and 0.012.

    Source: Song et al. 2021, arXiv:2010.02502, appendix D.3 ("quad"); Rombach et al. 2022, arXiv:2112.10752.
    """

    kind: Literal["quadratic"] = "quadratic"

    def betas(self) -> Array:
        """Give the variance that each step adds: (steps,)."""
        betas: Array = np.linspace(self.first**0.5, self.last**0.5, self.steps) ** 2
        return betas


@lru_cache(maxsize=64)
def _angles(table: Table) -> Array:
    """Angles (T + 1,) at the knots, before the shift; kept per configuration, so that no copy carries a stale one."""
    log_signal = np.concatenate([[0.0], np.cumsum(np.log1p(-table.betas()))])  # log alpha^2
    alpha, sigma = np.exp(log_signal / 2), np.sqrt(-np.expm1(log_signal))
    if table.zero_terminal:
        alpha[1:] = (alpha[1:] - alpha[-1]) * alpha[1] / (alpha[1] - alpha[-1])
        sigma[1:] = np.sqrt(1 - alpha[1:] ** 2)
    angles: Array = np.arctan2(sigma, alpha)
    angles.setflags(write=False)
    return angles


@lru_cache(maxsize=8)
def _knots(steps: int) -> Array:
    """Times (T + 1,) of the knots."""
    knots: Array = np.linspace(0, 1, steps + 1)
    knots.setflags(write=False)
    return knots


def _array(values: Tensor) -> Array:
    array: Array = values.detach().cpu().double().numpy()
    return array

"""One step between two levels, in Python floats, and the weights with which past predictions enter it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.schedule import Schedule

NoiseLike = Callable[[Tensor], Tensor]
"""Draws a standard normal shaped like its argument, one stream per image."""


class Step(NamedTuple):
    """One step from (alpha, sigma) at time t to (alpha_to, sigma_to) at time t_to; the times are () float64."""

    t: Tensor
    alpha: float
    sigma: float
    t_to: Tensor
    alpha_to: float
    sigma_to: float

    @property
    def added(self) -> float:
        """Standard deviation that noising adds between the two levels: sqrt(sigma^2 - (alpha/alpha_to sigma_to)^2)."""
        return math.sqrt(max(self.sigma**2 - (self.alpha / self.alpha_to * self.sigma_to) ** 2, 0.0))

    @property
    def posterior(self) -> float:
        """Standard deviation of the state at the second level, given the state at the first and x0."""
        return self.sigma_to / self.sigma * self.added

    @property
    def shrink(self) -> float:
        """By how much sigma / alpha falls: exp(-length), 0 for a step from alpha = 0 or to sigma = 0."""
        return self.sigma_to * self.alpha / (self.sigma * self.alpha_to)

    @property
    def length(self) -> float:
        """The step in half log-SNR log(alpha / sigma), at least 0; inf from alpha = 0 and to sigma = 0."""
        return max(-math.log(self.shrink), 0.0) if self.shrink > 0 else math.inf

    @property
    def half_logsnr(self) -> float:
        """log(alpha / sigma) at the first level; -inf where alpha = 0."""
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def ratio(self) -> float:
        """The level as sigma / alpha, at the start of the step; inf where alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def on_eps(self) -> float:
        """alpha_to times the change of sigma / alpha: what an error of eps_hat does; -inf from alpha = 0."""
        return self.sigma_to - self.alpha_to * self.ratio

    def reversed(self) -> "Step":
        """The same step from its end to its start, from data towards noise."""
        return Step(self.t_to, self.alpha_to, self.sigma_to, self.t, self.alpha, self.sigma)

    def mean(self, x: Tensor, x0_hat: Tensor, kept: float) -> Tensor:
        """alpha_to x0_hat + kept eps_hat."""
        share = kept / self.sigma
        return (self.alpha_to - share * self.alpha) * x0_hat + share * x

    def ddim(self, x: Tensor, x0_hat: Tensor) -> Tensor:
        """The deterministic step of first order: alpha_to x0_hat + sigma_to eps_hat."""
        return self.mean(x, x0_hat, self.sigma_to)

    def eps(self, x: Tensor, x0_hat: Tensor) -> Tensor:
        """eps_hat = (x - alpha x0_hat) / sigma."""
        return (x - self.alpha * x0_hat) / self.sigma


def steps_of(times: Tensor, schedule: Schedule) -> list[Step]:
    """Check the times and give each step's levels, computed in float64.

    Raises:
        ValueError: ``times`` (n + 1,) does not decrease within [0, 1].
    """
    times = times.double().cpu()
    if len(times) < 2 or not bool((times.diff() < 0).all()) or not 0 <= times[-1] < times[0] <= 1:
        raise ValueError(f"times must strictly decrease within [0, 1], got {times.tolist()}")
    alphas, sigmas = (level.tolist() for level in schedule(times))
    return [
        Step(times[k], alphas[k], sigmas[k], times[k + 1], alphas[k + 1], sigmas[k + 1]) for k in range(len(times) - 1)
    ]


def predict(denoise: Denoise, x: Tensor, t: Tensor) -> Tensor:
    """Ask for x0_hat (b, c, h, w) of the states x at one time t (), which the denoiser hears once per image."""
    return denoise(x, t.to(x.dtype).expand(len(x)))


def required(noise: NoiseLike | None, setting: str, value: float) -> NoiseLike | None:
    """Give the noise where a setting asks for it, and None where the setting is 0.

    Raises:
        ValueError: noise is needed and missing.
    """
    if value == 0:
        return None
    if noise is None:
        raise ValueError(f"{setting} > 0 adds fresh noise in each step: pass noise, or {setting}=0")
    return noise


def decaying_moments(length: float, count: int) -> list[float]:
    """Integrals of length exp(-(1 - s) length) s^j over s in [0, 1], j = 0 .. count - 1.

    They are the exact weights of a polynomial x0_hat in half log-SNR over a step of that length, s = 0 at its start:
    x' = sigma'/sigma x + alpha' sum_j (moment j) (coefficient j). For an infinite length all are 1.

    Source: Lu et al. 2022, arXiv:2211.01095, eq. 9 and appendix B (the functions phi_k), rearranged.
    """
    if length < 1:  # the recursion below cancels
        return [_series(length, j) for j in range(count)]
    moments = [-math.expm1(-length)]
    for j in range(1, count):
        moments.append(1 - j / length * moments[-1])
    return moments


def _series(length: float, power: int) -> float:
    total, term = 0.0, length / (power + 1)
    for m in range(1, 20):
        total += term
        term *= -length / (power + 1 + m)
    return total


def interpolating_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of predictions at ``nodes`` that integrate polynomials exactly.

    With the prediction m_0 at s = 0 and m_j at s = nodes[j], the integral of the polynomial through all of them is
    moments[0] m_0 + sum_j weights[j] (m_j - m_0).

    Args:
        nodes: k different numbers, none 0.
        moments: integrals of s^0 .. s^k (more are ignored).

    Returns:
        k weights.
    """
    if not nodes:
        return []
    powers = np.arange(1, len(nodes) + 1)
    system = np.asarray(nodes)[None, :] ** powers[:, None]
    weights: list[float] = np.linalg.solve(system, np.asarray(moments)[powers]).tolist()
    return weights


def drawn(noise: NoiseLike | None, x: Tensor, std: float) -> Tensor:
    """Add noise of a standard deviation to the states x; none where it is 0 or there is none to draw."""
    return x + std * noise(x) if noise is not None and std > 0 else x


def distinct(past: Sequence[tuple[float, Tensor]], here: float) -> list[tuple[float, Tensor]]:
    """The past predictions that a polynomial can use: at finite places, each other than those before and than here."""
    usable: list[tuple[float, Tensor]] = []
    seen = {here}
    for place, value in past:
        if math.isfinite(place) and place not in seen:
            usable.append((place, value))
            seen.add(place)
    return usable

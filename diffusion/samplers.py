"""From noise to data: plain functions over a decreasing sequence of times.

With x0_hat known, the noise that x_t holds is eps_hat = (x_t - alpha x0_hat) / sigma, and a step to the level (alpha',
sigma') is

    x' = alpha' x0_hat + sigma'_kept eps_hat + sigma'_new z,    sigma'_kept^2 + sigma'_new^2 = sigma'^2

with fresh noise z. How much of the noise is new is all that tells DDIM from DDPM. Nothing is clamped.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.schedule import Schedule

NoiseLike = Callable[[Tensor], Tensor]
"""Draws a standard normal shaped like its argument, one stream per image."""


def uniform_times(steps: int) -> Tensor:
    """Give ``steps + 1`` times from 1 to 0, equally spaced: (steps + 1,) float64."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def ddim(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, *, eta: float = 0.0, noise: NoiseLike | None = None
) -> Tensor:
    """Walk from noise to data with DDIM steps.

    With ``eta = 0`` this is Euler's method in x/alpha as a function of sigma/alpha; with ``eta = 1`` it is ancestral
    DDPM sampling with the lower (posterior) variance.

    Args:
        denoise: (x_t, t) -> x0_hat; condition and guidance are already inside.
        x: (b, c, h, w), the state at ``times[0]``.
        times: (n + 1,), strictly decreasing in [0, 1].
        schedule: t -> (alpha, sigma).
        eta: fraction of the ancestral noise, 0 to 1.
        noise: draws a standard normal like its argument, one stream per image; required when ``eta > 0``.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], ``eta`` is outside [0, 1], or noise is needed and
            missing.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12; alpha-sigma form in docs/decisions/0002.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if eta > 0 and noise is None:
        raise ValueError("eta > 0 adds fresh noise in each step: pass noise, or eta=0")
    for step in _steps(times, schedule):
        x0_hat = denoise(x, step.t.to(x).expand(len(x)))
        new = eta * step.posterior
        kept = max(step.sigma_to**2 - new**2, 0.0) ** 0.5
        x = step.mean(x, x0_hat, kept)
        if noise is not None and new > 0:
            x = x + new * noise(x)
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseLike,
    variance: Literal["lower", "upper"] = "upper",
) -> Tensor:
    """Walk from noise to data with ancestral DDPM steps, any number of them.

    Args:
        denoise, x, times, schedule, noise: as in ``ddim``.
        variance: "lower" is the posterior's given x0, which equals ``ddim`` with ``eta = 1``; "upper" is the variance
            that noising adds between the two levels (DDPM's beta). The mean is the same. The last step to sigma = 0
            adds nothing.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1].

    Source: Ho et al. 2020, arXiv:2006.11239, sec. 3.2; over several table entries alpha / alpha' stands for sqrt(1 -
    beta).
    """
    for step in _steps(times, schedule):
        x0_hat = denoise(x, step.t.to(x).expand(len(x)))
        kept = max(step.sigma_to**2 - step.posterior**2, 0.0) ** 0.5
        x = step.mean(x, x0_hat, kept)
        if step.sigma_to > 0:
            x = x + (step.posterior if variance == "lower" else step.added) * noise(x)
    return x


class _Step(NamedTuple):
    """One step from (alpha, sigma) at time t to (alpha_to, sigma_to), in Python floats."""

    t: Tensor
    alpha: float
    sigma: float
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

    def mean(self, x: Tensor, x0_hat: Tensor, kept: float) -> Tensor:
        """alpha_to x0_hat + kept eps_hat."""
        share = kept / self.sigma
        return (self.alpha_to - share * self.alpha) * x0_hat + share * x


def _steps(times: Tensor, schedule: Schedule) -> Iterator[_Step]:
    """Check the times and give each step's levels, computed in float64."""
    times = times.double().cpu()
    if len(times) < 2 or not bool((times.diff() < 0).all()) or not 0 <= times[-1] < times[0] <= 1:
        raise ValueError(f"times must strictly decrease within [0, 1], got {times.tolist()}")
    alphas, sigmas = (level.tolist() for level in schedule(times))
    for k in range(len(times) - 1):
        yield _Step(times[k], alphas[k], sigmas[k], alphas[k + 1], sigmas[k + 1])

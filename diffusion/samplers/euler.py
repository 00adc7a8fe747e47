"""Euler, Euler ancestral and Heun, with the noise of "churn"."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.samplers.ddim import ddim
from diffusion.samplers.steps import NoiseLike, Step, predict, required, steps_of
from diffusion.schedule import Schedule


class Churn(NamedTuple):
    """How much noise is added before each step, to be removed by it.

    Attributes:
        amount: shared out over all steps: each raises sigma / alpha by the fraction min(amount / n, sqrt(2) - 1); 0 is
            off. Never beyond the level of t = 1, so a walk's first step has none.
        low, high: only where sigma / alpha lies between them.
        inflation: standard deviation of the added noise; slightly above 1 makes up for detail that a network that
            removes too much noise loses.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2 (S_churn, S_tmin, S_tmax, S_noise).
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    inflation: float = 1.0


NO_CHURN = Churn()


def euler(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    churn: Churn = NO_CHURN,
    noise: NoiseLike | None = None,
) -> Tensor:
    """Walk from noise to data with Euler steps in sigma / alpha, with churn where asked.

    Without churn this is ``ddim``: Euler's method for x / alpha as a function of sigma / alpha, for x / sigma as a
    function of alpha / sigma, and, on the flow schedule, for x as a function of t are all the same step.

    Args:
        denoise, x, times, schedule: as in ``ddim``.
        churn: noise to add before each step.
        noise: draws a standard normal like its argument, one stream per image; required with churn.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], or churn without noise.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2 without its correction.
    """
    noise = required(noise, "churn", churn.amount)
    steps = steps_of(times, schedule)
    for step in steps:
        step, x = _churned(step, x, schedule, churn, noise, len(steps))
        x = step.ddim(x, predict(denoise, x, step.t))
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, *, noise: NoiseLike, eta: float = 1.0
) -> Tensor:
    """Walk from noise to data with Euler steps that go below the next level and back up with fresh noise.

    Euler's method is DDIM, and going down to sqrt(sigma'^2 - new^2) and adding noise of the posterior's deviation
    ``new`` is what DDIM's eta does: this is ``ddim`` with ``eta = 1``, under the name by which many know it.

    Args:
        denoise, x, times, schedule, noise, eta: as in ``ddim``.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: as in ``ddim``.

    Source: k-diffusion, ``sample_euler_ancestral``; Song et al. 2021, arXiv:2010.02502, eq. 12.
    """
    return ddim(denoise, x, times, schedule, eta=eta, noise=noise)


def heun(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    churn: Churn = NO_CHURN,
    noise: NoiseLike | None = None,
    average: Literal["x0", "eps"] = "x0",
) -> Tensor:
    """Walk from noise to data with Heun steps, of second order: two denoiser calls each, one in a step to sigma = 0.

    Each step predicts at its start and at the end of a first trial, and is taken again with the mean of both.

    Args:
        denoise, x, times, schedule: as in ``ddim``.
        churn: noise to add before each step.
        noise: draws a standard normal like its argument, one stream per image; required with churn.
        average: of what the mean is taken. "x0" is Heun's method in alpha / sigma, which is finite at alpha = 0; "eps"
            is EDM's, in sigma / alpha, which is not, so its step from alpha = 0 averages x0.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], or churn without noise.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2.
    """
    noise = required(noise, "churn", churn.amount)
    steps = steps_of(times, schedule)
    for step in steps:
        step, x = _churned(step, x, schedule, churn, noise, len(steps))
        first = predict(denoise, x, step.t)
        trial = step.ddim(x, first)
        if step.sigma_to == 0:
            return trial
        second = predict(denoise, trial, step.t_to)
        if average == "eps" and step.alpha > 0:
            there = (trial - step.alpha_to * second) / step.sigma_to
            x = trial + step.on_eps / 2 * (there - step.eps(x, first))
        else:
            x = step.ddim(x, (first + second) / 2)
    return x


def _churned(
    step: Step, x: Tensor, schedule: Schedule, churn: Churn, noise: NoiseLike | None, count: int
) -> tuple[Step, Tensor]:
    """Raise a state to a noisier level, from where the step then starts."""
    if noise is None or step.alpha == 0 or not churn.low <= step.ratio <= churn.high:
        return step, x
    raised = math.log(step.ratio) + math.log1p(min(churn.amount / count, math.sqrt(2) - 1))
    t = schedule.t_of(torch.tensor(-2 * raised, dtype=torch.float64))
    if t <= step.t:
        return step, x
    # The schedule limits times to 1: the levels are those of the time, whatever was asked for.
    alpha, sigma = (level.item() for level in schedule(t))
    share = alpha / step.alpha
    added = math.sqrt(max(sigma**2 - (share * step.sigma) ** 2, 0.0))
    x = share * x + churn.inflation * added * noise(x)
    return step._replace(t=t, alpha=alpha, sigma=sigma), x

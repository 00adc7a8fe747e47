"""DPM-Solver++ with past predictions: exponential integrators in half log-SNR, for the flow and for the reverse SDE.

With h the step's length in half log-SNR and x0_hat(s) a polynomial over it, s from 0 to 1,

    x' =   sigma'/sigma exp(-eta h) x
         + alpha' integral over s of H exp(-(1 - s) H) x0_hat(s)
         + sigma' sqrt(1 - exp(-2 eta h)) z

with H = (1 + eta) h and fresh noise z: eta = 0 is the probability flow, eta = 1 the reverse SDE. A constant x0_hat
makes them ``ddim`` with eta 0 and 1.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.samplers.steps import NoiseLike, Step, decaying_moments, distinct, drawn, predict, required, steps_of
from diffusion.schedule import Schedule

Past = list[tuple[float, Tensor]]  # half log-SNR and x0_hat, the latest first
Combine = Callable[[Step, Tensor, Past, float], Tensor]  # (step, x0_hat, past, H) -> the integral


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noise: NoiseLike | None = None,
    past: Sequence[tuple[float, Tensor]] = (),
) -> Tensor:
    """Walk from noise to data with DPM-Solver++ 2M steps, of second order: this prediction and the one before.

    Args:
        denoise, x, times, schedule: as in ``ddim``.
        eta: 0 for the flow, 1 for the reverse SDE (SDE-DPM-Solver++ 2M); between them a mixture, beyond more noise.
        noise: draws a standard normal like its argument, one stream per image; required when ``eta > 0``.
        past: half log-SNR and x0_hat of the steps that led here, the latest first, so that a walk in two parts is the
            whole walk.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], ``eta`` is negative, or noise is needed and missing.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2 and eq. 19 (the midpoint form).
    """
    return _walk(denoise, x, steps_of(times, schedule), eta, _checked(noise, eta), _second, list(past))


def dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    noise: NoiseLike | None = None,
    past: Sequence[tuple[float, Tensor]] = (),
) -> Tensor:
    """Walk from noise to data with DPM-Solver++ 3M steps as published: three predictions, of second order.

    The published step halves the second difference once too often, which leaves it of second order with a smaller
    error than 2M's. Three predictions with the right weights are ``unipc`` with ``order=3, correct=False``, which its
    first step, of first order, limits to order 2 all the same.

    Args:
        denoise, x, times, schedule, eta, noise, past: as in ``dpmpp_2m``.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: as in ``dpmpp_2m``.

    Source: k-diffusion, ``sample_dpmpp_3m_sde``; Lu et al. 2022, arXiv:2211.01095, for the method.
    """
    return _walk(denoise, x, steps_of(times, schedule), eta, _checked(noise, eta), _third, list(past))


def _checked(noise: NoiseLike | None, eta: float) -> NoiseLike | None:
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0, got {eta}")
    return required(noise, "eta", eta)


def _walk(
    denoise: Denoise, x: Tensor, steps: list[Step], eta: float, noise: NoiseLike | None, combine: Combine, past: Past
) -> Tensor:
    for step in steps:
        x0_hat = predict(denoise, x, step.t)
        usable = distinct(past, step.half_logsnr) if step.sigma_to > 0 else []
        change = combine(step, x0_hat, usable, (1 + eta) * step.length)
        past = [(step.half_logsnr, x0_hat), *past][:2]
        # Powers of exp(-h), never the logarithm: from alpha = 0 they are 0 ** eta, and 0 ** 0 = 1 is the limit.
        kept = step.sigma_to / step.sigma * step.shrink**eta
        x = kept * x + step.alpha_to * change
        x = drawn(noise, x, step.sigma_to * math.sqrt(max(1 - step.shrink ** (2 * eta), 0.0)))
    return x


def _second(step: Step, x0_hat: Tensor, past: Past, length: float) -> Tensor:
    """Through this prediction and the one before; the difference is taken at the middle of the step."""
    (weight,) = decaying_moments(length, 1)
    if not past:
        return weight * x0_hat
    (place, before), *_ = past
    return weight * (x0_hat + step.length / (2 * (step.half_logsnr - place)) * (x0_hat - before))


def _third(step: Step, x0_hat: Tensor, past: Past, length: float) -> Tensor:
    """Through this prediction and the two before, with the second difference as published."""
    constant, linear, square = decaying_moments(length, 3)
    if not past:
        return constant * x0_hat
    r0 = (step.half_logsnr - past[0][0]) / step.length
    slope = (x0_hat - past[0][1]) / r0
    if len(past) == 1:
        return constant * x0_hat + linear * slope
    r1 = (past[0][0] - past[1][0]) / step.length
    bend = (slope - (past[0][1] - past[1][1]) / r1) / (r0 + r1)  # the coefficient of s^2, whose weight is ``square``
    return constant * x0_hat + linear * (slope + r0 * bend) + square / 2 * bend

"""Where a sampler stops on its way: n + 1 decreasing times, float64.

A DDPM table of T steps has its knots at t = k / T, k = 1 .. T, so other libraries' timestep j is t = (j + 1) / T.
Spacings in log-SNR run between stated limits, or less where the schedule itself does not reach the lower one, and then
step to t = 0.
"""

import math

import torch
from torch import Tensor

from diffusion.schedule import Schedule, logsnr

# The noise that is left at log-SNR 10, exp(-5) of the data's scale, is less than a step of 8 bits in [-1, 1]; the
# signal at -10 is as small.
LOGSNR_LIMITS = (-10.0, 10.0)

# Chosen on the demo model for the smallest error of 10 and of 20 calls (docs/samplers.md).
TANGENT_SHIFT, TANGENT_STRETCH = 2.6, 1.75


def uniform_times(steps: int) -> Tensor:
    """Give ``steps + 1`` times from 1 to 0, equally spaced: (steps + 1,) float64."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def quadratic_times(steps: int) -> Tensor:
    """Give times from 1 to 0 whose square roots are equally spaced, denser near data: (steps + 1,) float64.

    Source: Song et al. 2021, arXiv:2010.02502, appendix D.2 ("quadratic"), there up to 0.8 T only.
    """
    return uniform_times(steps) ** 2


def trailing_times(steps: int, table: int = 1000) -> Tensor:
    """Give times from 1 to 0, equally spaced but for rounding to the knots of a table: (steps + 1,) float64.

    Where ``steps`` divides ``table`` these are the uniform times.

    Raises:
        ValueError: more steps than the table has.

    Source: Lin et al. 2023, arXiv:2305.08891, table 2 ("trailing").
    """
    _check_table(steps, table)
    return (uniform_times(steps) * table).round() / table


def leading_times(steps: int, table: int = 1000) -> Tensor:
    """Give the first and then every floor(table / steps)-th knot of a table, and 0: (steps + 1,) float64.

    The first time is below 1, by almost 1 / steps, where the state still shows some data: a walk from pure noise is
    told that there is some. Kept for comparison with models that are sampled so.

    Raises:
        ValueError: more steps than the table has.

    Source: Lin et al. 2023, arXiv:2305.08891, table 2 ("leading").
    """
    _check_table(steps, table)
    knots = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (table // steps) + 1
    return torch.cat([knots / table, torch.zeros(1, dtype=torch.float64)])


def logsnr_times(steps: int, schedule: Schedule, limits: tuple[float, float] = LOGSNR_LIMITS) -> Tensor:
    """Give ``steps`` times equally spaced in log-SNR, and 0: (steps + 1,) float64.

    Args:
        steps: number of steps.
        schedule: its inverse says when a level is reached.
        limits: lowest (most noise) and highest log-SNR.

    Raises:
        ValueError: the limits do not increase, or the schedule ends above the higher one.

    Source: Lu et al. 2022, arXiv:2206.00927, sec. 3.4 ("uniform logSNR").
    """
    low, high = _within(schedule, limits)
    return _times_at(torch.linspace(low, high, steps, dtype=torch.float64), schedule)


def karras_times(
    steps: int, schedule: Schedule, limits: tuple[float, float] = LOGSNR_LIMITS, rho: float = 7.0
) -> Tensor:
    """Give ``steps`` times with (sigma / alpha)^(1 / rho) equally spaced, and 0: (steps + 1,) float64.

    Args:
        steps, schedule, limits: as in ``logsnr_times``; sigma / alpha = exp(-logsnr / 2).
        rho: the larger, the more steps near data.

    Raises:
        ValueError: as in ``logsnr_times``.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    low, high = _within(schedule, limits)
    first, last = (torch.tensor(-limit / 2 / rho, dtype=torch.float64).exp().item() for limit in (low, high))
    return _times_at(-2 * rho * torch.linspace(first, last, steps, dtype=torch.float64).log(), schedule)


def tangent_times(
    steps: int, schedule: Schedule, shift: float = TANGENT_SHIFT, stretch: float = TANGENT_STRETCH
) -> Tensor:
    """Give times with sigma / alpha = shift tan(pi/2 u)^stretch for equally spaced u, and 0: (steps + 1,) float64.

    A stretch of 1 is the uniform times of a cosine schedule with that shift. A larger one moves steps from the middle
    to both ends: where it is decided what is shown, and where the last step, of first order, is short enough.

    Args:
        steps: number of steps.
        schedule: its inverse says when a level is reached; u begins where it ends, at t = 1.
        shift: sigma / alpha in the middle, u = 1/2.
        stretch: at least 1; how far the steps reach to either side in log-SNR.

    Raises:
        ValueError: so many steps reach beyond the lowest noise of the schedule.
    """
    end = logsnr(*schedule(torch.ones((), dtype=torch.float64)))
    first = 2 / math.pi * math.atan(math.exp((-end.item() / 2 - math.log(shift)) / stretch))
    u = first * uniform_times(steps)[:-1]
    times = _times_at(-2 * (math.log(shift) + stretch * (math.pi / 2 * u).tan().log()), schedule)
    times[0] = 1
    if not (times.diff() < 0).all():
        raise ValueError(f"{steps} steps reach beyond the lowest noise of the schedule: take fewer, or uniform times")
    return times


def _check_table(steps: int, table: int) -> None:
    if steps > table:
        raise ValueError(f"{steps} steps do not fit a table of {table}: take at most {table}, or uniform times")


def _within(schedule: Schedule, limits: tuple[float, float]) -> tuple[float, float]:
    """The limits, the lower one raised to where the schedule ends."""
    low, high = limits
    end = logsnr(*schedule(torch.ones((), dtype=torch.float64))).item()
    if not max(low, end) < high:
        raise ValueError(f"log-SNR limits must increase and end above the schedule's {end:.3g} at t = 1, got {limits}")
    return max(low, end), high


def _times_at(levels: Tensor, schedule: Schedule) -> Tensor:
    """The times of increasing levels, and 0; exactly 1 where the schedule ends at the first of them."""
    times = schedule.t_of(levels)
    if levels[0] <= logsnr(*schedule(torch.ones((), dtype=torch.float64))) + 1e-9:
        times[0] = 1
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])

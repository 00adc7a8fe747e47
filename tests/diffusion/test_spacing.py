"""Where samplers stop: each spacing against its formula, written another way."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.samplers import (
    karras_times,
    leading_times,
    logsnr_times,
    quadratic_times,
    tangent_times,
    trailing_times,
    uniform_times,
)
from diffusion.schedule import Cosine, Flow, Karras, Linear, Quadratic, Schedule, logsnr

SCHEDULES = [Cosine(), Linear(), Quadratic(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)


def listed(times: Tensor) -> list[float]:
    values: list[float] = times.tolist()
    return values


def test_spacings_without_levels() -> None:
    assert listed(uniform_times(4)) == [1, 0.75, 0.5, 0.25, 0]
    assert listed(quadratic_times(4)) == [1, 0.5625, 0.25, 0.0625, 0]
    assert listed(trailing_times(4)) == [1, 0.75, 0.5, 0.25, 0]
    assert listed(leading_times(4)) == [0.751, 0.501, 0.251, 0.001, 0]


@pytest.mark.parametrize("n", [1, 3, 7, 30, 999, 1000])
def test_trailing_and_leading_are_lin_et_als_rows_of_a_table(n: int) -> None:
    """Table 2 counts entries from 1."""
    trailing = np.round(np.flip(np.arange(1000, 0, -1000 / n)))[-n:]
    np.testing.assert_allclose(trailing_times(n).flip(0)[1:] * 1000, trailing, atol=1e-9)
    assert torch.equal((trailing_times(n) * 1000).round(), trailing_times(n) * 1000)
    leading = np.arange(1, 1 + n * (1000 // n), 1000 // n)
    np.testing.assert_allclose(leading_times(n).flip(0)[1:] * 1000, leading)


@every_schedule
@pytest.mark.parametrize("n", [2, 5, 40])
def test_log_snr_is_equally_spaced_and_then_t_is_0(n: int, schedule: Schedule) -> None:
    times = logsnr_times(n, schedule, (-6.0, 8.0))
    levels = logsnr(*schedule(times))
    torch.testing.assert_close(levels[:-1], torch.linspace(-6, 8, n, dtype=torch.float64), rtol=0, atol=1e-7)
    assert (len(times), times[-1]) == (n + 1, 0)


@every_schedule
@pytest.mark.parametrize("n", [2, 5, 40])
def test_tangent_levels_are_equally_spaced_in_their_angle(n: int, schedule: Schedule) -> None:
    times = tangent_times(n, schedule, shift=3.0, stretch=1.5)
    alpha, sigma = schedule(times)
    u = torch.atan((sigma / alpha / 3) ** (1 / 1.5))
    torch.testing.assert_close(u[1:], u[0] * torch.linspace(1, 0, n + 1, dtype=torch.float64)[1:], rtol=0, atol=1e-7)
    assert (len(times), times[0], times[-1]) == (n + 1, 1, 0)


def test_tangent_times_without_stretch_are_a_cosines_own() -> None:
    own = Cosine(s=1e-6, shift=1.4)
    torch.testing.assert_close(tangent_times(10, own, shift=1.4, stretch=1.0), uniform_times(10), rtol=0, atol=1e-4)


@every_schedule
@pytest.mark.parametrize("rho", [3.0, 7.0])
def test_karras_levels_are_edms(rho: float, schedule: Schedule) -> None:
    """Karras et al., eq. 5, with sigma_max and sigma_min of the limits."""
    n, largest, smallest = 9, math.exp(3), math.exp(-4)
    i = np.arange(n)
    expected = (largest ** (1 / rho) + i / (n - 1) * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho
    alpha, sigma = schedule(karras_times(n, schedule, (-6.0, 8.0), rho))
    np.testing.assert_allclose((sigma / alpha)[:-1], expected, rtol=1e-7)
    assert sigma[-1] == 0


@pytest.mark.parametrize("spacing", [logsnr_times, karras_times])
@pytest.mark.parametrize("schedule", [Quadratic(first=0.00085, last=0.012), Cosine(), Linear()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_schedule_that_ends_within_the_limits_is_walked_from_its_end(
    spacing: Callable[..., Tensor], n: int, schedule: Schedule
) -> None:
    """Scaled linear, for one, has log-SNR -5.4 at t = 1: there is nothing to walk through before."""
    times = spacing(n, schedule, (-30.0, 8.0))
    assert times[0] == 1
    assert (times.diff() < 0).all()
    assert len(times) == n + 1


@every_schedule
@pytest.mark.parametrize("n", [1, 2, 50, 200])
def test_every_spacing_strictly_decreases_to_0_in_float64(n: int, schedule: Schedule) -> None:
    spacings = [
        uniform_times,
        quadratic_times,
        trailing_times,
        leading_times,
        partial(logsnr_times, schedule=schedule),
        partial(karras_times, schedule=schedule),
    ]
    for spacing in spacings:
        times = spacing(n)
        assert (times.dtype, len(times), times[-1].item()) == (torch.float64, n + 1, 0)
        assert (times.diff() < 0).all()
        assert times[0] <= 1


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (lambda: trailing_times(1001), "1001 steps do not fit a table of 1000: take at most 1000, or uniform times"),
        (lambda: leading_times(21, 20), "21 steps do not fit a table of 20"),
        (lambda: logsnr_times(5, Flow(), (3.0, 3.0)), "limits must increase"),
        (lambda: tangent_times(9000, Karras()), "9000 steps reach beyond the lowest noise of the schedule"),
        (lambda: karras_times(5, Flow(), (3.0, -3.0)), "limits must increase"),
        (lambda: logsnr_times(5, Cosine(), (-50.0, -30.0)), "end above the schedule's -20 at t = 1"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Tensor], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        call()

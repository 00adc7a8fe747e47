"""Distributions of time: what they draw, and the density of log-SNR that they claim."""

import math

import pytest
import torch

from diffusion.levels import logsnr
from diffusion.schedule import AnySchedule, Cosine, Flow, Karras, Linear, LogLinear, Quadratic, Sigmoid
from diffusion.times import AnyTimes, LogitNormalTimes, LogNormalTimes, UniformTimes

U = (torch.arange(100_000) + 0.5) / 100_000
TIMES: list[AnyTimes] = [
    UniformTimes(),
    LogitNormalTimes(),
    LogitNormalTimes(mean=-0.5, std=0.7),
    LogNormalTimes(),
    LogNormalTimes(mean=1.0, std=2.0),
]
SCHEDULES: list[AnySchedule] = [
    Cosine(),
    Cosine(shift=2.0, zero_terminal=True),
    Linear(),
    Linear(steps=50, first=2e-3, last=0.4, zero_terminal=True),
    Quadratic(),
    Sigmoid(),
    LogLinear(),
    Flow(),
    Flow(shift=3.0),
    Karras(),
]

each_pair = pytest.mark.parametrize(
    ("times", "schedule"),
    [(times, schedule) for times in TIMES for schedule in SCHEDULES],
    ids=lambda config: config.kind,
)


def test_uniform_times_are_uniform_and_never_data() -> None:
    t = UniformTimes()(U, Flow())
    torch.testing.assert_close(t.sort().values, U)
    assert UniformTimes()(torch.tensor([0.0, 1 - 2**-24]), Flow()).tolist() == [1.0, 2**-24]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.4)])
def test_logit_normal_times_have_a_normal_logit(mean: float, std: float) -> None:
    times = LogitNormalTimes(mean=mean, std=std)
    logit = torch.logit(times(U.double(), Flow()))
    assert logit.mean().item() == pytest.approx(mean, abs=1e-3)
    assert logit.std().item() == pytest.approx(std, rel=1e-3)
    assert logit.median().item() == pytest.approx(mean, abs=1e-3)
    ends = times(torch.tensor([0.0, 1 - 2**-24]), Flow())
    assert 0 < ends[0] < ends[1] < 1


def test_log_normal_times_have_a_normal_log_sigma() -> None:
    _, sigma = Karras(sigma_min=1e-6, sigma_max=1e4)(
        LogNormalTimes()(U.double(), Karras(sigma_min=1e-6, sigma_max=1e4))
    )
    assert sigma.log().mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert sigma.log().std().item() == pytest.approx(1.2, rel=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_log_normal_times_are_the_same_levels_on_every_schedule_and_stay_on_it(schedule: AnySchedule) -> None:
    times = LogNormalTimes()
    level = logsnr(*schedule(times(U.double(), schedule)))
    torch.testing.assert_close(level.median().item(), 2.4, rtol=0, atol=0.02)
    ends = times(torch.tensor([0.0, 1 - 2**-24]), schedule)
    assert 1 >= ends[0] > ends[1] > 0
    assert LogNormalTimes(mean=40.0, std=0.1).mass(Karras()) < 1e-6 < 0.99 < times.mass(schedule)


@each_pair
def test_the_density_of_log_snr_matches_what_is_drawn(times: AnyTimes, schedule: AnySchedule) -> None:
    """The share of draws below each of many levels is the integral of the density up to there."""
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    drawn = logsnr(*schedule(times(u, schedule))).sort().values
    level = torch.linspace(drawn[20].item(), drawn[-21].item(), 20_001, dtype=torch.float64)
    density = times.density(schedule.t_of(level), schedule)
    below = torch.cumulative_trapezoid(density, level)
    counted = torch.searchsorted(drawn, level[1:]) / len(drawn) - 21 / len(drawn)
    torch.testing.assert_close(below.float(), counted, rtol=0, atol=1e-3)
    assert below[-1].item() == pytest.approx(1, abs=2e-3)


def test_logit_normal_on_flow_is_normal_in_log_snr() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    level = logsnr(*Flow(shift=2.0)(t))
    mean, std = -2 * (-0.5) - 2 * math.log(2), 2 * 0.7  # of log-SNR = -2 (logit t + log shift)
    expected = torch.distributions.Normal(mean, std).log_prob(level).exp()
    torch.testing.assert_close(LogitNormalTimes(mean=-0.5, std=0.7).density(t, Flow(shift=2.0)), expected)

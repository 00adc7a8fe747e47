"""Every parameterization says the same: hand it its own target and x0 comes back."""

import math

import pytest
import torch

from diffusion.parameterization import X0, Edm, Eps, Parameterization, V, Velocity
from diffusion.schedule import (
    Cosine,
    Flow,
    Karras,
    Linear,
    LogLinear,
    Quadratic,
    Schedule,
    Sigmoid,
    angle,
)

SCHEDULES = [
    Cosine(),
    Cosine(shift=2.0),
    Linear(),
    Linear(zero_terminal=True),
    Quadratic(),
    Sigmoid(),
    LogLinear(),
    Flow(),
    Flow(shift=3.0),
    Karras(),
]
FINITE = [X0(), V(), Velocity(), Edm(), Edm(sigma_data=1.7)]  # also at alpha = 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("parameterization", [Eps(), *FINITE], ids=repr)
def test_its_target_gives_x0(parameterization: Parameterization, schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 99, dtype=torch.float64, generator=generator)
    times = torch.linspace(0, 0.98 if isinstance(parameterization, Eps) else 1, 99, dtype=torch.float64)
    alpha, sigma = schedule(times)
    skip, out, _ = parameterization(alpha, sigma)
    x0_hat = skip * (alpha * x0 + sigma * noise) + out * parameterization.target(x0, noise, alpha, sigma)
    torch.testing.assert_close(x0_hat, x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parameterization", FINITE, ids=repr)
def test_pure_noise_and_pure_data_are_no_special_cases(parameterization: Parameterization) -> None:
    alpha, sigma = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    x0, noise = torch.tensor([0.7, 0.7]), torch.tensor([-2.0, -2.0])
    skip, out, _ = parameterization(alpha, sigma)
    x0_hat = skip * (alpha * x0 + sigma * noise) + out * parameterization.target(x0, noise, alpha, sigma)
    torch.testing.assert_close(x0_hat, x0)


def test_eps_is_undefined_without_signal() -> None:
    with pytest.raises(ValueError, match="alpha = 0"):
        Eps()(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V(), Velocity()], ids=repr)
def test_the_network_sees_unit_variance(parameterization: Parameterization) -> None:
    alpha, sigma = Flow()(torch.linspace(0, 0.9, 10, dtype=torch.float64))
    variance = parameterization(alpha, sigma).into ** 2 * (alpha**2 + sigma**2)  # of data and noise of unit variance
    torch.testing.assert_close(variance, torch.ones_like(alpha))


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=repr)
def test_v_is_the_derivative_in_the_angle(schedule: Schedule) -> None:
    x0, noise = 0.3, -1.2
    alpha, sigma = schedule(torch.tensor(0.4, dtype=torch.float64))
    phi, h = angle(alpha, sigma).item(), 1e-5
    state = [math.cos(phi + d) * x0 + math.sin(phi + d) * noise for d in (h, -h)]
    v = V().target(torch.tensor(x0), torch.tensor(noise), alpha, sigma)
    assert v.item() == pytest.approx((state[0] - state[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("schedule", [Cosine(), Flow(), Karras()], ids=repr)
def test_edm_sees_and_says_unit_variance(schedule: Schedule) -> None:
    """For data of its standard deviation; the target's two parts have squares that sum to 1."""
    d, one, zero = 0.4, torch.ones(9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    alpha, sigma = schedule(torch.linspace(0, 1, 9, dtype=torch.float64))
    edm = Edm(sigma_data=d)
    torch.testing.assert_close(edm(alpha, sigma).into ** 2 * (alpha**2 * d**2 + sigma**2), one)
    of_data, of_noise = edm.target(d * one, zero, alpha, sigma), edm.target(zero, one, alpha, sigma)
    torch.testing.assert_close(of_data**2 + of_noise**2, one)


def test_edm_is_the_published_preconditioning_where_alpha_is_1() -> None:
    d, sigma = 0.5, torch.logspace(-3, 2, 21, dtype=torch.float64)
    skip, out, into = Edm(sigma_data=d)(torch.ones_like(sigma), sigma)
    torch.testing.assert_close(skip, d**2 / (sigma**2 + d**2))
    torch.testing.assert_close(out, sigma * d / (sigma**2 + d**2).sqrt())
    torch.testing.assert_close(into, 1 / (sigma**2 + d**2).sqrt())


@pytest.mark.parametrize("schedule", [Cosine(), Linear(zero_terminal=True), Sigmoid()], ids=repr)
def test_edm_of_unit_data_is_minus_v_where_variance_is_preserved(schedule: Schedule) -> None:
    alpha, sigma = schedule(torch.linspace(0, 1, 33, dtype=torch.float64))
    x0, noise = torch.randn(2, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edm, v = Edm(sigma_data=1.0), V()
    torch.testing.assert_close(edm.target(x0, noise, alpha, sigma), -v.target(x0, noise, alpha, sigma))
    (skip, out, into), other = edm(alpha, sigma), v(alpha, sigma)
    torch.testing.assert_close((skip, -out, into), tuple(other))


def test_velocity_is_the_derivative_in_time_on_flow() -> None:
    x0, noise, t = torch.tensor(0.3), torch.tensor(-1.2), torch.tensor(0.4, dtype=torch.float64)
    here, there = (alpha * x0 + sigma * noise for alpha, sigma in map(Flow(), (t - 0.1, t + 0.1)))
    torch.testing.assert_close((there - here) / 0.2, Velocity().target(x0, noise, *Flow()(t)).double())


def test_velocity_elsewhere_is_that_of_the_flow_state_at_equal_log_snr() -> None:
    alpha, sigma = Cosine()(torch.tensor([0.2, 0.7], dtype=torch.float64))
    flow = Flow()(sigma / (alpha + sigma))
    skip, out, _ = Velocity()(alpha, sigma)
    expected = Velocity()(*flow)
    torch.testing.assert_close((skip * (alpha + sigma), out), (expected.skip, expected.out))

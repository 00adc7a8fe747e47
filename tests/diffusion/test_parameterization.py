"""Every parameterization says the same: hand it its own target and x0 comes back."""

import math

import pytest
import torch

from diffusion.parameterization import X0, Eps, Parameterization, V
from diffusion.schedule import Cosine, Flow, Linear, Quadratic, Schedule, angle

SCHEDULES = [Cosine(), Cosine(shift=2.0), Linear(), Quadratic(), Flow(), Flow(shift=3.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=repr)
def test_its_target_gives_x0(parameterization: Parameterization, schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 99, dtype=torch.float64, generator=generator)
    alpha, sigma = schedule(torch.linspace(0, 0.98, 99, dtype=torch.float64))
    skip, out, _ = parameterization(alpha, sigma)
    x0_hat = skip * (alpha * x0 + sigma * noise) + out * parameterization.target(x0, noise, alpha, sigma)
    torch.testing.assert_close(x0_hat, x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parameterization", [X0(), V()], ids=repr)
def test_pure_noise_and_pure_data_are_no_special_cases(parameterization: Parameterization) -> None:
    alpha, sigma = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    x0, noise = torch.tensor([0.7, 0.7]), torch.tensor([-2.0, -2.0])
    skip, out, _ = parameterization(alpha, sigma)
    x0_hat = skip * (alpha * x0 + sigma * noise) + out * parameterization.target(x0, noise, alpha, sigma)
    torch.testing.assert_close(x0_hat, x0)


def test_eps_is_undefined_without_signal() -> None:
    with pytest.raises(ValueError, match="alpha = 0"):
        Eps()(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=repr)
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

"""Densities against Gaussian data, whose density is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.likelihood import BIN, bits_per_dimension, log_density
from diffusion.schedule import Cosine, Flow, Linear, Quadratic, Schedule

MEAN = torch.tensor([0.3, -0.4, 0.1, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
STD = torch.tensor([0.2, 0.6, 1.0, 1.7], dtype=torch.float64).view(1, 1, 2, 2)
X0 = MEAN + STD * torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def walk(schedule: Schedule, n: int) -> Tensor:
    """From t = 1 through log-SNRs equally spaced, to 14."""
    inside = schedule.t_of(torch.linspace(-12, 14, n, dtype=torch.float64))
    return torch.cat([torch.ones(1, dtype=torch.float64), inside[(inside < 1) & (inside > 0)]])


def in_bits(nats: Tensor) -> Tensor:
    return -nats / (4 * math.log(2))


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Flow()], ids=lambda schedule: schedule.kind)
def test_bits_of_gaussian_data(schedule: Schedule, gaussian: type) -> None:
    """Also on flow, whose walk ends at alpha = 0."""
    data = gaussian(MEAN, STD, schedule)
    expected = torch.distributions.Normal(MEAN, STD).log_prob(X0).flatten(1).sum(1)
    found = log_density(data.denoise, X0, walk(schedule, 300), schedule)
    torch.testing.assert_close(in_bits(found), in_bits(expected), rtol=0, atol=1e-3)


def test_it_converges_with_second_order(gaussian: type) -> None:
    """Towards the density of data with the noise of the last time, which is known as well."""
    schedule = Flow()
    data, errors = gaussian(MEAN, STD, schedule), []
    alpha, sigma = schedule(walk(schedule, 2)[-1])
    noised = torch.distributions.Normal(MEAN, (STD**2 + (sigma / alpha) ** 2).sqrt())
    expected = noised.log_prob(X0).flatten(1).sum(1)
    for n in (100, 400):
        found = log_density(data.denoise, X0, walk(schedule, n), schedule)
        errors.append((found - expected).abs().max().item())
    assert errors[1] < errors[0] / 8


def test_one_step_to_alpha_0_by_hand() -> None:
    """From (0.5, 0.5) to (0, 1) with x0_hat = c x: the trapezium of sigma c d over rho from 1 to 0, and Heun's step."""
    c, times = 0.8, torch.tensor([1.0, 0.5], dtype=torch.float64)
    (found,) = log_density(lambda x, t: c * x, X0[:1], times, Flow()).tolist()
    end = (2 - c * (3 - c) / 2) * 0.5 * X0[0]
    expected = -(0.5 + 1) / 2 * c * 4 - end.square().sum().item() / 2 - 2 * math.log(2 * math.pi)
    assert found == pytest.approx(expected, rel=1e-12)


def test_one_step_by_hand() -> None:
    """From (0.5, 0.5) to (0.2, 0.8): the trapezium of alpha c d over log rho from log 1 to log 0.25."""
    c, times = 0.8, torch.tensor([0.8, 0.5], dtype=torch.float64)
    (found,) = log_density(lambda x, t: c * x, X0[:1], times, Flow()).tolist()
    x = 0.5 * X0[0]
    trial = 1.6 * x + (0.2 - 0.8) * c * x
    end = 1.6 * x + (0.2 - 0.8) * (c * x + c * trial) / 2
    expected = -math.log(4) * (0.5 + 0.2) / 2 * c * 4 - (end / 0.8).square().sum().item() / 2
    assert found == pytest.approx(expected - 2 * math.log(2 * math.pi), rel=1e-12)


def test_probes_estimate_the_exact_trace_without_bias() -> None:
    """With a denoiser whose Jacobian is no diagonal matrix, over 200 draws, within 4 standard errors."""
    schedule, times = Linear(), walk(Linear(), 12)
    generator = torch.Generator().manual_seed(1)
    mix = 0.2 * torch.randn(4, 4, generator=generator, dtype=torch.float64) + 0.5 * torch.eye(4, dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return (x.flatten(1) @ mix).tanh().view_as(x)

    exact = log_density(denoise, X0[:1], times, schedule)
    many = X0[:1].expand(200, -1, -1, -1)
    probes = torch.randn(1, 200, 1, 2, 2, generator=generator, dtype=torch.float64)
    drawn = log_density(denoise, many, times, schedule, probes)
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(200)
    signs = probes[:, :1].sign().expand(5, -1, -1, -1, -1)
    one = log_density(denoise, X0[:1], times, schedule, signs[:1])
    torch.testing.assert_close(log_density(denoise, X0[:1], times, schedule, signs), one)


def test_bits_of_8_bit_images(gaussian: type) -> None:
    """The mass of a bin under a wide Gaussian is its density times its width."""
    schedule = Linear()
    data = gaussian(0.1, 0.5, schedule)
    levels = torch.tensor([[0, 255, 128], [100, 3, 77]], dtype=torch.float64).view(2, 1, 1, 3)
    images = levels / 127.5 - 1
    found = bits_per_dimension(data.denoise, images, walk(schedule, 300), schedule, torch.full_like(images, 0.5))
    normal = torch.distributions.Normal(torch.tensor(0.1).double(), torch.tensor(0.5).double())
    mass = normal.cdf(images + BIN / 2) - normal.cdf(images - BIN / 2)
    torch.testing.assert_close(found, -mass.log2().flatten(1).mean(1), rtol=0, atol=1e-3)


def test_the_draw_within_a_bin_moves_the_image_by_at_most_half_of_it() -> None:
    seen: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.detach())
        return 0 * x

    images, uniform = torch.zeros(1, 1, 1, 2) + 1 / 255, torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    times = torch.tensor([1.0, 0.5], dtype=torch.float64)
    bits_per_dimension(denoise, images, times, Flow(), uniform)
    torch.testing.assert_close(seen[0] / 0.5 - images, torch.tensor([-0.5, 0.5]).view(1, 1, 1, 2) * BIN)


@pytest.mark.parametrize(
    ("images", "times", "cause"),
    [
        (torch.full((1, 1, 1, 1), 0.3), [1.0, 0.1], "256 levels"),
        (torch.full((1, 1, 1, 1), 1 + 2 / 255), [1.0, 0.1], "256 levels"),
        (torch.ones(1, 1, 1, 1), [1.0, 0.0], "singular at sigma = 0"),
        (torch.ones(1, 1, 1, 1), [0.1, 1.0], "strictly decrease"),
    ],
)
def test_what_cannot_be_is_refused(images: Tensor, times: list[float], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        bits_per_dimension(lambda x, t: x, images, torch.tensor(times), Quadratic(), torch.zeros_like(images))


def test_no_gradient_is_left_behind(gaussian: type) -> None:
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    data: Any = gaussian(MEAN, STD, Linear())
    found = log_density(lambda x, t: weight * data.denoise(x, t), X0, walk(Linear(), 3), Linear())
    assert not found.requires_grad
    assert weight.grad is None

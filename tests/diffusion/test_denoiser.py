"""A denoiser is a network, a schedule and a parameterization, each of which can be exchanged."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.condition import Cond
from diffusion.denoiser import Denoiser, per_image
from diffusion.parameterization import X0, Edm, Eps, Parameterization, V, Velocity
from diffusion.schedule import Cosine, Flow, Karras, Linear, Schedule, angle, logsnr

COND = Cond(torch.zeros(4, 1, 1), torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1))


class Oracle(nn.Module):
    """Knows how Gaussian data N(mean, std^2) is denoised, from the angle alone; says so in one parameterization."""

    def __init__(self, mean: float, std: float, parameterization: Parameterization) -> None:
        super().__init__()
        self.mean, self.std, self.parameterization = mean, std, parameterization

    def forward(self, x: Tensor, angle: Tensor, cond: Cond) -> Tensor:
        alpha, sigma = angle.cos(), angle.sin()
        x = x / per_image(self.parameterization(alpha, sigma).into)  # x_t of the variance-preserving schedule
        alpha, sigma = per_image(alpha), per_image(sigma)
        x0_hat = self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * self.mean)
        return self.parameterization.target(x0_hat, (x - alpha * x0_hat) / sigma, alpha, sigma)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Flow(), Flow(shift=3.0), Karras()], ids=repr)
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V(), Velocity(), Edm()], ids=repr)
def test_one_network_denoises_on_any_schedule(
    parameterization: Parameterization, schedule: Schedule, gaussian: type
) -> None:
    """The network knows nothing of the schedule, so the conditional mean comes out right on each of them."""
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    x_t = torch.randn(4, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0_hat = Denoiser(Oracle(0.3, 0.5, parameterization), schedule, parameterization)(x_t, t, COND)
    torch.testing.assert_close(x0_hat, gaussian(0.3, 0.5, schedule).denoise(x_t, t), rtol=1e-9, atol=1e-9)


def test_the_network_is_told_the_same_at_equal_log_snr() -> None:
    heard: list[tuple[Tensor, Tensor]] = []

    class Listener(nn.Module):
        def forward(self, x: Tensor, angle: Tensor, cond: Cond) -> Tensor:
            heard.append((x, angle))
            return x

    x0, noise = torch.randn(2, 4, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    for schedule in (Cosine(), Flow()):
        at = schedule.t_of(logsnr(*Cosine()(t)))
        alpha, sigma = schedule(at)
        Denoiser(Listener(), schedule, V())(per_image(alpha) * x0 + per_image(sigma) * noise, at, COND)
    torch.testing.assert_close(heard[0], heard[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(heard[0][1], angle(*Cosine()(t)))


def test_a_network_in_low_precision_answers_in_the_type_of_the_state() -> None:
    class Low(nn.Module):
        def forward(self, x: Tensor, angle: Tensor, cond: Cond) -> Tensor:
            return x.bfloat16()

    output, _ = Denoiser(Low(), Cosine(), V()).predict(torch.ones(4, 3, 2, 5), torch.full((4,), 0.5), COND)
    assert output.dtype == torch.float32

"""The loss and where in time its samples lie."""

import math

import pytest
import torch

from diffusion.denoiser import per_image
from diffusion.loss import AnyTimes, LogitNormalTimes, UniformTimes, add_noise, square_error
from diffusion.schedule import Cosine, Flow, Schedule

U = (torch.arange(100_000) + 0.5) / 100_000


def test_uniform_times_are_uniform_and_never_data() -> None:
    t = UniformTimes()(U)
    torch.testing.assert_close(t.sort().values, U)
    assert UniformTimes()(torch.tensor([0.0, 1 - 2**-24])).tolist() == [1.0, 2**-24]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.4)])
def test_logit_normal_times_have_a_normal_logit(mean: float, std: float) -> None:
    times = LogitNormalTimes(mean=mean, std=std)
    logit = torch.logit(times(U.double()))
    assert logit.mean().item() == pytest.approx(mean, abs=1e-3)
    assert logit.std().item() == pytest.approx(std, rel=1e-3)
    assert logit.median().item() == pytest.approx(mean, abs=1e-3)
    ends = times(torch.tensor([0.0, 1 - 2**-24]))
    assert 0 < ends[0] < ends[1] < 1


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=repr)
@pytest.mark.parametrize("times", [UniformTimes(), LogitNormalTimes()], ids=repr)
def test_a_state_is_alpha_x0_plus_sigma_noise(schedule: Schedule, times: AnyTimes) -> None:
    x0 = torch.full((4, 3, 2, 5), 0.5, dtype=torch.float64)
    noised = add_noise(x0, [9, 2, 5, 7], 0, schedule, times)
    alpha, sigma = schedule(noised.t)
    torch.testing.assert_close((noised.alpha, noised.sigma), (alpha, sigma))
    torch.testing.assert_close(noised.x_t, per_image(alpha) * x0 + per_image(sigma) * noised.noise)
    assert noised.x_t.dtype == torch.float64


def test_time_and_noise_belong_to_the_slot() -> None:
    def draw(slots: list[int], seed: int = 0) -> list[torch.Tensor]:
        return list(add_noise(torch.zeros(len(slots), 3, 2, 5), slots, seed, Cosine(), UniformTimes()))

    together = draw([4, 8, 15, 16])
    assert all(torch.equal(part[2:3], alone) for part, alone in zip(together, draw([15]), strict=True))
    assert all(torch.equal(part.flip(0), turned) for part, turned in zip(together, draw([16, 15, 8, 4]), strict=True))
    assert len(set(together[2].tolist())) == 4
    assert not any(torch.equal(part, other) for part, other in zip(together, draw([4, 8, 15, 16], seed=1), strict=True))


def test_square_error_is_one_mean_per_sample() -> None:
    output, target = torch.zeros(2, 3, 2, 5), torch.zeros(2, 3, 2, 5)
    output[1] = 2
    output[1, 0, 0, 0] = math.sqrt(34)  # 29 squares of 4, and one of 34
    torch.testing.assert_close(square_error(output, target), torch.tensor([0.0, 5.0]))

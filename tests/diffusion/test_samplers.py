"""Samplers against closed forms: on Gaussian data the exact denoiser, the flow map and every moment are known."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.samplers import NoiseLike, ddim, ddpm, uniform_times
from diffusion.schedule import Cosine, Flow, Linear, Quadratic, Schedule

SCHEDULES = [Cosine(), Linear(), Quadratic(), Flow()]
DATA = [(0.0, 0.1), (0.7, 0.5), (-0.4, 1.0), (0.3, 2.0)]  # mean, std

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
every_data = pytest.mark.parametrize(("mean", "std"), DATA)


def column(*values: float) -> Tensor:
    """One-pixel images."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


class Impulses:
    """Draws 1 for row 2 + k at the k-th call and 0 elsewhere: what is linear in the noise is laid open."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, like: Tensor) -> Tensor:
        drawn = torch.zeros_like(like)
        drawn[2 + self.calls] = 1
        self.calls += 1
        return drawn


class Streams:
    """Draws ordinary noise from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class Affine:
    """A chain that is affine in its start and in its noise, seen through impulses: the exact moments of its end."""

    def __init__(self, steps: int) -> None:
        self.start = column(0, 1, *[0] * steps)

    def moments(self, end: Tensor, sigma: float) -> tuple[float, float]:
        """Mean and variance of a chain that starts from sigma times a standard normal."""
        origin, unit, *kicks = end.flatten().tolist()
        return origin, ((unit - origin) * sigma) ** 2 + sum((kick - origin) ** 2 for kick in kicks)


# --- DDIM


@every_schedule
@every_data
def test_ddim_converges_to_the_flow_map_with_first_order(
    schedule: Schedule, mean: float, std: float, gaussian: type
) -> None:
    data, x = gaussian(mean, std, schedule), column(-2, -0.3, 1, 2.5)
    errors = []
    for steps in (64, 128, 256):
        times = uniform_times(steps)
        end = ddim(data.denoise, x, times, schedule)
        errors.append((end - data.flow(x, times[0], times[-1])).norm().item())
    assert errors[-1] < 0.25 * std
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.4


def test_one_ddim_step_by_hand() -> None:
    """From (alpha, sigma) = (0.6, 0.8) to (0.8, 0.6): x0_hat = 0.5, so eps_hat = (x - 0.3) / 0.8."""

    class Two:
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.where(t > 0.5, 0.6, 0.8).double(), torch.where(t > 0.5, 0.8, 0.6).double()

        def t_of(self, logsnr: Tensor) -> Tensor:
            raise NotImplementedError

    end = ddim(lambda x, t: torch.full_like(x, 0.5), column(1.1), torch.tensor([1.0, 0.0]), Two())
    torch.testing.assert_close(end, column(0.8 * 0.5 + 0.6 * (1.1 - 0.3) / 0.8))


@every_schedule
def test_a_perfect_denoiser_needs_one_step(schedule: Schedule) -> None:
    x0 = column(0.3, -0.8)
    for times in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.93, 0.4, 0.0])):
        torch.testing.assert_close(ddim(lambda x, t: x0, column(1, 2), times, schedule), x0, rtol=0, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("steps", [1, 3, 7, 999, 1700])
def test_any_number_of_steps_goes_all_the_way(schedule: Schedule, steps: int) -> None:
    """Fewer steps skip levels; none starts in the middle and none stops early."""
    visited: list[float] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        visited.append(t[0].item())
        return torch.full_like(x, 0.4)

    end = ddim(denoise, column(1, 2), uniform_times(steps), schedule)
    assert (len(visited), visited[0]) == (steps, 1)
    torch.testing.assert_close(end, column(0.4, 0.4), rtol=0, atol=1e-12)


def test_a_walk_can_be_cut_in_two() -> None:
    schedule, x = Linear(), column(0.5, -1)
    denoise, times = (lambda x, t: 0.9 * x), uniform_times(10)
    half = ddim(denoise, x, times[:5], schedule)
    assert torch.equal(ddim(denoise, half, times[4:], schedule), ddim(denoise, x, times, schedule))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_type_and_the_denoiser_hears_one_time_per_image(dtype: torch.dtype) -> None:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (3,)
        assert x.dtype == t.dtype == dtype
        return x

    x = torch.ones(3, 2, 5, 7, dtype=dtype)
    assert ddim(denoise, x, uniform_times(2), Cosine(), eta=1, noise=Streams()).dtype == dtype
    assert ddpm(denoise, x, uniform_times(2), Cosine(), noise=Streams()).dtype == dtype


# --- fresh noise


class Level(NamedTuple):
    alpha: float
    sigma: float


# Two levels -> factors of x0_hat and of x, and the variance of the new noise.
Rule = Callable[[Level, Level], tuple[float, float, float]]


def ho(upper: bool) -> Rule:
    """Ho et al., eq. 7, for any two levels: the posterior q(x' | x, x0), with its variance or the noising step's."""

    def rule(now: Level, to: Level) -> tuple[float, float, float]:
        a = now.alpha / to.alpha
        beta = now.sigma**2 - a**2 * to.sigma**2
        new = beta * (to.sigma > 0) if upper else beta * to.sigma**2 / now.sigma**2
        return to.alpha * beta / now.sigma**2, a * to.sigma**2 / now.sigma**2, new

    return rule


def song(eta: float) -> Rule:
    """Song et al., eq. 12 and 16: x0_hat and the direction that points to x, with a share of the noise drawn anew."""

    def rule(now: Level, to: Level) -> tuple[float, float, float]:
        new = (eta * to.sigma / now.sigma) ** 2 * (1 - now.alpha**2 / to.alpha**2)
        on_eps = max(to.sigma**2 - new, 0) ** 0.5
        return to.alpha - on_eps * now.alpha / now.sigma, on_eps / now.sigma, new

    return rule


def exact_moments(rule: Rule, data: Any, times: Tensor) -> list[float]:
    """Mean and variance at the end of a chain that starts from sigma times a standard normal."""
    levels = [Level(*level) for level in zip(*(each.tolist() for each in data.schedule(times)), strict=True)]
    mean, variance = 0.0, levels[0].sigma ** 2
    for t, (now, to) in zip(times, pairwise(levels), strict=False):
        origin, one = data.denoise(column(0, 1), t.expand(2)).flatten().tolist()
        on_x0, on_x, new = rule(now, to)
        gain = on_x0 * (one - origin) + on_x
        mean, variance = on_x0 * origin + gain * mean, gain**2 * variance + new
    return [mean, variance]


@every_schedule
@every_data
@pytest.mark.parametrize("variance", ["upper", "lower"])
def test_ddpm_has_the_moments_of_the_exact_chain(
    schedule: Schedule, mean: float, std: float, variance: Literal["upper", "lower"], gaussian: type
) -> None:
    data, times, chain = gaussian(mean, std, schedule), uniform_times(12), Affine(12)
    end = ddpm(data.denoise, chain.start, times, schedule, noise=Impulses(), variance=variance)
    expected = exact_moments(ho(variance == "upper"), data, times)
    np.testing.assert_allclose(chain.moments(end, schedule(times)[1][0].item()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Quadratic()], ids=lambda schedule: schedule.kind)
@every_data
@pytest.mark.parametrize("eta", [0, 0.5, 1])
def test_ddim_has_the_moments_of_the_exact_chain(
    schedule: Schedule, mean: float, std: float, eta: float, gaussian: type
) -> None:
    data, times, chain = gaussian(mean, std, schedule), uniform_times(12), Affine(12)
    end = ddim(data.denoise, chain.start, times, schedule, eta=eta, noise=Impulses())
    expected = exact_moments(song(eta), data, times)
    np.testing.assert_allclose(chain.moments(end, schedule(times)[1][0].item()), expected, rtol=1e-9, atol=1e-12)


@every_data
def test_at_100_steps_the_posterior_variance_is_too_narrow(mean: float, std: float, gaussian: type) -> None:
    """A property of the method, not a fault of the code: it vanishes as steps are added."""
    widths = {}
    for steps in (100, 1000):
        chain, times = Affine(steps), uniform_times(steps)
        end = ddpm(
            gaussian(mean, std, Linear()).denoise, chain.start, times, Linear(), noise=Impulses(), variance="lower"
        )
        widths[steps] = chain.moments(end, 1)[1] ** 0.5 / std
    assert widths[100] < widths[1000] < 1
    assert widths[1000] > 0.95


def test_each_step_of_the_full_table_is_ho_et_al_word_by_word() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    x, x0_hat = 0.8, 0.3
    for n in (2, 10, 500, 1000):  # their t, counted from 1
        now, before, beta = alpha_bar[n - 1], alpha_bar[n - 2], betas[n - 1]
        mean = np.sqrt(before) * beta / (1 - now) * x0_hat + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        times = torch.tensor([n / 1000, (n - 1) / 1000], dtype=torch.float64)
        for variance, std in (("upper", np.sqrt(beta)), ("lower", np.sqrt((1 - before) / (1 - now) * beta))):
            end = ddpm(
                lambda x, t: torch.full_like(x, x0_hat),
                column(x, x, x),
                times,
                Linear(),
                noise=Impulses(),
                variance=variance,
            )
            np.testing.assert_allclose(end.flatten(), [mean, mean, mean + std], rtol=1e-9)


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_step_adds_no_noise(schedule: Schedule, eta: float) -> None:
    """The picture is x0_hat itself, for a walk that ends at data."""
    x0, times = column(0.3, -0.8), uniform_times(5)
    ends = [
        ddpm(lambda x, t: x0, column(1, 2), times, schedule, noise=Streams(), variance="upper"),
        ddpm(lambda x, t: x0, column(1, 2), times, schedule, noise=Streams(), variance="lower"),
        ddim(lambda x, t: x0, column(1, 2), times, schedule, eta=eta, noise=Streams()),
    ]
    for end in ends:
        torch.testing.assert_close(end, x0, rtol=0, atol=1e-12)


@every_schedule
def test_eta_0_is_bit_equal_to_no_noise_and_eta_1_is_lower_ddpm(schedule: Schedule, gaussian: type) -> None:
    denoise, x, times = gaussian(0.3, 0.5, schedule).denoise, column(-2, 0.1, 1), uniform_times(9)
    assert torch.equal(ddim(denoise, x, times, schedule, eta=0, noise=Streams()), ddim(denoise, x, times, schedule))
    ancestral = ddpm(denoise, x, times, schedule, noise=Streams(), variance="lower")
    torch.testing.assert_close(ddim(denoise, x, times, schedule, eta=1, noise=Streams()), ancestral, rtol=0, atol=1e-12)


# --- refusals


@pytest.mark.parametrize(
    "times", [[0.5], [0.0, 1.0], [1.0, 0.5, 0.5], [1.1, 0.0], [1.0, -0.1], [1.0, float("nan"), 0.0]], ids=str
)
@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_times_must_decrease_within_0_and_1(sampler, times: list[float]) -> None:
    with pytest.raises(ValueError, match="strictly decrease"):
        sampler(lambda x, t: x, column(1), torch.tensor(times), Cosine(), noise=Streams())


@pytest.mark.parametrize(
    ("eta", "noise", "cause"),
    [(1.5, Streams(), "eta must lie"), (-0.1, Streams(), "eta must lie"), (0.5, None, "pass noise")],
)
def test_eta_is_a_share_that_needs_noise(eta: float, noise: NoiseLike | None, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        ddim(lambda x, t: x, column(1), uniform_times(2), Cosine(), eta=eta, noise=noise)

"""The optimal reverse variance: on Gaussian data it makes every ancestral chain exact, which no fixed variance does."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.levels import logsnr
from diffusion.optimal_variance import LIMITS, OptimalVariance, measure
from diffusion.samplers import ddpm, uniform_times
from diffusion.samplers.steps import Step, steps_of
from diffusion.schedule import AnySchedule, Cosine, Flow, Karras, Linear, LogLinear, Quadratic, Schedule
from lab.data.loader import Batch
from lab.randomness import normal, uniform
from lab.runtime import Runtime
from vae.codec import Pixels

SCHEDULES: list[AnySchedule] = [Cosine(), Linear(zero_terminal=True), Quadratic(), Flow(shift=2.0), Karras()]
DATA = [(0.0, 0.1), (0.7, 0.5), (0.3, 2.0)]  # mean, std

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
every_data = pytest.mark.parametrize(("mean", "std"), DATA)


def exact(std: float) -> OptimalVariance:
    """What a measurement finds on Gaussian data with the exact denoiser: 1 / error = snr + 1 / variance."""
    levels = (-6.0, 1.0, 5.0)
    return OptimalVariance(
        logsnr=levels, error=tuple(1 / (math.exp(level) + std**-2) for level in levels), variance=std**2
    )


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def moments(data, times: Tensor, schedule: Schedule, variance) -> tuple[float, float]:
    """Mean and variance of the end of a chain that starts from the data's own distribution at its first time.

    The chain is affine in its start and its noise: row 0 has neither, row 1 starts at 1, and row 2 + k hears 1 at the
    k-th drawing of noise.
    """
    calls = iter(range(len(times)))

    def impulse(like: Tensor) -> Tensor:
        drawn = torch.zeros_like(like)
        drawn[2 + next(calls)] = 1
        return drawn

    start = column(0, 1, *[0] * (len(times) - 1))
    end = ddpm(data.denoise, start, times, schedule, noise=impulse, variance=variance).flatten().tolist()
    origin, unit, *kicks = (end[0], end[1] - end[0], *(value - end[0] for value in end[2:]))
    alpha, _ = schedule(times[:1])
    mean = origin + unit * alpha.item() * data.mean
    return mean, (unit * data.spread(times[:1]).item()) ** 2 + sum(kick**2 for kick in kicks)


@every_schedule
@every_data
@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
def test_the_chain_is_exact_on_gaussian_data_at_any_number_of_steps(
    schedule: Schedule, mean: float, std: float, num_steps: int, gaussian: type
) -> None:
    data, times = gaussian(mean, std, schedule), torch.linspace(1, 0.1, num_steps + 1, dtype=torch.float64)
    alpha, _ = schedule(times[-1:])
    expected = (alpha.item() * mean, data.spread(times[-1:]).item() ** 2)
    np.testing.assert_allclose(moments(data, times, schedule, exact(std)), expected, rtol=1e-8, atol=1e-12)


@every_schedule
@every_data
def test_the_fixed_variances_are_not_exact_and_enclose_it(
    schedule: Schedule, mean: float, std: float, gaussian: type
) -> None:
    """The upper one is the data of unit variance's own on schedules that preserve variance, so wider data exceed it."""
    data, times = gaussian(mean, std, schedule), torch.linspace(1, 0.1, 6, dtype=torch.float64)
    truth = data.spread(times[-1:]).item() ** 2
    lower, upper = (moments(data, times, schedule, variance)[1] for variance in ("lower", "upper"))
    assert lower < 0.99 * truth
    assert abs(upper / truth - 1) > 0.01


@every_schedule
@every_data
def test_it_is_the_variance_of_the_state_before_given_the_state(
    schedule: Schedule, mean: float, std: float, gaussian: type
) -> None:
    """By Bayes: precisions add, that of the state before and that with which the state after tells of it."""
    data = gaussian(mean, std, schedule)
    for step in steps_of(torch.linspace(1, 0.05, 8, dtype=torch.float64), schedule):
        tells = (step.alpha / step.alpha_to) ** 2 / step.added**2
        expected = 1 / (1 / data.spread(step.t_to.view(1)).item() ** 2 + tells)
        assert exact(std)(step) ** 2 == pytest.approx(expected, rel=1e-9)


@every_data
def test_it_is_the_published_formula_word_by_word(mean: float, std: float) -> None:
    """Bao et al., eq. 8 with lambda^2 = DDPM's posterior variance, from the norm of the exact predicted noise."""
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    for now, before in ((1000, 999), (1000, 700), (500, 499), (300, 20)):
        a, b = alpha_bar[now - 1], alpha_bar[before - 1]
        ratio = a / b  # their alpha_n, over several entries of the table
        lower = (1 - b) / (1 - a) * (1 - ratio)
        gamma = (1 - a) / (a * std**2 + 1 - a)  # E eps_hat^2: eps_hat = sigma (x - alpha mean) / variance of x
        expected = lower + (np.sqrt((1 - a) / ratio) - np.sqrt(1 - b - lower)) ** 2 * (1 - gamma)
        (step,) = steps_of(torch.tensor([now / 1000, before / 1000], dtype=torch.float64), Linear())
        assert exact(std)(step) ** 2 == pytest.approx(expected, rel=1e-9)


@every_data
def test_a_walk_to_data_ends_in_the_conditional_mean(mean: float, std: float, gaussian: type) -> None:
    """Its last step adds nothing, so what the denoiser cannot know at its beginning is missing, and nothing else."""
    data, times = gaussian(mean, std, Cosine()), uniform_times(6)
    found = moments(data, times, Cosine(), exact(std))
    (step,) = steps_of(times[-2:], Cosine())
    missing = 1 / ((step.alpha / step.sigma) ** 2 + std**-2)
    np.testing.assert_allclose(found, (mean, std**2 - missing), rtol=1e-8, atol=1e-12)


@every_schedule
def test_errors_stay_between_nothing_and_those_of_the_best_linear_denoiser(schedule: Schedule) -> None:
    """So the variance lies between the posterior's and both upper bounds of the paper."""

    def claimed(error: float) -> Callable[[Step], float]:
        return OptimalVariance(logsnr=(-5.0, 5.0), error=(error, error), variance=0.25)

    for step in steps_of(torch.linspace(1, 0.05, 8, dtype=torch.float64), schedule):
        assert claimed(0)(step) == step.posterior
        assert claimed(100)(step) == pytest.approx(exact(0.5)(step), rel=1e-12)
        on_x0 = step.alpha_to * (1 - step.shrink**2)
        bounds = [0.25 * on_x0**2, (on_x0 * step.ratio) ** 2]
        assert claimed(100)(step) ** 2 - step.posterior**2 <= min(bounds) * (1 + 1e-9)


def test_between_levels_the_share_of_the_linear_error_is_interpolated_and_beyond_them_held() -> None:
    linear = [1 / (math.exp(level) + 4) for level in (-2.0, 2.0)]
    made = OptimalVariance(logsnr=(-2.0, 2.0), error=(0.8 * linear[0], 0.4 * linear[1]), variance=0.25)
    for level, share in ((-9.0, 0.8), (-2.0, 0.8), (0.0, 0.6), (1.0, 0.5), (2.0, 0.4), (7.0, 0.4)):
        t = Cosine().t_of(torch.tensor([level], dtype=torch.float64))
        (step,) = steps_of(torch.cat([t, t / 2]), Cosine())
        on_x0 = step.alpha_to * (1 - step.shrink**2)
        expected = step.posterior**2 + on_x0**2 * share / (math.exp(level) + 4)
        assert made(step) ** 2 == pytest.approx(expected, rel=1e-9)


# --- measuring


class Exact:
    """Stands in for a model: an exact denoiser, which hears what it is told and needs no words."""

    def __init__(self, schedule: Schedule, denoise: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.schedule, self.denoise, self.captions = schedule, denoise, []
        self.denoiser = self

    def encode(self, captions: tuple[str, ...]) -> tuple[str, ...]:
        self.captions += captions
        return captions

    def __call__(self, x_t: Tensor, t: Tensor, cond: tuple[str, ...]) -> Tensor:
        assert len(cond) == len(x_t) == len(t)
        return self.denoise(x_t, t)


def batches(values: Tensor) -> list[Batch]:
    """Three batches, of different sizes, of (n, 3, h, w) images."""
    slots, words = tuple(range(len(values))), tuple(f"word {k}" for k in range(len(values)))
    parts = pairwise((0, 5, 25, len(values)))
    return [Batch(values[i:j], words[i:j], slots[i:j], words[i:j], seed=0) for i, j in parts]


def found(model: Exact, values: Tensor) -> OptimalVariance:
    return measure(model, Pixels(), Runtime(torch.device("cpu")), batches(values))


@pytest.mark.parametrize("schedule", [*SCHEDULES, LogLinear(high=5.0, low=-5.5)], ids=lambda schedule: schedule.kind)
def test_what_is_measured_of_gaussian_data_is_its_closed_form(schedule: Schedule, gaussian: type) -> None:
    values = 0.5 * normal(3, "values", range(60), (3, 8, 8)).double() + 0.2
    made = found(model := Exact(schedule, gaussian(0.2, 0.5, schedule).denoise), values)
    assert model.captions == [f"word {k}" for k in range(60)]
    assert made.variance == pytest.approx(0.25, rel=0.03)
    linear = 1 / (np.exp(made.logsnr) + 4)
    np.testing.assert_allclose(made.error, linear, rtol=0.05)
    noisiest, finest = logsnr(*schedule(torch.tensor([1.0, 1e-9], dtype=torch.float64))).tolist()
    ends = (max(noisiest, LIMITS[0]), min(finest, LIMITS[1]))
    assert (made.logsnr[0], made.logsnr[-1]) == pytest.approx(ends)
    assert all(low < high for low, high in pairwise(made.logsnr))


def test_what_is_measured_of_two_points_is_their_closed_form() -> None:
    """x0 = +-1, whose denoiser is tanh(alpha x / sigma^2): E (x0 - x0_hat)^2 by quadrature over the noise."""
    schedule = Cosine()

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(-1, 1, 1, 1) for level in schedule(t))
        return torch.tanh(alpha * x_t / sigma**2)

    values = uniform(5, "values", range(80 * 192)).view(80, 3, 8, 8).double().sub(0.5).sign()
    made = found(Exact(schedule, denoise), values)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    snr = np.exp(np.array(made.logsnr))[:, None]
    missing = 1 - np.tanh(snr + np.sqrt(snr) * nodes)  # for x0 = 1, where alpha x / sigma^2 = snr + sqrt(snr) noise
    expected = (missing**2) @ weights / weights.sum()
    np.testing.assert_allclose(made.error, expected, rtol=0, atol=0.02)  # four standard errors where it is worst
    assert expected.min() < 0.001 < 0.999 < expected.max()
    assert made.variance == pytest.approx(1, rel=0.03)

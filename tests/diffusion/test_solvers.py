"""Every sampler on Gaussian data with the exact denoiser: orders, exact moments, and the singular ends."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.samplers import (
    Churn,
    NoiseLike,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    euler_ancestral,
    heun,
    invert,
    karras_times,
    leading_times,
    lms,
    logsnr_times,
    plms,
    quadratic_times,
    tangent_times,
    uniform_times,
    unipc,
)
from diffusion.samplers.steps import decaying_moments
from diffusion.schedule import Cosine, Flow, Linear, Quadratic, Schedule

SCHEDULES = [Cosine(), Linear(), Quadratic(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)

SOLVERS: dict[str, Any] = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "heun eps": partial(heun, average="eps"),
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unip_2": partial(unipc, correct=False),
    "unipc_2": unipc,
    "unipc_3": partial(unipc, order=3),
    "plms": plms,
    "lms": lms,
}
every_solver = pytest.mark.parametrize("name", SOLVERS)


def pixels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


MEAN, STD = pixels(0.7, -0.4, 0.3, 0.1), pixels(0.2, 0.6, 1.0, 1.7)
START = torch.tensor([-2, -0.3, 1, 2.5], dtype=torch.float64).view(-1, 1, 1, 1).expand(4, 1, 1, 4)


class Streams:
    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


def error(solver: Any, data: Any, times: Tensor) -> float:
    """Distance from where the probability flow leads."""
    end = solver(data.denoise, START, times, data.schedule)
    assert end.isfinite().all()
    return (end - data.flow(START, times[0], times[-1])).norm().item()


# --- orders


@every_schedule
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("ddim", 0.75, 1.25),
        ("euler", 0.75, 1.25),
        ("heun", 1.75, 2.25),
        ("heun eps", 1.75, 2.25),
        ("dpmpp_2m", 1.75, 2.25),
        ("dpmpp_3m", 1.75, 2.25),
        ("unip_2", 1.75, 2.25),
        ("plms", 1.75, 2.25),
        ("unipc_2", 2.75, 3.25),
        ("unipc_3", 3.75, 4.25),
        ("lms", 3.0, 4.25),
    ],
)
@pytest.mark.parametrize("finest", [256, pytest.param(512, marks=pytest.mark.slow)])
def test_order_of_convergence(
    finest: int, name: str, low: float, high: float, schedule: Schedule, gaussian: type
) -> None:
    """On a grid uniform in log-SNR, inside (0, 1), over the last two doublings up to the finest."""
    data = gaussian(MEAN, STD, schedule)
    coarse, fine = (
        error(SOLVERS[name], data, schedule.t_of(torch.linspace(-7, 9, n + 1, dtype=torch.float64)))
        for n in (finest // 4, finest)
    )
    assert low < math.log2(coarse / fine) / 2 < high


@every_schedule
@every_solver
def test_all_the_way_it_is_finite_better_than_ddim_and_converges(name: str, schedule: Schedule, gaussian: type) -> None:
    """From t = 1, where flow has no signal, to t = 0: 50 evaluations, and 200."""
    solver, data = SOLVERS[name], gaussian(MEAN, STD, schedule)
    steps = (25, 100) if "heun" in name else (50, 200)
    coarse, fine = (error(solver, data, uniform_times(n)) for n in steps)
    assert coarse > 2.5 * fine
    # EDM's average of eps is not meant for a first step from next to no signal, as on cosine: finite, and that is all.
    if name not in ("ddim", "euler") and (name, schedule.kind) != ("heun eps", "cosine"):  # type: ignore[attr-defined]
        assert coarse < error(ddim, data, uniform_times(50))


@every_schedule
@every_solver
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_steps_are_finite_and_a_perfect_denoiser_is_followed(name: str, n: int, schedule: Schedule) -> None:
    x0 = torch.tensor([0.3, -0.8], dtype=torch.float64).view(-1, 1, 1, 1)
    for times in (uniform_times(n), logsnr_times(n, schedule), karras_times(n, schedule)):
        end = SOLVERS[name](lambda x, t: x0, torch.ones_like(x0), times, schedule)
        torch.testing.assert_close(end, x0, rtol=0, atol=1e-9)


@every_solver
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "leading", "karras", "logsnr", "tangent"])
def test_spacings_all_lead_to_data(name: str, spacing: str, gaussian: type) -> None:
    schedule = Linear()
    times = {
        "uniform": uniform_times(80),
        "quadratic": quadratic_times(80),
        "leading": leading_times(80),
        "karras": karras_times(80, schedule),
        "logsnr": logsnr_times(80, schedule),
        "tangent": tangent_times(80, schedule),
    }[spacing]
    assert error(SOLVERS[name], gaussian(MEAN, STD, schedule), times) < 0.25


def test_the_published_3m_lacks_a_factor_2_and_unip_3_has_it(gaussian: type) -> None:
    """Where x0_hat is a quadratic polynomial in half log-SNR, the right weights are exact and the published are not."""
    schedule = Flow()

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        at = (alpha / sigma).log().view(-1, 1, 1, 1)
        return 0.3 + 0.5 * at + 0.7 * at**2

    lam = torch.linspace(-1, 1, 9, dtype=torch.float64)
    times, h = schedule.t_of(2 * lam), 0.25
    alpha, sigma = schedule(times)
    x, ends = torch.zeros(1, 1, 1, 1, dtype=torch.float64), {}
    for label, solver in (("3m", dpmpp_3m), ("unip", partial(unipc, order=3, correct=False))):
        before, after = (solver(denoise, x, times[:k], schedule) for k in (8, 9))
        ends[label] = ((after - sigma[8] / sigma[7] * before) / alpha[8]).item()
    # What the last step adds: the integral of exp(-(h - s)) x0_hat over half log-SNR, by quadrature.
    nodes, weights = np.polynomial.legendre.leggauss(20)
    s = (nodes + 1) / 2 * h
    at = lam[7].item() + s
    exact = float((weights * h / 2 * np.exp(-(h - s)) * (0.3 + 0.5 * at + 0.7 * at**2)).sum())
    moment = float((weights * h / 2 * np.exp(-(h - s)) * s**2).sum())
    assert ends["unip"] == pytest.approx(exact, rel=1e-10)
    assert ends["3m"] == pytest.approx(exact - 0.7 * moment / 2, rel=1e-10)


@pytest.mark.parametrize("length", [1e-9, 0.1, 0.999, 1.0, 1.001, 7.0, 60.0])
def test_moments_of_the_exponential_are_its_integrals(length: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(80)
    s = (nodes + 1) / 2
    expected = [(weights / 2 * length * np.exp(-(1 - s) * length) * s**j).sum() for j in range(5)]
    np.testing.assert_allclose(decaying_moments(length, 5), expected, rtol=1e-12)


def test_the_exponential_of_an_infinite_step_sees_its_end_only() -> None:
    assert decaying_moments(math.inf, 4) == [1, 1, 1, 1]


@every_schedule
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "heun eps"])
def test_single_precision_is_enough(name: str, schedule: Schedule, gaussian: type) -> None:
    """No large numbers cancel, also where x / alpha is 20,000; EDM's average of eps is not made for it."""
    x, times = START, uniform_times(30)
    exact = SOLVERS[name](gaussian(MEAN, STD, schedule).denoise, x, times, schedule)
    single = SOLVERS[name](gaussian(MEAN.float(), STD.float(), schedule).denoise, x.float(), times, schedule)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5)


# --- stochastic samplers

Stochastic = Callable[..., Tensor]
STOCHASTIC: dict[str, Stochastic] = {
    "ddpm upper": ddpm,
    "ddpm lower": partial(ddpm, variance="lower"),
    "ddim": partial(ddim, eta=1.0),
    "euler churn": partial(euler, churn=Churn(8.0)),
    "euler ancestral": euler_ancestral,
    "heun churn": partial(heun, churn=Churn(8.0)),
    "dpmpp_2m sde": partial(dpmpp_2m, eta=1.0),
    "dpmpp_2m half": partial(dpmpp_2m, eta=0.5),
    "dpmpp_3m sde": partial(dpmpp_3m, eta=1.0),
}
every_stochastic = pytest.mark.parametrize("name", STOCHASTIC)


class Impulses:
    """Draws 1 for row 2 + k at the k-th call and 0 elsewhere: what is linear in the noise is laid open."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, like: Tensor) -> Tensor:
        drawn = torch.zeros_like(like)
        drawn[2 + self.calls] = 1
        self.calls += 1
        return drawn


def moments(sampler: Stochastic, data: Any, times: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and variance of the end, per pixel, from sigma times a standard normal."""
    start = torch.zeros(len(times) + 1, 1, 1, 4, dtype=torch.float64)
    start[1] = 1
    origin, unit, *kicks = sampler(data.denoise, start, times, data.schedule, noise=Impulses())
    sigma = data.schedule(times[:1])[1]
    variance = ((unit - origin) * sigma) ** 2 + sum((kick - origin) ** 2 for kick in kicks)
    return origin.flatten(), variance.flatten()


@every_schedule
@every_stochastic
def test_samples_have_the_moments_of_the_affine_chain(name: str, schedule: Schedule, gaussian: type) -> None:
    data, times, n = gaussian(MEAN, STD, schedule), uniform_times(20), 20_000
    mean, variance = moments(STOCHASTIC[name], data, times)
    noise = Streams(3)
    start = schedule(times[:1])[1] * noise(torch.empty(n, 1, 1, 4, dtype=torch.float64))
    end = STOCHASTIC[name](data.denoise, start, times, schedule, noise=noise).flatten(1)
    assert ((end.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    covariance, expected = end.T.cov(), variance.diag()
    allowed = 4 * (variance[:, None] * variance[None] / n).sqrt() * (1 + torch.eye(4, dtype=torch.float64)).sqrt()
    assert ((covariance - expected).abs() < allowed).all()


@every_stochastic
def test_moments_converge_to_the_data(name: str, gaussian: type) -> None:
    """Weak order at least 0.75 between 250 and 1,000 steps, from the true distribution at the start."""
    schedule = Linear()
    errors = []
    for n in (250, 1000):
        times = logsnr_times(n, schedule, (-9.0, 14.0))
        mean, variance = moments(STOCHASTIC[name], gaussian(MEAN, STD, schedule), times)
        errors.append(((mean - MEAN.flatten()) ** 2 + (variance - STD.flatten() ** 2) ** 2).sum().sqrt().item())
    assert math.log(errors[0] / errors[1], 4) > 0.75


@every_schedule
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_form_of_2m_has_the_moments_of_its_recursion(eta: float, schedule: Schedule, gaussian: type) -> None:
    """The pair (x, last x0_hat) is a linear chain, written here in half log-SNR, word by word as in the paper."""
    times = 0.97 * uniform_times(12)[:-1]
    alpha, sigma = (level.numpy() for level in schedule(times))
    lam = np.log(alpha / sigma)
    end_mean, end_variance = moments(partial(dpmpp_2m, eta=eta), gaussian(MEAN, STD, schedule), times)
    for pixel, (m, s) in enumerate(zip(MEAN.flatten().tolist(), STD.flatten().tolist(), strict=True)):
        mean, covariance = np.zeros(2), np.diag([sigma[0] ** 2, 0.0])
        for k in range(len(times) - 1):
            h = lam[k + 1] - lam[k]
            on_x, on_x0 = sigma[k + 1] / sigma[k] * np.exp(-eta * h), alpha[k + 1] * -np.expm1(-(1 + eta) * h)
            second = -on_x0 / 2 * h / (lam[k] - lam[k - 1]) if k else 0.0
            first, new = on_x0 - second, -np.expm1(-2 * eta * h)
            gain = alpha[k] * s**2 / (alpha[k] ** 2 * s**2 + sigma[k] ** 2)
            offset = m - gain * alpha[k] * m
            step = np.array([[on_x + first * gain, second], [gain, 0.0]])
            mean = step @ mean + offset * np.array([first, 1.0])
            covariance = step @ covariance @ step.T + np.diag([new * sigma[k + 1] ** 2, 0.0])
        assert end_mean[pixel].item() == pytest.approx(mean[0], rel=1e-9, abs=1e-12)
        assert end_variance[pixel].item() == pytest.approx(covariance[0, 0], rel=1e-9)


@every_schedule
def test_identities_between_samplers(schedule: Schedule, gaussian: type) -> None:
    data, times = gaussian(MEAN, STD, schedule), uniform_times(9)

    def walk(sampler: Any, **settings: Any) -> Tensor:
        end: Tensor = sampler(data.denoise, START, times, schedule, **settings)
        return end

    plain = walk(ddim)
    assert torch.equal(walk(euler), plain)
    assert torch.equal(walk(euler, noise=Streams()), plain)
    assert torch.equal(walk(lms, order=1), plain)
    for sampler in (ddim, dpmpp_2m, dpmpp_3m):
        assert torch.equal(walk(sampler, eta=0, noise=Streams()), walk(sampler))
    assert torch.equal(walk(heun, churn=Churn(0.0), noise=Streams()), walk(heun))
    lower = walk(ddpm, noise=Streams(), variance="lower")
    torch.testing.assert_close(walk(euler_ancestral, noise=Streams()), lower, rtol=0, atol=1e-12)
    torch.testing.assert_close(walk(unipc, order=1, correct=False), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(walk(unipc, order=2, correct=False), walk(dpmpp_2m), rtol=0, atol=1e-12)


def test_churn_keeps_to_its_levels_and_below_t_1() -> None:
    """Noise is added between the levels named only, and a walk's first step from t = 1 has none."""
    times, calls = uniform_times(10), []

    def noise(like: Tensor) -> Tensor:
        calls.append(1)
        return torch.zeros_like(like)

    cases: list[tuple[Schedule, Churn, int]] = [
        (Flow(), Churn(5.0), 9),
        (Linear(), Churn(5.0), 9),
        (Flow(), Churn(5.0, low=0.5, high=2.0), 3),
        (Flow(), Churn(5.0, low=100.0), 0),
    ]
    for schedule, churn, expected in cases:
        calls.clear()
        euler(lambda x, t: 0.5 * x, START, times, schedule, churn=churn, noise=noise)
        assert len(calls) == expected


# --- data that is a few points


@cache
def points() -> Tensor:
    return torch.randn(5, 2, 2, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def ideal(schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of the points, weighted by how likely each has become x_t."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.view(-1, 1) for level in schedule(t))
        far = (x.flatten(1)[:, None] - alpha[:, None] * points().flatten(1)).square().sum(2)
        weights = (-far / (2 * sigma**2)).softmax(1)
        return (weights @ points().flatten(1)).view_as(x)

    return denoise


@every_schedule
@pytest.mark.parametrize("name", [*SOLVERS, *STOCHASTIC])
def test_samples_land_on_the_points_of_a_small_data_set(name: str, schedule: Schedule) -> None:
    noise: NoiseLike = Streams(5)
    start = noise(torch.empty(64, 2, 2, 2, dtype=torch.float64))
    times = logsnr_times(60, schedule)
    if name in SOLVERS:
        end = SOLVERS[name](ideal(schedule), start, times, schedule)
    else:
        end = STOCHASTIC[name](ideal(schedule), start, times, schedule, noise=noise)
    far = torch.cdist(end.flatten(1), points().flatten(1))
    assert far.min(1).values.max() < 0.02
    assert len(far.argmin(1).unique()) == 5


# --- inversion


@every_schedule
@pytest.mark.parametrize(("order", "solver"), [(1, ddim), (2, heun), (2, dpmpp_2m)])
def test_inversion_and_back_converges_at_the_order_of_both(
    order: Any, solver: Any, schedule: Schedule, gaussian: type
) -> None:
    """Heun there and Heun back fare better: what the one does wrong, the other undoes to leading order."""
    data = gaussian(MEAN, STD, schedule)
    one_way, round_trip = [], []
    for n in (64, 256):
        times = schedule.t_of(torch.linspace(-6, 6, n + 1, dtype=torch.float64))
        there = invert(data.denoise, START, times, schedule, order=order)
        one_way.append((there - data.flow(START, times[-1], times[0])).norm().item())
        round_trip.append((solver(data.denoise, there, times, schedule) - START).norm().item())
    assert abs(math.log(one_way[0] / one_way[1], 4) - order) < 0.25
    assert abs(math.log(round_trip[0] / round_trip[1], 4) - (3 if solver is heun else order)) < 0.25


@every_schedule
def test_images_are_inverted_all_the_way_to_noise(schedule: Schedule, gaussian: type) -> None:
    data, errors = gaussian(MEAN, STD, schedule), []
    for n in (50, 200):
        times = uniform_times(n)
        there = invert(data.denoise, START, times, schedule)
        assert there.isfinite().all()
        errors.append((there - data.flow(START, times[-1], times[0])).norm().item())
    assert errors[1] < errors[0] / 2.5
    assert errors[1] < 0.3


def test_inversion_calls_the_denoiser_twice_a_step_but_at_data(gaussian: type) -> None:
    calls = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t[0].item())
        return 0.9 * x

    invert(denoise, START, uniform_times(4), Cosine())
    assert calls == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]
    calls.clear()
    invert(denoise, START, uniform_times(4), Cosine(), order=1)
    assert calls == [0.25, 0.25, 0.5, 0.75]


# --- refusals


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        (partial(euler, churn=Churn(1.0)), "pass noise, or churn=0"),
        (partial(heun, churn=Churn(1.0)), "pass noise, or churn=0"),
        (partial(dpmpp_2m, eta=1.0), "pass noise, or eta=0"),
        (partial(dpmpp_3m, eta=1.0), "pass noise, or eta=0"),
        (partial(dpmpp_2m, eta=-1.0, noise=Streams()), "eta must be at least 0"),
        (partial(euler_ancestral, eta=2.0, noise=Streams()), r"eta must lie in \[0, 1\]"),
        (partial(unipc, order=0), "order must be 1 to 4"),
        (partial(lms, order=5), "order must be 1 to 4"),
        (partial(invert, order=3), "order must be 1 or 2"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        call(lambda x, t: x, START, uniform_times(2), Cosine())


@pytest.mark.parametrize("name", [*SOLVERS, "invert"])
def test_times_must_decrease(name: str) -> None:
    with pytest.raises(ValueError, match="strictly decrease"):
        (SOLVERS | {"invert": invert})[name](lambda x, t: x, START, torch.tensor([0.0, 1.0]), Cosine())

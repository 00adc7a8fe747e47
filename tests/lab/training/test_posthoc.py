"""Averages of other lengths from stored ones, against integrals and against averages that were tracked."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.training.ema import Average
from lab.training.posthoc import Profile, products, solve

STORED = (0.05, 0.1)
OTHERS = (0.03, 0.04, 0.075, 0.12, 0.15)
PROFILES = [Profile(1, 0.05), Profile(700, 0.1), Profile(1000, 0.02), Profile(1000, 0.2), Profile(1000, 0.27)]


def integral(values, until: float) -> float:
    """The integral from 0 by Gauss and Legendre, of a function that is smooth up to there."""
    places, shares = np.polynomial.legendre.leggauss(300)
    return float(shares @ values((places + 1) / 2 * until)) * until / 2


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_weighs_1_in_all_and_spreads_over_its_length(profile: Profile) -> None:
    n = profile.step
    mean = integral(lambda t: t * profile.density(t), n)
    square = integral(lambda t: (t - mean) ** 2 * profile.density(t), n)
    assert integral(profile.density, n) == pytest.approx(1, rel=1e-6)
    assert np.sqrt(square) / n == pytest.approx(profile.length, rel=1e-6)
    assert profile.density(np.array([n + 1.0])) == 0


@pytest.mark.parametrize("one", PROFILES)
@pytest.mark.parametrize("other", PROFILES)
def test_products_are_integrals(one: Profile, other: Profile) -> None:
    until = min(one.step, other.step)
    expected = integral(lambda t: one.density(t) * other.density(t), until)
    assert products([one], [other])[0, 0] == pytest.approx(expected, rel=1e-5)


def test_products_of_extreme_profiles_are_finite() -> None:
    extreme = [Profile(1, 0.001), Profile(10**8, 0.001), Profile(10**8, 0.279)]
    found = products(extreme, extreme)
    assert np.isfinite(found).all()
    assert (np.diag(found) > 0).all()


def evenly(steps: int, num: int) -> list[Profile]:
    return [Profile(steps * k // num, length) for k in range(1, num + 1) for length in STORED]


@pytest.mark.parametrize("index", [0, 30, 31, 62, 63])
def test_what_is_stored_is_found_again(index: int) -> None:
    stored = evenly(640, 32)
    fit = solve(stored, stored[index])
    np.testing.assert_allclose(fit.coefficients, np.eye(64)[index], atol=1e-11)
    assert fit.error < 1e-6


@pytest.mark.parametrize("length", [*OTHERS, 0.01, 0.27])
def test_coefficients_add_up_to_1_and_the_error_is_that_of_the_profiles(length: float) -> None:
    stored, wanted = evenly(96, 6), Profile(96, length)
    fit = solve(stored, wanted)
    assert fit.coefficients.sum() == pytest.approx(1, abs=1e-12)

    def rest(t):
        return sum(c * p.density(t) for c, p in zip(fit.coefficients, stored, strict=True)) - wanted.density(t)

    pieces = (integral(lambda t, start=start: rest(t + start) ** 2, 16) for start in range(0, 96, 16))
    expected = np.sqrt(sum(pieces) / products([wanted], [wanted])[0, 0])
    assert fit.error == pytest.approx(expected, rel=1e-3)


def test_no_other_coefficients_come_nearer() -> None:
    stored, wanted = evenly(96, 6), Profile(96, 0.03)
    fit = solve(stored, wanted)
    aim = products(stored, [wanted])[:, 0]
    slope = products(stored, stored) @ fit.coefficients - aim
    np.testing.assert_allclose(slope, slope.mean(), rtol=1e-6)  # all that is left is a change of the sum


def tracked(weights: Tensor, stored: list[Profile]) -> tuple[Tensor, dict[float, Tensor]]:
    """What averages of weights (steps, d) are at the stored profiles (n, d), and at the end for each length (d,)."""
    module = nn.Linear(weights.shape[1], 1, bias=False)
    averages = {length: Average(module, length) for length in (*STORED, *OTHERS)}
    kept = {}
    for step, row in enumerate(weights.float(), start=1):
        module.weight.data.copy_(row)
        for length, average in averages.items():
            average.update(module, step)
            kept |= {p: average.module.weight[0].double() for p in stored if p == Profile(step, length)}
    end = {length: average.module.weight[0].double() for length, average in averages.items()}
    return torch.stack([kept[profile] for profile in stored]), end


def made(kept: Tensor, stored: list[Profile], length: float) -> tuple[Tensor, float]:
    fit = solve(stored, Profile(640, length))
    return torch.from_numpy(fit.coefficients) @ kept, fit.error


def normal(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(size[0]), dtype=torch.float64)


@pytest.mark.parametrize(
    ("drift", "origin"), [(0.0, 0.0), (3.0, 0.0), (1.0, 30.0)], ids=["walk", "drift", "far from zero"]
)
def test_made_averages_are_within_1_percent_of_tracked_ones(drift: float, origin: float) -> None:
    """Of the distance between the averages of 0.05 and 0.10; 32 snapshots of these two, for all lengths."""
    stored, time = evenly(640, 32), torch.linspace(0, 1, 640, dtype=torch.float64)
    walk = normal(640, 400).cumsum(0) / 640**0.5 + drift * time[:, None] * normal(1, 400) + origin * normal(2, 400)[0]
    kept, end = tracked(walk, stored)
    distance = torch.dist(end[0.05], end[0.1])
    errors = {length: (torch.dist(made(kept, stored, length)[0], end[length]) / distance).item() for length in OTHERS}
    assert max(errors.values()) < 0.01, errors


def test_the_error_told_is_that_of_independent_weights() -> None:
    stored = evenly(640, 32)
    kept, end = tracked(normal(640, 2000), stored)
    for length in OTHERS:
        average, told = made(kept, stored, length)
        assert torch.dist(average, end[length]) / end[length].norm() == pytest.approx(told, rel=0.2), length

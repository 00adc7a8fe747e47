"""Distances: closed forms, torch-fidelity and scipy as oracles, and how often the intervals cover."""

import sys
from collections.abc import Callable
from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.errors import NonFinite, Refused
from lab.evaluation import distances as module
from lab.evaluation.distances import Figure, distances, frechet, kernel

pytest.importorskip("torch_fidelity")
SHAPES = [(500, 64), pytest.param(2000, 256, marks=pytest.mark.slow), (128, 256), (64, 512)]


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whitened(n: int, d: int, seed: int) -> Tensor:
    """Rows whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    x = normal(n, d, seed)
    x = x - x.mean(dim=0)
    return torch.linalg.qr(x).Q * (n - 1) ** 0.5


def polynomial_mmd(mean: np.ndarray, std: float) -> float:
    """Squared MMD between N(0, I) and N(mean, std^2 I): (x.y)^k is the inner product of k-th moment tensors."""

    def moments(mu: np.ndarray, s: float) -> list[np.ndarray]:
        eye = np.eye(len(mu))
        pairs = [np.einsum(f"{i},{j}{k}->ijk", mu, eye) for i, j, k in ("ijk", "jik", "kij")]
        third = np.einsum("i,j,k->ijk", mu, mu, mu) + s**2 * sum(pairs)
        return [np.ones(1), mu, s**2 * eye + np.outer(mu, mu), third]

    d, both = len(mean), zip(moments(np.zeros_like(mean), 1.0), moments(mean, std), strict=True)
    return sum(comb(3, k) * d**-k * float(np.square(p - q).sum()) for k, (p, q) in enumerate(both))


# Frechet distance


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_frechet_agrees_with_torch_fidelity_and_the_fast_form(n: int, d: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = normal(n, d, 0), 1.2 * normal(n, d, 1) + 0.1
    stats = [fid_features_to_statistics(x) for x in (a, b)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet(a, b, "x").value == pytest.approx(theirs, rel=1e-12)
    assert module._frechet_value(a.numpy(), b.numpy()) == pytest.approx(theirs, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(("n", "d"), [(500, 64), (300, 128)])
def test_frechet_agrees_with_a_matrix_square_root(n: int, d: int) -> None:
    from scipy.linalg import sqrtm

    a, b = normal(n, d, 0).numpy(), 1.2 * normal(n, d, 1).numpy() + 0.1
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    oracle = shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet(torch.from_numpy(a), torch.from_numpy(b), "x").value == pytest.approx(oracle, rel=1e-8)
    assert module._frechet_value(a, b) == pytest.approx(oracle, rel=1e-8)


def test_frechet_of_exact_normals_is_the_closed_form() -> None:
    d, mean, std = 16, 0.3, 1.7
    a, b = whitened(400, d, 0), mean + std * whitened(300, d, 1)
    assert frechet(a, b, "x").value == pytest.approx(d * mean**2 + d * (std - 1) ** 2, rel=1e-8)


@pytest.mark.parametrize(("n", "d"), [(300, 64), (64, 256)])
def test_frechet_properties(n: int, d: int) -> None:
    a, b = normal(n, d, 0), normal(n + 20, d, 1) + 0.2
    value = frechet(a, b, "x").value
    rotation = torch.linalg.qr(normal(d, d, 2)).Q
    shuffled = a[torch.randperm(n, generator=torch.Generator().manual_seed(3))]
    assert abs(frechet(a, a, "x").value) <= 1e-4
    for same in (frechet(b, a, "x"), frechet(a @ rotation, b @ rotation, "x"), frechet(shuffled, b, "x")):
        assert same.value == pytest.approx(value, rel=1e-6)


def test_frechet_bias_falls_with_n_and_is_labelled() -> None:
    published = {100: 21.2, 500: 4.3, 2000: 1.1}  # N(0, I) against itself, d = 64
    for n, expected in published.items():
        figure = frechet(normal(n, 64, n), normal(n, 64, n + 1), "x")
        assert figure.value == pytest.approx(expected, rel=0.06)
        assert figure.target == f"expected value at n = {n}, m = {n}, bias included"
        assert figure.notes == ()
    assert frechet(normal(63, 64, 0), normal(80, 64, 1), "x").notes == ("biased: n = 63 is below the feature width 64",)


@pytest.mark.parametrize("shift", [0.3, 0.0])
def test_frechet_interval_covers_the_expected_value(shift: float) -> None:
    figures = [frechet(normal(103, 6, 2 * i), normal(87, 6, 2 * i + 1) + shift, "x") for i in range(150)]
    truth = np.mean([figure.value for figure in figures])
    covered = np.mean([figure.low <= truth <= figure.high for figure in figures])
    assert covered >= 0.93
    widths = np.array([figure.high - figure.low for figure in figures]) / (2 * module._STUDENT)
    ratio = np.sqrt(np.mean(widths**2)) / np.std([figure.value for figure in figures])
    assert 0.9 < ratio < 1.7  # wide where the pairs dominate (shift 0), never narrow


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    from scipy.special import stdtrit

    a, b = normal(4007, 1, 0).numpy(), 2 * normal(3011, 1, 1).numpy()
    errors = [module._jackknife_error(lambda x, y: float(x.mean() - y.mean()), a + k, b) for k in range(2)]
    assert errors[0] == pytest.approx(np.sqrt(1 / 4007 + 4 / 3011), rel=0.35)  # 19 degrees of freedom
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)
    assert stdtrit(module.NUM_GROUPS - 1, 0.975) == pytest.approx(module._STUDENT)


def test_jackknife_leaves_out_equally_many_rows_each_time() -> None:
    """Otherwise the bias, which follows the number of rows, would pass for spread."""
    a, b = normal(510, 1, 0).numpy(), normal(399, 1, 0).numpy()
    assert module._jackknife_error(lambda x, y: 1e5 / len(x) + 1e5 / len(y), a, b) < 1e-9


def test_jackknife_lets_paired_rows_leave_together() -> None:
    a = normal(400, 1, 0).numpy()
    assert module._jackknife_error(lambda x, y: float(x.mean() - y.mean()), a, a + 1) < 1e-12


# Kernel distance


def test_kernel_agrees_with_torch_fidelity() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = normal(300, 64, 0), 1.1 * normal(300, 64, 1) + 0.1
    theirs = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=300, rng_seed=2020, verbose=False)
    assert kernel(a, b, "x").value == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-12)


def test_kernel_is_the_mean_over_pairs_and_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(31, 5, 0), normal(23, 5, 1) + 0.4
    k = [((x @ y.T) / 5 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = [(m.sum() - m.trace()) / (len(m) * (len(m) - 1)) for m in k[:2]]
    whole = kernel(a, b, "x")
    assert whole.value == pytest.approx(float(sum(within) - 2 * k[2].mean()), abs=1e-12)
    monkeypatch.setattr(module, "_ROWS", 7)
    blocks = kernel(a, b, "x")
    assert (blocks.value, blocks.low) == pytest.approx((whole.value, whole.low), abs=1e-10)


def test_kernel_splits_a_matrix_into_effects_and_pairs() -> None:
    """The closed sums are those of the residuals of a least-squares fit, written out."""
    x, y = normal(9, 3, 0).numpy(), normal(7, 3, 1).numpy()
    k = (x @ x.T / 3 + 1) ** 3
    rows, columns = np.nonzero(~np.eye(9, dtype=bool))
    design = np.eye(9)[rows] + np.eye(9)[columns]
    left = np.linalg.lstsq(design, k[rows, columns])[1]
    assert module._within(x)[2] == pytest.approx(left.item() / (9 * 6))
    k = (x @ y.T / 3 + 1) ** 3
    left = k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()
    assert module._between(x, y)[3] == pytest.approx(np.square(left).sum() / (8 * 6))


def test_kernel_of_equal_distributions_is_zero_on_average() -> None:
    values = [kernel(normal(60, 8, 2 * i), normal(50, 8, 2 * i + 1), "x").value for i in range(50)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / 50**0.5


@pytest.mark.parametrize("num_sets", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_kernel_interval_covers_the_true_distance(num_sets: int) -> None:
    mean, std = np.full(8, 0.5), 1.0
    truth = polynomial_mmd(mean, std)
    figures = [kernel(normal(300, 8, 2 * i), 0.5 + std * normal(200, 8, 2 * i + 1), "x") for i in range(num_sets)]
    values = np.array([figure.value for figure in figures])
    errors = np.array([figure.high - figure.value for figure in figures]) / module._NORMAL
    assert abs(values.mean() - truth) < 3 * values.std() / num_sets**0.5
    assert np.mean(errors**2) == pytest.approx(values.var(), rel=0.2)
    assert 0.93 <= np.mean([figure.low <= truth <= figure.high for figure in figures]) <= 0.97


def test_kernel_variance_is_unbiased_at_small_n() -> None:
    """At 20 and 15 images the pairs matter as much as the images."""
    pairs = [(normal(20, 8, 2 * i).numpy(), normal(15, 8, 2 * i + 1).numpy() + 0.3) for i in range(2000)]
    values, errors = np.array([module._mmd(a, b) for a, b in pairs]).T
    assert np.mean(errors**2) == pytest.approx(values.var(), rel=0.12)


def test_kernel_interval_errs_wide_when_nothing_differs() -> None:
    figures = [kernel(normal(100, 8, 2 * i), normal(80, 8, 2 * i + 1), "x") for i in range(200)]
    assert np.mean([figure.low <= 0 <= figure.high for figure in figures]) >= 0.95


# What figures say


def test_a_figure_names_extractor_numbers_interval_and_target() -> None:
    for figure in distances(normal(50, 8, 0), normal(40, 8, 1), "efficientnet-lite0"):
        assert figure.name in {"frechet_distance (efficientnet-lite0)", "kernel_distance (efficientnet-lite0)"}
        assert (figure.extractor, figure.n, figure.m) == ("efficientnet-lite0", 50, 40)
        assert figure.low <= figure.value <= figure.high
        assert "jackknife" in figure.interval or "U-statistic" in figure.interval
        assert figure.target


def test_the_trustworthy_distance_stands_first() -> None:
    def names(n: int) -> list[str]:
        return [figure.name for figure in distances(normal(n, 30, 0), normal(60, 30, 1), "x")]

    assert names(29) == ["kernel_distance (x)", "frechet_distance (x)"]
    assert names(30) == ["frechet_distance (x)", "kernel_distance (x)"]


def test_figures_repeat_exactly_and_leave_the_global_generator_alone() -> None:
    a, b, before = normal(45, 6, 0), normal(40, 6, 1), torch.get_rng_state()
    assert distances(a, b, "x") == distances(a, b, "x")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_a_collapsed_set_has_a_finite_distance(constant: float) -> None:
    for figure in distances(torch.full((40, 4), constant), normal(40, 4, 1), "x"):
        assert all(np.isfinite((figure.low, figure.value, figure.high)))
        assert figure.low <= figure.value <= figure.high


@pytest.mark.parametrize("measure", [frechet, kernel, distances])
def test_no_data_is_an_error_and_never_zero(measure: Callable[[Tensor, Tensor, str], object]) -> None:
    with pytest.raises(Refused, match=r"at least 2?[04] images in each set, got 0"):
        measure(torch.empty(0, 8), normal(40, 8, 0), "x")
    with pytest.raises(Refused, match="got 3"):
        measure(normal(40, 8, 0), normal(3, 8, 0), "x")
    with pytest.raises(Refused, match=r"\(40, 8\) and \(40, 9\)"):
        measure(normal(40, 8, 0), normal(40, 9, 0), "x")
    with pytest.raises(NonFinite, match="infinite or not a number"):
        measure(normal(40, 8, 0), torch.full((40, 8), torch.nan), "x")


def test_a_missing_torch_fidelity_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.metric_kid", None)
    with pytest.raises(Refused, match="pip install torch-fidelity"):
        kernel(normal(40, 8, 0), normal(40, 8, 1), "x")


def test_a_figure_cannot_be_changed() -> None:
    figure = kernel(normal(40, 8, 0), normal(40, 8, 1), "x")
    assert isinstance(figure, Figure)
    with pytest.raises(AttributeError):
        figure.value = 0.0  # type: ignore[misc]

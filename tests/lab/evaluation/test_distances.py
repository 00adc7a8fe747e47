"""Distances: closed forms, torch-fidelity and scipy as oracles, and how often the intervals cover."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.errors import NonFinite, Refused
from lab.evaluation import distances as module
from lab.evaluation.distances import distances, frechet
from lab.evaluation.figure import Figure
from lab.evaluation.kernel_distances import kernel

pytest.importorskip("torch_fidelity")
SHAPES = [(500, 64), pytest.param(2000, 256, marks=pytest.mark.slow), (128, 256), (64, 512)]


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whitened(n: int, d: int, seed: int) -> Tensor:
    """Rows whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    x = normal(n, d, seed)
    x = x - x.mean(dim=0)
    return torch.linalg.qr(x).Q * (n - 1) ** 0.5


# Frechet distance


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_frechet_agrees_with_torch_fidelity_and_the_fast_form(n: int, d: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = normal(n, d, 0), 1.2 * normal(n, d, 1) + 0.1
    stats = [fid_features_to_statistics(x) for x in (a, b)]
    theirs = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet(a, b, "x").value == pytest.approx(theirs, rel=1e-12)
    assert module.frechet_value(a.numpy(), b.numpy()) == pytest.approx(theirs, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("library", ["cleanfid.fid", "torchmetrics.image.fid"])
@pytest.mark.filterwarnings("ignore")  # theirs, about their own dependencies
def test_frechet_agrees_with_other_libraries(library: str, n: int, d: int) -> None:
    other = pytest.importorskip(library)
    a, b = normal(n, d, 0), 1.2 * normal(n, d, 1) + 0.1
    moments = [(x.mean(dim=0), torch.cov(x.T)) for x in (a, b)]
    if library == "cleanfid.fid":
        theirs = other.frechet_distance(*(part.numpy() for pair in moments for part in pair))
    else:
        theirs = other._compute_fid(*moments[0], *moments[1])
    assert frechet(a, b, "x").value == pytest.approx(float(theirs), rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(("n", "d"), [(500, 64), (300, 128)])
def test_frechet_agrees_with_a_matrix_square_root(n: int, d: int) -> None:
    from scipy.linalg import sqrtm

    a, b = normal(n, d, 0).numpy(), 1.2 * normal(n, d, 1).numpy() + 0.1
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    oracle = shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet(torch.from_numpy(a), torch.from_numpy(b), "x").value == pytest.approx(oracle, rel=1e-8)
    assert module.frechet_value(a, b) == pytest.approx(oracle, rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(40, 33), (33, 40), (90, 33)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_distance_of_some_rows_is_that_of_sets_of_those_rows(n: int, m: int, offset: float) -> None:
    a, b = normal(n, 64, 0).numpy() + offset, 1.2 * normal(m, 64, 1).numpy() + offset + 0.1
    rows, others = np.delete(np.arange(n), [3, 17]), np.delete(np.arange(m), [0, 1, 20])
    expected = module.frechet_value(a[rows], b[others])
    assert module._of_rows(a, b)(rows, others) == pytest.approx(expected, rel=1e-7)


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
@pytest.mark.parametrize("num_sets", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_frechet_interval_covers_the_expected_value(shift: float, num_sets: int) -> None:
    figures = [frechet(normal(103, 6, 2 * i), normal(87, 6, 2 * i + 1) + shift, "x") for i in range(num_sets)]
    truth = np.mean([figure.value for figure in figures])
    covered = np.mean([figure.low <= truth <= figure.high for figure in figures])
    assert covered >= 0.93
    widths = np.array([figure.high - figure.low for figure in figures]) / (2 * module.STUDENT)
    ratio = np.sqrt(np.mean(widths**2)) / np.std([figure.value for figure in figures])
    assert 0.9 < ratio < 1.7  # wide where the pairs dominate (shift 0), never narrow


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    from scipy.special import stdtrit

    a, b = normal(4007, 1, 0).numpy(), 2 * normal(3011, 1, 1).numpy()
    errors = [module.jackknife_error(lambda x, y: float(x.mean() - y.mean()), a + k, b) for k in range(2)]
    assert errors[0] == pytest.approx(np.sqrt(1 / 4007 + 4 / 3011), rel=0.35)  # 19 degrees of freedom
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)
    assert stdtrit(module.NUM_GROUPS - 1, 0.975) == pytest.approx(module.STUDENT)


def test_jackknife_leaves_out_equally_many_rows_each_time() -> None:
    """Otherwise the bias, which follows the number of rows, would pass for spread."""
    a, b = normal(510, 1, 0).numpy(), normal(399, 1, 0).numpy()
    assert module.jackknife_error(lambda x, y: 1e5 / len(x) + 1e5 / len(y), a, b) < 1e-9


def test_jackknife_lets_paired_rows_leave_together() -> None:
    a = normal(400, 1, 0).numpy()
    assert module.jackknife_error(lambda x, y: float(x.mean() - y.mean()), a, a + 1) < 1e-12


# What figures say


def test_a_figure_names_extractor_numbers_interval_and_target() -> None:
    for figure in distances(normal(50, 8, 0), normal(40, 8, 1), "efficientnet-lite0"):
        assert figure.name in {"frechet_distance (efficientnet-lite0)", "kernel_distance (efficientnet-lite0)"}
        assert (figure.extractor, figure.n, figure.m) == ("efficientnet-lite0", 50, 40)
        assert figure.low <= figure.value <= figure.high
        assert "jackknife" in figure.interval or "U-statistic" in figure.interval
        assert figure.target


def test_the_kernel_distance_stands_first_below_ten_thousand_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(n: int) -> list[str]:
        return [figure.name for figure in distances(normal(n, 3, 0), normal(60, 3, 1), "x")]

    assert names(60) == ["kernel_distance (x)", "frechet_distance (x)"]
    monkeypatch.setattr(module, "KERNEL_FIRST", 50)
    assert names(49) == ["kernel_distance (x)", "frechet_distance (x)"]
    assert names(50) == ["frechet_distance (x)", "kernel_distance (x)"]


def test_published_names_are_for_published_features_and_enough_images() -> None:
    def names(extractor: str, n: int) -> list[str]:
        return [figure.name for figure in distances(normal(n, 30, 0), normal(60, 30, 1), extractor)]

    assert names("inception-v3", 30) == ["KID (inception-v3)", "FID (inception-v3)"]
    assert names("inception-v3", 29) == ["KID (inception-v3)", "frechet_distance (inception-v3)"]
    assert names("dinov2-vit-l14", 30) == ["kernel_distance (dinov2-vit-l14)", "FD-DINOv2 (dinov2-vit-l14)"]
    assert names("dinov2-16x2-14", 30)[1] == "frechet_distance (dinov2-16x2-14)"


def test_streamed_parts_merge_into_the_whole() -> None:
    """Means and covariances of four parts, merged, give the distance of the whole."""
    a, b = normal(400, 16, 0).numpy(), 1.3 * normal(300, 16, 1).numpy() + 0.2
    parts = np.array_split(a, 4)
    mean = sum(len(x) * x.mean(axis=0) for x in parts) / len(a)
    scatter = sum(
        (len(x) - 1) * np.cov(x, rowvar=False) + len(x) * np.outer(x.mean(axis=0) - mean, x.mean(axis=0) - mean)
        for x in parts
    )
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    merged = [{"mu": mean, "sigma": scatter / (len(a) - 1)}, {"mu": b.mean(axis=0), "sigma": np.cov(b, rowvar=False)}]
    theirs = fid_statistics_to_metric(*merged, verbose=False)["frechet_inception_distance"]
    assert frechet(torch.from_numpy(a), torch.from_numpy(b), "x").value == pytest.approx(theirs, rel=1e-10)


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

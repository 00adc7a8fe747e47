"""Kernel distances: closed forms, torch-fidelity as an oracle, and how often the intervals cover."""

from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.errors import Refused
from lab.evaluation import kernel_distances as module
from lab.evaluation.figure import CLIP
from lab.evaluation.intervals import Z95
from lab.evaluation.kernel_distances import cmmd, gaussian, kernel

pytest.importorskip("torch_fidelity")


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def polynomial_mmd(mean: np.ndarray, std: float) -> float:
    """Squared MMD between N(0, I) and N(mean, std^2 I): (x.y)^k is the inner product of k-th moment tensors."""

    def moments(mu: np.ndarray, s: float) -> list[np.ndarray]:
        eye = np.eye(len(mu))
        pairs = [np.einsum(f"{i},{j}{k}->ijk", mu, eye) for i, j, k in ("ijk", "jik", "kij")]
        third = np.einsum("i,j,k->ijk", mu, mu, mu) + s**2 * sum(pairs)
        return [np.ones(1), mu, s**2 * eye + np.outer(mu, mu), third]

    d, both = len(mean), zip(moments(np.zeros_like(mean), 1.0), moments(mean, std), strict=True)
    return sum(comb(3, k) * d**-k * float(np.square(p - q).sum()) for k, (p, q) in enumerate(both))


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
    assert module._within(x, module._cubic())[2] == pytest.approx(left.item() / (9 * 6))
    k = (x @ y.T / 3 + 1) ** 3
    left = k - k.mean(0) - k.mean(1, keepdims=True) + k.mean()
    assert module._between(x, y, module._cubic())[3] == pytest.approx(np.square(left).sum() / (8 * 6))


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
    errors = np.array([figure.high - figure.value for figure in figures]) / Z95
    assert abs(values.mean() - truth) < 3 * values.std() / num_sets**0.5
    assert np.mean(errors**2) == pytest.approx(values.var(), rel=0.2)
    assert 0.93 <= np.mean([figure.low <= truth <= figure.high for figure in figures]) <= 0.97


def test_kernel_variance_is_unbiased_at_small_n() -> None:
    """At 20 and 15 images the pairs matter as much as the images."""
    pairs = [(normal(20, 8, 2 * i).numpy(), normal(15, 8, 2 * i + 1).numpy() + 0.3) for i in range(2000)]
    values, errors = np.array([module._mmd(a, b, module._cubic()) for a, b in pairs]).T
    assert np.mean(errors**2) == pytest.approx(values.var(), rel=0.12)


def test_kernel_interval_errs_wide_when_nothing_differs() -> None:
    figures = [kernel(normal(100, 8, 2 * i), normal(80, 8, 2 * i + 1), "x") for i in range(200)]
    assert np.mean([figure.low <= 0 <= figure.high for figure in figures]) >= 0.95


# Gaussian kernels


def gaussian_mmd(mean: float, std: float, d: int, sigma: float) -> float:
    """Squared MMD between N(0, I) and N(mean, std^2 I) in d dimensions, in closed form."""

    def expected(variance: float, shift: float) -> float:
        both = sigma**2 + variance
        return (sigma**2 / both) ** (d / 2) * float(np.exp(-d * shift**2 / (2 * both)))

    return expected(2, 0) + expected(2 * std**2, 0) - 2 * expected(1 + std**2, mean)


def test_gaussian_kernel_is_the_mean_over_pairs_at_the_median_of_the_reference_set() -> None:
    a, b = normal(31, 5, 0), normal(23, 5, 1) + 0.4
    sigma = torch.pdist(b).median()
    k = [torch.exp(-(torch.cdist(x, y) ** 2) / (2 * sigma**2)) for x, y in ((a, a), (b, b), (a, b))]
    within = [(m.sum() - m.trace()) / (len(m) * (len(m) - 1)) for m in k[:2]]
    found = gaussian(a, b, "x")
    assert found.value == pytest.approx(float(sum(within) - 2 * k[2].mean()), abs=1e-12)
    assert found.name == "kernel distance (rbf, median bandwidth of the reference set) (x)"
    assert f"bandwidth {sigma:.6g}" in found.target


def test_gaussian_kernel_interval_covers_the_true_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bandwidth", lambda _: 3.0)
    truth = gaussian_mmd(0.4, 1.2, 6, 3.0)
    figures = [gaussian(normal(120, 6, 2 * i), 0.4 + 1.2 * normal(100, 6, 2 * i + 1), "x") for i in range(1000)]
    values = np.array([figure.value for figure in figures])
    assert abs(values.mean() - truth) < 3 * values.std() / len(values) ** 0.5
    assert 0.93 <= np.mean([figure.low <= truth <= figure.high for figure in figures]) <= 0.97


def test_a_collapsed_reference_set_has_no_bandwidth() -> None:
    with pytest.raises(Refused, match="are alike"):
        gaussian(normal(40, 4, 0), torch.ones(40, 4), "x")


def published_cmmd(x: Tensor, y: Tensor) -> float:
    """The mean over all pairs, also of a row with itself, on unit rows; times 1000."""
    x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in (x, y))
    k = [torch.exp(-(torch.cdist(p, q) ** 2) / 200).mean() for p, q in ((x, x), (y, y), (x, y))]
    return 1000 * float(k[0] + k[1] - 2 * k[2])


def test_cmmd_is_the_published_recipe_and_tells_its_bias() -> None:
    a, b = normal(40, 16, 0), normal(30, 16, 1) + 0.5
    found = cmmd(3 * a, b, CLIP)
    assert found.name == "CMMD (clip-vit-l14-336)"
    assert found.value == pytest.approx(published_cmmd(a, b), abs=1e-9)
    assert found.low <= found.value <= found.high
    assert "unbiased" in found.notes[0]


def test_cmmd_is_the_name_of_no_other_features() -> None:
    with pytest.raises(Refused, match="not of clip-8x2-4-16"):
        cmmd(normal(40, 8, 0), normal(40, 8, 1), "clip-8x2-4-16")

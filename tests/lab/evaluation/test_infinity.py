"""The Frechet distance of infinitely many images: true on normal features, and withheld where it would be a guess."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.evaluation.figure import Figure
from lab.evaluation.infinity import WEIGHTS, directions, frechet_infinity

pytest.importorskip("torch_fidelity")


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measured(a: Tensor, b: Tensor, extractor: str = "x") -> Figure:
    found = frechet_infinity(a, b, extractor)
    assert found is not None
    return found


@pytest.mark.parametrize(("shift", "std"), [(0.0, 1.0), (0.3, 1.0), (0.2, 1.3)])
@pytest.mark.parametrize("num_sets", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_the_truth_is_within_two_standard_errors(shift: float, std: float, num_sets: int) -> None:
    d = 8
    truth = d * shift**2 + d * (std - 1) ** 2
    figures = [measured(normal(110, d, 2 * i), shift + std * normal(100, d, 2 * i + 1)) for i in range(num_sets)]
    values = np.array([figure.value for figure in figures])
    assert abs(values.mean() - truth) < 2 * values.std(ddof=1) / num_sets**0.5 + 0.01
    assert np.mean([figure.low <= truth <= figure.high for figure in figures]) >= 0.92


def test_the_line_through_three_means_is_continued_to_no_parts() -> None:
    for powers in ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]):
        intercept = np.polyfit([1, 2, 3], powers, 1)[1]
        assert np.dot(WEIGHTS, powers) == pytest.approx(intercept, abs=1e-12)
    assert np.dot(WEIGHTS, [3.0, -1.0, 2.0]) == pytest.approx(np.polyfit([1, 2, 3], [3.0, -1.0, 2.0], 1)[1])


def test_it_is_withheld_below_four_images_per_feature_in_the_smallest_part() -> None:
    d = 16
    assert measured(normal(192, d, 0), normal(192, d, 1)).name == "frechet_distance-infinity (x)"
    assert frechet_infinity(normal(191, d, 0), normal(192, d, 1), "x") is None
    assert frechet_infinity(normal(2 * d, d, 0), normal(2 * d, d, 1), "x") is None
    assert measured(normal(192, d, 0), normal(192, d, 1), "inception-v3").name == "FID-infinity (inception-v3)"


def test_with_fewer_it_is_of_fixed_directions_under_that_name() -> None:
    a, b = normal(768, 130, 0), 1.5 * normal(768, 130, 1)
    found = measured(a, b, "inception-v3")
    assert found.name == "frechet_distance-infinity (inception-v3, 64 fixed directions of 130)"
    assert found.low <= 64 * 0.25 <= found.high
    assert frechet_infinity(a[1:], b, "x") is None


def test_the_directions_are_orthonormal_and_always_the_same() -> None:
    found = directions(130)
    np.testing.assert_allclose(found.T @ found, np.eye(64), atol=1e-12)
    assert abs(np.linalg.det(found[:64])) == pytest.approx(abs(np.linalg.det(directions(130)[:64])))
    # whatever the signs of a QR decomposition: the projection onto what they span
    assert float((found @ found.T)[0, 1]) == pytest.approx(PROJECTION, abs=1e-10)


PROJECTION = 0.040125177174857515

"""Precision, recall, density and coverage: loops over all pairs, closed forms, and how often intervals cover."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.errors import Refused
from lab.evaluation import support as module
from lab.evaluation.figure import Figure
from lab.evaluation.support import K_DENSITY, K_SUPPORT, support

pytest.importorskip("torch_fidelity")


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_name(a: Tensor, b: Tensor) -> dict[str, Figure]:
    return {figure.name.split()[0]: figure for figure in support(a, b, "x")}


def radius(points: np.ndarray, one: int, k: int) -> float:
    others = [float(np.linalg.norm(points[one] - other)) for i, other in enumerate(points) if i != one]
    return sorted(others)[k - 1]


def by_loops(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The four figures by their definitions, one pair at a time."""
    wide, narrow = ([radius(b, j, k) for j in range(len(b))] for k in (K_DENSITY, K_SUPPORT))
    own = [radius(a, i, K_SUPPORT) for i in range(len(a))]
    far = [[float(np.linalg.norm(x - y)) for y in b] for x in a]
    sample, real = range(len(a)), range(len(b))
    return {
        "precision": float(np.mean([any(far[i][j] <= narrow[j] for j in real) for i in sample])),
        "recall": float(np.mean([any(far[i][j] <= own[i] for i in sample) for j in real])),
        "density": float(np.mean([sum(far[i][j] <= wide[j] for j in real) / K_DENSITY for i in sample])),
        "coverage": float(np.mean([any(far[i][j] <= wide[j] for i in sample) for j in real])),
    }


@pytest.mark.parametrize("shift", [0.0, 0.7, 50.0])
def test_all_four_agree_with_their_definitions(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = 0.7 * normal(43, 4, 0) + shift, normal(37, 4, 1)
    expected = by_loops(a.numpy(), b.numpy())
    for rows in (1024, 7):
        monkeypatch.setattr(module, "_ROWS", rows)
        found = by_name(a, b)
        assert {name: figure.value for name, figure in found.items()} == pytest.approx(expected, abs=1e-12)
        assert all(figure.low <= figure.value <= figure.high for figure in found.values())


def test_two_sets_of_one_distribution_have_density_one_and_the_coverage_of_chance() -> None:
    """1 - C(m - 1, k) / C(m + n - 1, k), in any dimension."""
    n, m = 60, 50
    found = [by_name(normal(n, 3, 2 * i), normal(m, 3, 2 * i + 1)) for i in range(200)]
    missed = np.prod([(m - 1 - i) / (m + n - 1 - i) for i in range(K_DENSITY)])
    coverage = np.array([each["coverage"].value for each in found])
    density = np.array([each["density"].value for each in found])
    assert abs(coverage.mean() - (1 - missed)) < 3 * coverage.std() / 200**0.5
    # a ball of the k-th of m - 1 neighbours holds k / m of the distribution
    assert abs(density.mean() - 1) < 3 * density.std() / 200**0.5


def test_a_collapsed_set_is_precise_and_covers_nothing() -> None:
    b = normal(80, 4, 1)
    found = by_name(b[:1].expand(40, 4) + 1e-9 * normal(40, 4, 2), b)
    assert found["precision"].value == 1
    assert found["recall"].value < 0.05
    assert found["coverage"].value < 0.2


def shares_in(images: Tensor, centres: Tensor, k: int) -> Tensor:
    """In how many balls of the centres each image lies."""
    radii = torch.cdist(centres, centres).kthvalue(k + 1).values
    return (torch.cdist(images, centres) <= radii).sum(dim=1).double()


@pytest.mark.parametrize("num_sets", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_intervals_cover_what_other_images_of_a_set_give(num_sets: int) -> None:
    """Of the samples for precision and density, of the reference set for recall; the other set as it is."""
    fixed, many = normal(80, 3, 0), normal(20_000, 3, 10**6)
    in_narrow, in_wide = (shares_in(0.8 * many + 0.5, fixed, k) for k in (K_SUPPORT, K_DENSITY))
    truth = {
        "precision": float((in_narrow > 0).double().mean()),
        "density": float(in_wide.mean()) / K_DENSITY,
        "recall": float((shares_in(many, fixed, K_SUPPORT) > 0).double().mean()),
    }
    hits = dict.fromkeys(truth, 0)
    for seed in range(1, num_sets + 1):
        drawn = normal(120, 3, seed)
        found = by_name(0.8 * drawn + 0.5, fixed) | {"recall": by_name(fixed, drawn)["recall"]}
        for name, value in truth.items():
            hits[name] += found[name].low <= value <= found[name].high
    for name, count in hits.items():
        assert 0.91 <= count / num_sets <= 0.985, name


def test_what_a_figure_says() -> None:
    found = by_name(normal(40, 4, 0), normal(30, 4, 1))
    assert (found["precision"].n, found["precision"].m) == (40, 30)
    assert found["recall"].interval == "95 %, Wilson over reference images"
    assert found["recall"].target == "share of all reference images, against these 40 samples"


def test_no_data_is_an_error() -> None:
    with pytest.raises(Refused, match="at least 6 images in each set, got 0"):
        support(torch.empty(0, 4), normal(40, 4, 0), "x")

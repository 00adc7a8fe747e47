"""The Vendi score: effective numbers that are known, and how often its interval covers."""

import numpy as np
import pytest
import torch

from lab.errors import Refused
from lab.evaluation.vendi import vendi, vendi_value


def test_it_counts_what_differs() -> None:
    kinds = torch.eye(8, dtype=torch.float64)
    assert vendi(kinds[:1].expand(40, 8), "x").value == pytest.approx(1)
    assert vendi(kinds.repeat(5, 1), "x").value == pytest.approx(8)
    assert vendi(kinds.repeat(5, 1) * torch.arange(1, 41)[:, None], "x").value == pytest.approx(8)  # length is nothing
    uneven = torch.cat((kinds[:1].expand(30, 8), kinds[1:2].expand(10, 8)))
    assert vendi(uneven, "x").value == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_it_is_the_entropy_of_the_cosines_of_all_pairs(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).standard_normal(shape)
    cosines = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in rows] for x in rows])
    shares = np.linalg.eigvalsh(cosines / len(rows)).clip(1e-300)
    assert vendi_value(rows) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))


@pytest.mark.parametrize("num_sets", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_its_interval_covers_the_expected_value(num_sets: int) -> None:
    generator = np.random.default_rng(1)
    figures = [vendi(torch.from_numpy(generator.standard_normal((120, 6)) + 0.5), "x") for _ in range(num_sets)]
    truth = np.mean([figure.value for figure in figures])
    assert np.mean([figure.low <= truth <= figure.high for figure in figures]) >= 0.92
    assert figures[0].m == 0


def test_no_data_is_an_error() -> None:
    with pytest.raises(Refused, match="got 0"):
        vendi(torch.empty(0, 4), "x")

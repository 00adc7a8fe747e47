"""Copies are told from new images, in the right number, and chance is not taken for copying."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from lab.errors import NonFinite, Refused
from lab.evaluation.memorization import Memorization, memorization, nearest
from lab.randomness import key

TRAINING, HELDOUT = 600, 200


def images(num: int, seed: int, width: int = 12) -> Tensor:
    """New images of a world of clusters: some lie near to others by chance."""
    rng = key(seed, "images", 0)
    centres = key(0, "centres", 0).normal(size=(40, width)) * 3
    return torch.from_numpy(centres[rng.integers(40, size=num)] + rng.normal(size=(num, width)))


def judged(share: float, num: int = 400, seed: int = 0, blur: float = 0.05) -> Memorization:
    """Samples of which a share are blurred copies of training images."""
    training, heldout, new = (images(n, 3 * seed + k) for k, n in enumerate((TRAINING, HELDOUT, num)))
    rng = key(seed, "copies", 0)
    copies = training[rng.integers(TRAINING, size=num)] + blur * torch.from_numpy(rng.normal(size=new.shape))
    is_copy = torch.arange(num) < share * num
    samples = torch.where(is_copy[:, None], copies, new)
    return memorization(nearest(samples, training), nearest(heldout, training), TRAINING)


def test_runs_with_none_some_and_all_images_memorised_are_told_apart() -> None:
    none, tenth, third, whole = (judged(share) for share in (0, 0.1, 0.3, 1))
    assert none.low == 0
    assert tenth.low > 0
    assert none.high < third.low < third.high < whole.low
    assert tenth.share < third.low
    assert "no sign of copies" in none.verdict
    assert f"{tenth.share:.0%} of the samples are copies" in tenth.verdict
    assert "100% of the samples are copies" in whole.verdict


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_the_interval_covers_the_true_share(share: float) -> None:
    found = [judged(share, 200, seed) for seed in range(60)]
    assert all(each.low <= each.share <= each.high for each in found)
    assert np.mean([each.low <= share <= each.high for each in found]) >= 0.93


def test_the_probability_of_new_images_is_uniform() -> None:
    pooled = torch.cat([judged(0, 50, seed).probabilities for seed in range(30)])
    assert kstest(pooled.numpy(), "uniform").pvalue > 0.001
    assert judged(1.0).probabilities.max() < 0.05


def test_neighbours_are_those_of_a_loop() -> None:
    some, others = images(300, 1), images(50, 2)
    found = nearest(some, others)
    for row in range(0, 300, 37):
        gaps = [float((some[row] - other).square().sum().sqrt()) for other in others]
        assert found.indices[row] == int(np.argmin(gaps))
        assert found.distances[row] == pytest.approx(min(gaps))


def test_the_exact_interval_of_a_proportion() -> None:
    from lab.evaluation.memorization import _clopper_pearson

    for k, n in ((1, 40), (10, 200), (3, 60)):
        assert _clopper_pearson(k, n) == pytest.approx((beta.ppf(0.025, k, n - k + 1), beta.ppf(0.975, k + 1, n - k)))


def test_too_few_images_say_nothing() -> None:
    some = nearest(images(10, 0), images(20, 1))
    with pytest.raises(Refused, match="10 samples and 10 held-out images"):
        memorization(some, some, 20)
    with pytest.raises(Refused, match="no images to look for neighbours among"):
        nearest(images(10, 0), images(0, 1))
    with pytest.raises(NonFinite, match="not finite"):
        nearest(torch.full((1, 12), torch.nan), images(3, 1))

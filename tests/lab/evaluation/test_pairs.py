"""Measures of pairs: closed forms, and SSIM against scipy's Gaussian filter and a loop over one window."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from lab.evaluation import pairs
from lab.evaluation.intervals import mean
from lab.evaluation.pairs import compare, figures, hold_to_input, psnr, ssim
from lab.images import to_uint8
from lab.resampling import bicubic

LEVEL = 2 / 255


def drawn(*shape: int, seed: int = 0, spread: float = 0.3) -> Tensor:
    """Smooth random images."""
    coarse = torch.randn(shape[0], 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (spread * bicubic(coarse, (shape[-2], shape[-1]))).clamp(-1, 1)


def test_psnr_of_a_known_error() -> None:
    wanted = torch.full((3, 3, 16, 12), 100 * LEVEL - 1)
    images = wanted + LEVEL * torch.tensor([1.0, 5.0, 100.0])[:, None, None, None]
    expected = [20 * math.log10(255 / off) for off in (1, 5, 100)]
    assert psnr(images, wanted).tolist() == pytest.approx(expected)


def test_psnr_is_of_what_a_file_shows() -> None:
    wanted = torch.ones(1, 3, 8, 8)
    assert psnr(wanted + 0.7, wanted) == psnr(wanted, wanted)  # clamped
    assert psnr(wanted - 0.4 * LEVEL, wanted) == psnr(wanted, wanted)  # rounded
    one_off = wanted.clone()
    one_off[0, 1, 2, 3] -= LEVEL
    assert psnr(wanted, wanted).item() == pytest.approx(10 * math.log10(255**2 * 192))
    torch.testing.assert_close(psnr(one_off, wanted), psnr(wanted, wanted))


def test_ssim_is_that_of_scipy_s_gaussian_filter() -> None:
    """Truncated at 3.5 deviations its window has 11 pixels, and where the window fits its border does not matter."""
    images = drawn(2, 3, 24, 31)
    others = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    expected = []
    for image, other in zip(images, others, strict=True):
        likeness = []
        for x, y in zip(*(to_uint8(each).double().numpy() for each in (image, other)), strict=True):

            def blurred(plane: np.ndarray) -> np.ndarray:
                return ndimage.gaussian_filter(plane, 1.5, truncate=3.5)[5:-5, 5:-5]

            a, b = blurred(x), blurred(y)
            s, t, st = blurred(x * x) - a * a, blurred(y * y) - b * b, blurred(x * y) - a * b
            ratio = (2 * a * b + 6.5025) * (2 * st + 58.5225) / ((a * a + b * b + 6.5025) * (s + t + 58.5225))
            likeness.append(ratio.mean())
        expected.append(np.mean(likeness))
    assert 0.2 < expected[0] < 0.95
    assert ssim(images, others).tolist() == pytest.approx(expected, rel=1e-9)


def test_ssim_of_one_window_written_out() -> None:
    x, y = (drawn(1, 3, 11, 11, seed=seed) for seed in (0, 1))
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    found = []
    for c in range(3):
        places = [
            (weights[i][j] / total, *(int(to_uint8(e)[0, c, i, j]) for e in (x, y)))
            for i in range(11)
            for j in range(11)
        ]
        a, b = (sum(w * v[k] for w, *v in places) for k in (0, 1))
        s, t = (sum(w * (v[k] - m) ** 2 for w, *v in places) for k, m in ((0, a), (1, b)))
        st = sum(w * (p - a) * (q - b) for w, p, q in places)
        found.append((2 * a * b + 6.5025) * (2 * st + 58.5225) / ((a * a + b * b + 6.5025) * (s + t + 58.5225)))
    assert ssim(x, y).item() == pytest.approx(sum(found) / 3, rel=1e-9)


def test_ssim_of_equal_images_is_1_and_small_ones_have_none() -> None:
    images = drawn(2, 3, 16, 16)
    torch.testing.assert_close(ssim(images, images), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(images[..., :10], images[..., :10])


def test_images_are_compared_one_by_one_and_by_named_judges() -> None:
    images, wanted = drawn(3, 3, 16, 16), drawn(3, 3, 16, 16, seed=1)

    class Judge(torch.nn.Module):
        def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
            assert ((wanted + 1) * 127.5 - ((wanted + 1) * 127.5).round()).abs().max() < 1e-4
            return (found - wanted).abs().flatten(1).mean(dim=1)

    whole = compare(images, wanted, {"judge": Judge()})
    assert list(whole) == ["psnr", "ssim", "perceptual_distance (judge)"]
    for k in range(3):
        for name, values in compare(images[k : k + 1], wanted[k : k + 1], {"judge": Judge()}).items():
            torch.testing.assert_close(values, whole[name][k : k + 1])


def test_what_an_enlarged_image_kept_of_its_input() -> None:
    small = drawn(2, 3, 12, 12)
    large = bicubic(small, (48, 48))
    same = hold_to_input(large, small)
    assert (same["consistency"] > 38).all()
    assert (same["colour_shift"] < 0.1).all()
    fine = large.clone()
    fine[..., ::2, ::2] += 0.1
    fine[..., 1::2, ::2] -= 0.1  # detail that the small image cannot hold
    assert (hold_to_input(fine, small)["consistency"] > 38).all()
    shifted = hold_to_input(large + torch.tensor([3.0, -6.0, 0.0])[:, None, None] * LEVEL, small)
    torch.testing.assert_close(shifted["colour_shift"], torch.full((2,), 3.0).double(), rtol=0, atol=0.1)
    assert (shifted["consistency"] < 40).all()
    centre = large.mean(dim=(2, 3), keepdim=True)
    louder = hold_to_input(centre + 1.2 * (large - centre), small)["contrast"]
    torch.testing.assert_close(louder, 1.2 * (same["contrast"] + 1) - 1, rtol=0, atol=0.02)


def test_the_contrast_of_an_image_of_one_colour_is_not_divided_by_nothing() -> None:
    small = torch.zeros(1, 3, 8, 8)
    assert hold_to_input(torch.zeros(1, 3, 16, 16), small)["contrast"].item() == 0


def test_a_figure_is_the_mean_over_the_images_of_all_batches() -> None:
    parts = [{"psnr": torch.tensor([30.0, 20.0])}, {"psnr": torch.tensor([10.0])}]
    figure = figures(parts)["psnr"]
    assert (figure.value, figure.n, figure.unit) == (20.0, 3, "dB")
    low, high = stats.t.interval(0.95, 2, loc=20, scale=10 / math.sqrt(3))
    assert (figure.low, figure.high) == pytest.approx((low, high))


def test_the_interval_of_a_mean_covers_it() -> None:
    rng = np.random.default_rng(0)
    covered = [f.low <= 1 <= f.high for f in (mean(rng.normal(1, 2, 5).tolist()) for _ in range(4000))]
    assert sum(covered) / 4000 == pytest.approx(0.95, abs=0.012)
    with pytest.raises(ValueError, match="at least 2 values"):
        mean([1.0])


def test_the_weights_of_the_window_are_those_of_a_gaussian() -> None:
    impulse = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    impulse[0, 0, 10, 10] = 1
    found = pairs._blurred(impulse)
    assert found.sum().item() == pytest.approx(1)
    assert (found[0, 0, 5, 5] / found[0, 0, 5, 8]).item() == pytest.approx(math.exp(9 / 4.5))

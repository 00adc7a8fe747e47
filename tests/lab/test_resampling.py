"""Resampling: Pillow's filters, where pixels are areas and nothing moves."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lab.resampling import bicubic, lanczos


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(5, 7), (12, 10), (24, 30), (1, 40)])
def test_both_are_pillow_s_filters_on_floats(size: tuple[int, int]) -> None:
    images = drawn(2, 3, 12, 10)
    for resize, method in ((bicubic, Image.Resampling.BICUBIC), (lanczos, Image.Resampling.LANCZOS)):
        found = resize(images, size)
        assert found.shape == (2, 3, *size)
        plane = Image.fromarray(images[1, 2].numpy()).resize(size[::-1], method)
        torch.testing.assert_close(found[1, 2], torch.from_numpy(np.array(plane)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resize", [bicubic, lanczos])
def test_what_is_even_stays_even_and_a_slope_stays_where_it_is(resize) -> None:
    flat = torch.full((1, 3, 9, 9), 0.7)
    torch.testing.assert_close(resize(flat, (4, 31)), torch.full((1, 3, 4, 31), 0.7))
    slope = (torch.arange(32) + 0.5).expand(1, 1, 32, 32)
    inside = resize(slope, (8, 8))[0, 0, :, 2:-2]
    torch.testing.assert_close(inside, (4 * torch.arange(8) + 2.0)[2:-2].expand(8, -1), rtol=0, atol=0.05)


def test_the_bicubic_filter_has_a_gradient() -> None:
    images = drawn(1, 1, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bicubic(x, (3, 4)), images)

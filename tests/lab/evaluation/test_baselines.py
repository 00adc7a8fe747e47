"""Baselines: least squares finds the map that made the data, and no other does better."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from lab.data.shapes import Shapes, ShapesConfig
from lab.evaluation.baselines import LinearDecoder, fit, linear_codec, linear_filter, thumbnail, thumbnail_side
from lab.evaluation.pairs import psnr
from lab.images import from_uint8, to_uint8
from lab.resampling import bicubic


def shapes(num: int, size: int = 32, start: int = 0) -> Tensor:
    source = Shapes(ShapesConfig(size=size, mixture={"full": 1.0}))
    return to_uint8(torch.stack([source.sample(0, slot).image for slot in range(start, start + num)]))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(num: int, size: int) -> Tensor:
    return torch.randint(0, 256, (num, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_the_map_that_made_the_images_is_found() -> None:
    true = LinearDecoder(drawn(2 * 9 + 1, 3 * 4), kernel=3, factor=2)
    batches = [drawn(5, 2, 6, 7, seed=seed) for seed in (1, 2)]
    found = fit([(maps, true(maps)) for maps in batches], kernel=3, factor=2)
    torch.testing.assert_close(found.weights, true.weights, rtol=0, atol=1e-6)
    assert true(batches[0]).shape == (5, 3, 12, 14)


def test_a_decoder_is_local_and_repeats_the_border() -> None:
    weights = torch.zeros(3 * 3 + 1, 4, dtype=torch.float64)
    weights[3], weights[9, 2] = 1, 10  # the neighbour on the left, and a constant for the lower left pixel
    decoder = LinearDecoder(weights, kernel=3, factor=2)
    found = decoder(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).double())
    expected = [[1, 1, 1, 1], [11, 1, 11, 1], [3, 3, 3, 3], [13, 3, 13, 3]]
    assert found[0, 0].tolist() == expected


def test_a_thumbnail_has_no_more_numbers_than_the_latent() -> None:
    for side, factor, channels in ((64, 4, 4), (256, 8, 4), (64, 8, 16), (32, 16, 1)):
        found = thumbnail_side(side, factor, channels)
        numbers = channels * (side // factor) ** 2
        assert 3 * found**2 <= numbers < 3 * (found + 1) ** 2
    assert thumbnail_side(256, 8, 4) == 36


def test_a_thumbnail_loses_what_is_fine() -> None:
    images = from_uint8(shapes(4))
    quality = [psnr(thumbnail(images, side), images).mean() for side in (4, 8, 16, 31)]
    assert quality == sorted(quality)
    assert thumbnail(images, 8).shape == images.shape


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    images = shapes(16)
    codec = linear_codec(images, factor=4, channels=5)
    blocks = rearrange(from_uint8(images).double(), "b c (h y) (w x) -> (b h w) (c y x)", y=4, x=4)
    _, _, v = torch.linalg.svd(blocks - blocks.mean(dim=0), full_matrices=False)
    torch.testing.assert_close((codec.components @ v[:5].T).abs(), torch.eye(5).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(codec.mean, blocks.mean(dim=0))
    expected = (blocks - blocks.mean(dim=0)) @ codec.components.T
    torch.testing.assert_close(rearrange(codec.encode(from_uint8(images)), "b c h w -> (b h w) c"), expected)


def test_the_linear_codec_keeps_everything_where_it_may() -> None:
    images = noise(8, 16)
    codec = linear_codec(images, factor=2, channels=12)
    torch.testing.assert_close(codec(from_uint8(images)), from_uint8(images), rtol=0, atol=1e-4)


def test_the_decoder_of_3_x_3_blocks_is_better_than_the_components_alone_and_than_the_thumbnail() -> None:
    images, fresh = shapes(64), from_uint8(shapes(16, start=1000))
    codec = linear_codec(images, factor=4, channels=4)
    alone = torch.einsum("bkhw,kp->bphw", codec.encode(fresh), codec.components) + codec.mean[:, None, None]
    alone = torch.nn.functional.pixel_shuffle(alone, 4)
    quality = [psnr(each, fresh).mean() for each in (thumbnail(fresh, thumbnail_side(32, 4, 4)), alone, codec(fresh))]
    assert quality[0] < quality[2]
    assert quality[1] + 0.3 < quality[2]


def halved(images: Tensor) -> Tensor:
    """Bytes at half the size."""
    return to_uint8(bicubic(from_uint8(images), (images.shape[2] // 2, images.shape[3] // 2)))


def test_no_filter_is_better_on_what_it_was_fitted_to() -> None:
    images = shapes(24)
    enlarge, wanted, small = linear_filter(halved(images), images), from_uint8(images), from_uint8(halved(images))
    best = (enlarge(small) - wanted).square().mean()
    assert best < 0.8 * (bicubic(small, (32, 32)) - wanted).square().mean()
    for seed in range(3):
        other = enlarge(small + 0.02 * drawn(*small.shape, seed=seed).float())
        assert (other - wanted).square().mean() > best


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_the_filter_is_the_same_for_each_colour(colour: int) -> None:
    enlarge = linear_filter(halved(shapes(8)), shapes(8))
    small = drawn(1, 3, 6, 5).float()
    alone = enlarge(small[:, colour : colour + 1].expand(-1, 3, -1, -1))
    torch.testing.assert_close(alone[:, 0], enlarge(small)[:, colour])

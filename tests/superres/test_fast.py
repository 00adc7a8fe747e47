"""The fast decoder: bicubic at birth, local ever after."""

import pytest
import torch
from torch import Tensor

from lab.resampling import bicubic
from lab.runtime import CPU
from superres.fast import Enlarger, FastConfig, FastDecoder, build
from vae.codec import Pixels


def awake(config: FastConfig) -> FastDecoder:
    """What it might be after some training: no branch is closed."""
    model = build(config, Pixels(), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_it_begins_as_the_bicubic_filter(factor: int) -> None:
    small = drawn(2, 3, 7, 10)
    model = build(FastConfig(factor=factor, width=8, depth=2), Pixels(), seed=0)
    assert torch.equal(model(small), bicubic(small, (7 * factor, 10 * factor)))
    assert (awake(model.config)(small) - model(small)).abs().mean() > 0.01


def test_every_weight_learns_after_a_step() -> None:
    model, small = build(FastConfig(factor=2, width=8, depth=2), Pixels(), seed=0), drawn(2, 3, 8, 8)
    for _ in range(3):  # the last convolution opens what is before it, then each block's own
        model.zero_grad()
        (model(small) - drawn(2, 3, 16, 16, seed=1)).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("factor", [2, 4])
def test_it_sees_as_far_as_its_reach_and_no_further(factor: int, depth: int) -> None:
    config = FastConfig(factor=factor, width=6, depth=depth)
    model, small = awake(config).double(), drawn(1, 3, 1, 41).double().expand(1, 3, 41, 41).clone().requires_grad_()
    block = model(small)[0, :, 20 * factor : 21 * factor, 20 * factor : 21 * factor]
    (slope,) = torch.autograd.grad(block.sum(), small)
    seen = slope[0].abs().amax(dim=0) > 0
    rows, columns = (seen.any(dim=d).nonzero().flatten() for d in (1, 0))
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (20 - config.reach, 20 + config.reach)


@pytest.mark.parametrize("tile", [1, 5, 16, 64])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_tiles_are_the_whole(tile: int, factor: int) -> None:
    model, small = awake(FastConfig(factor=factor, width=8, depth=1)), drawn(1, 3, 21, 34)
    whole = Enlarger(model, CPU)(small)
    assert Enlarger(model, CPU, tile).factor == factor
    torch.testing.assert_close(Enlarger(model, CPU, tile)(small), whole, rtol=0, atol=1e-5)


def test_a_far_tile_is_enlarged_as_one_at_the_corner() -> None:
    """Where float32 would have run out of digits for the places of pixels."""
    model, small = awake(FastConfig(factor=4, width=4, depth=1)), drawn(1, 3, 3, 4000)
    torch.testing.assert_close(Enlarger(model, CPU, 500)(small), Enlarger(model, CPU)(small), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 1)])
def test_a_picture_of_one_pixel_is_enlarged_too(height: int, width: int) -> None:
    model, small = awake(FastConfig(factor=4, width=4, depth=1)), drawn(1, 3, height, width)
    assert Enlarger(model, CPU, 4)(small).shape == (1, 3, 4 * height, 4 * width)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    model, small = awake(FastConfig(factor=2, width=8, depth=2)), drawn(3, 3, 8, 8)
    torch.testing.assert_close(model(small)[1:2], model(small[1:2]), rtol=0, atol=1e-5)

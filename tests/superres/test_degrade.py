"""What makes pictures small: a function of picture and slot alone, within its limits."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lab.data.shapes import Shapes, ShapesConfig
from lab.images import from_uint8, to_uint8
from lab.resampling import bicubic
from superres.degrade import Bicubic, Blind, _blur, degrade

NOTHING = Blind(blur=0, noise=0, quality=(100, 100))


def shapes(num: int, size: int = 32) -> Tensor:
    source = Shapes(ShapesConfig(size=size, mixture={"full": 1.0}))
    return torch.stack([source.sample(0, slot).image for slot in range(num)])


@pytest.mark.parametrize("config", [Bicubic(), Blind()])
def test_a_small_picture_depends_on_its_large_one_and_its_slot_alone(config: Bicubic | Blind) -> None:
    images = shapes(4)
    whole = degrade(images, 2, config, 3, (10, 11, 12, 13))
    assert whole.shape == (4, 3, 16, 16)
    torch.rand(7)  # other randomness does not matter
    assert torch.equal(degrade(images[2:3], 2, config, 3, (12,)), whole[2:3])
    assert torch.equal(degrade(images.flip(0), 2, config, 3, (13, 12, 11, 10)), whole.flip(0))
    other = degrade(images, 2, config, 3, (20, 21, 22, 23))
    assert torch.equal(other, whole) == isinstance(config, Bicubic)
    assert torch.equal(degrade(images, 2, config, 4, (10, 11, 12, 13)), whole) == isinstance(config, Bicubic)


@pytest.mark.parametrize("config", [Bicubic(), Blind()])
def test_a_small_picture_is_one_of_bytes(config: Bicubic | Blind) -> None:
    small = degrade(shapes(3), 4, config, 0, (0, 1, 2))
    torch.testing.assert_close(from_uint8(to_uint8(small)), small, rtol=0, atol=1e-6)
    assert small.dtype == torch.float32
    assert degrade(shapes(3).double(), 4, config, 0, (0, 1, 2)).dtype == torch.float64


def test_without_more_it_is_the_bicubic_filter() -> None:
    images = shapes(3)
    small = degrade(images, 2, Bicubic(), 0, (0, 1, 2))
    torch.testing.assert_close(small, bicubic(images, (16, 16)).clamp(-1, 1), rtol=0, atol=1 / 255 + 1e-6)


def test_every_part_of_the_blind_kind_spoils() -> None:
    images, slots = shapes(16), range(16)
    clean = degrade(images, 2, Bicubic(), 0, slots)

    def off(**limits: object) -> float:
        config = Blind(**{**NOTHING.model_dump(), **limits})
        return (degrade(images, 2, config, 0, slots) - clean).square().mean().sqrt().item() * 127.5

    nothing = off()
    assert nothing < 15  # other filters, and JPEG, which halves the resolution of colours even at its best
    for spoilt in (off(blur=4), off(noise=40), off(quality=(10, 20))):
        assert spoilt > nothing + 3


def test_noise_is_as_loud_as_it_is_said_to_be() -> None:
    grey = torch.zeros(64, 3, 32, 32)
    small = degrade(grey, 2, Blind(blur=0, noise=30, quality=(100, 100)), 0, range(64))
    luma = torch.tensor([0.299, 0.587, 0.114])  # what JPEG keeps in full
    levels = torch.einsum("c,bchw->bhw", luma / luma.norm(), small).flatten(1).std(dim=1) * 127.5
    assert levels.max() < 31
    assert levels.mean().item() == pytest.approx(15, abs=3)


@pytest.mark.parametrize(("first", "second", "angle"), [(2.0, 0.7, 0.0), (1.5, 1.5, 0.7), (2.0, 0.7, math.pi / 4)])
def test_the_blur_has_the_deviations_it_is_said_to_have(first: float, second: float, angle: float) -> None:
    impulse = torch.zeros(3, 41, 41)
    impulse[:, 20, 20] = 1
    found = _blur(impulse, first, second, angle)[0]
    offsets = torch.arange(41.0) - 20
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    assert found.sum().item() == pytest.approx(1, rel=1e-4)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    assert (found * along.square()).sum().sqrt().item() == pytest.approx(first, rel=0.03)
    assert (found * across.square()).sum().sqrt().item() == pytest.approx(second, rel=0.05)
    torch.testing.assert_close(_blur(torch.full((3, 9, 9), 0.4), first, second, angle), torch.full((3, 9, 9), 0.4))


def test_a_quality_from_the_best_to_the_worst_is_refused() -> None:
    with pytest.raises(ValidationError, match="from the worst to the best"):
        Blind(quality=(90, 40))

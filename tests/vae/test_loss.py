"""The parts of the reconstruction's loss."""

import math

import pytest
import torch
from torch import Tensor

from lab.evaluation.perceptual import Lite0, Perceptual
from vae.loss import LossConfig, psnr


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


IMAGES, OTHERS = drawn(2, 3, 4, 6).tanh(), drawn(2, 3, 4, 6, seed=1)


@pytest.mark.parametrize(("pixel", "power"), [("l1", 1), ("l2", 2)])
def test_the_pixel_loss_is_a_mean_so_it_is_the_same_at_every_size(pixel: str, power: int) -> None:
    losses, metrics = LossConfig(pixel=pixel)(OTHERS, IMAGES, None)
    expected = [
        sum(abs(d) ** power for d in (o - i).flatten().tolist()) / 72 for o, i in zip(OTHERS, IMAGES, strict=True)
    ]
    torch.testing.assert_close(losses, torch.tensor(expected).double())
    assert torch.equal(metrics["pixel"], losses)
    torch.testing.assert_close(
        LossConfig(pixel=pixel)(OTHERS.repeat(1, 1, 3, 2), IMAGES.repeat(1, 1, 3, 2), None)[0], losses
    )


def test_the_perceptual_distance_is_added_with_its_weight() -> None:
    network = Perceptual([torch.nn.Identity()], [0.0] * 3, [1.0] * 3).double()
    plain, _ = LossConfig()(OTHERS, IMAGES, None)
    losses, metrics = LossConfig(perceptual=Lite0(weight=0.3))(OTHERS, IMAGES, network)
    torch.testing.assert_close(metrics["perceptual"], network(OTHERS, IMAGES))
    torch.testing.assert_close(losses, plain + 0.3 * metrics["perceptual"])


@pytest.mark.parametrize("levels", [1, 16])
def test_the_signal_to_noise_ratio_is_that_of_bytes(levels: int) -> None:
    images = torch.zeros(1, 3, 4, 4)
    found = psnr(images + levels / 127.5, images)
    assert found.item() == pytest.approx(20 * math.log10(255 / levels), rel=1e-5)
    assert psnr(images, images).item() == pytest.approx(120)

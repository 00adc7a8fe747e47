"""The shape of the autoencoder, and how far its outputs see."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lab.layers import PositionNorm, is_edge
from vae.autoencoder import Autoencoder, AutoencoderConfig, build
from vae.posterior import Gaussian
from vae.quantizer import FiniteScalar, VectorQuantized


def config(**changes: object) -> AutoencoderConfig:
    return AutoencoderConfig(**{"widths": (8, 12), "latent": Gaussian(channels=3), **changes})


def awake(made: AutoencoderConfig) -> Autoencoder:
    """What it might be after some training: no branch is closed."""
    model = build(made, seed=0).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("patch", "widths", "factor"), [(1, (8, 12), 2), (2, (8, 12), 4), (1, (4, 8, 12, 16), 8), (8, (8, 8, 8), 32)]
)
@pytest.mark.parametrize(
    "latent", [Gaussian(channels=5), VectorQuantized(channels=2, codes=7), FiniteScalar(levels=(3, 4, 5))]
)
def test_images_become_latents_and_come_back(
    patch: int, widths: tuple[int, ...], factor: int, latent: Gaussian | VectorQuantized | FiniteScalar
) -> None:
    made = config(patch=patch, widths=widths, latent=latent)
    model, images = awake(made), drawn(2, 3, 3 * factor, 2 * factor)
    noise = drawn(2, latent.channels, 3, 2, seed=1)
    reconstructions, posterior = model(images, noise)
    assert made.factor == factor
    assert posterior.mean.shape == posterior.std.shape == noise.shape
    assert (reconstructions.shape, posterior.penalty.shape) == (images.shape, (2,))
    torch.testing.assert_close(model.decode(posterior.mean + posterior.std * noise), reconstructions)


@pytest.mark.parametrize("norm", ["position", "group"])
@pytest.mark.parametrize("middle_attention", [False, True])
def test_an_image_does_not_depend_on_its_batch(norm: str, middle_attention: bool) -> None:
    model = awake(config(norm=norm, middle_attention=middle_attention))
    images, noise = drawn(3, 3, 8, 8), drawn(3, 3, 4, 4, seed=1)
    whole, alone = model(images, noise)[0], model(images[1:2], noise[1:2])[0]
    torch.testing.assert_close(whole[1:2], alone)


@pytest.mark.parametrize(
    ("patch", "widths", "depth"),
    [(1, (4, 4), 1), (2, (4,), 1), (2, (4, 4), 2), (1, (4, 4, 4), 1), (1, (4, 4, 4, 4), 1)],
)
def test_a_pixel_sees_as_far_as_the_reach_and_no_further(patch: int, widths: tuple[int, ...], depth: int) -> None:
    made = config(patch=patch, widths=widths, depth=depth)
    model, reach = awake(made), made.reach()
    side = 2 * reach + 5
    latents = drawn(1, 3, 1, side).expand(1, 3, side, side).clone().requires_grad_()
    seen = []
    for pixel in range((side // 2) * made.factor, (side // 2 + 1) * made.factor):
        image = model.decode(latents)
        (slope,) = torch.autograd.grad(image[0, :, pixel, pixel].sum(), latents)
        rows = slope[0].abs().sum(dim=(0, 2)).nonzero()[:, 0] - side // 2
        seen.append(int(rows.abs().max()))
    assert max(seen) == reach


@pytest.mark.parametrize(("norm", "attention"), [("group", False), ("position", True)])
def test_group_norms_and_attention_see_everything(norm: str, attention: bool) -> None:
    made = config(norm=norm, middle_attention=attention)
    assert config().is_local
    assert not made.is_local
    latents = drawn(1, 3, 31, 31).requires_grad_()
    (slope,) = torch.autograd.grad(awake(made).decode(latents)[0, :, 0, 0].sum(), latents)
    assert slope[0, :, -1, -1].any()


def test_the_norm_by_position_is_the_closed_form() -> None:
    x = drawn(2, 5, 3, 4)
    expected = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(PositionNorm(5).double()(x), expected)


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = build(config(), seed=3).state_dict()
    torch.manual_seed(2)
    same, other = build(config(), seed=3).state_dict(), build(config(), seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["decoder.stem.weight"], other["decoder.stem.weight"])


def test_the_first_and_last_layers_are_marked_for_the_optimizer() -> None:
    model = build(config(), seed=0)
    marked = [name for name, parameter in model.named_parameters() if is_edge(parameter)]
    assert marked == [
        "encoder.stem.1.weight",
        "encoder.head.2.weight",
        "decoder.stem.weight",
        "decoder.head.0.2.weight",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (8,)}, "1 times the latent's; it is to be one of 2, 4, 8, 16, 32"),
        ({"patch": 3}, "6 times"),
        ({"patch": 64}, "128 times"),
        ({"widths": (8, 96), "middle_attention": True}, "a last width that 64 divides, got 96"),
        ({"widths": ()}, "at least 1 item"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_blocks_can_be_computed_again_instead_of_kept() -> None:
    model, images, noise = awake(config()), drawn(1, 3, 8, 8), drawn(1, 3, 4, 4)

    def gradient() -> Tensor:
        model.zero_grad()
        model(images, noise)[0].square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    kept = gradient()
    for block in model.modules():
        if hasattr(block, "recompute"):
            block.recompute = True
    calls = []
    level = model.encoder.levels[0]
    assert isinstance(level, nn.Module)
    level.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(gradient(), kept)
    assert len(calls) == 2

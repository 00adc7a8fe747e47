"""The codec of an autoencoder: unit scale by measurement, and tiles that are the whole."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lab.data.loader import Loader
from lab.data.shapes import Shapes, ShapesConfig
from lab.errors import Refused
from lab.runtime import Runtime
from tests.vae.test_autoencoder import awake, config, drawn
from vae.autoencoder import Autoencoder
from vae.codec import Codec, latents
from vae.latent import Latents, Statistics, measure
from vae.posterior import Gaussian
from vae.quantizer import VectorQuantized
from vae.tiling import FADE, Tiling

CPU = Runtime(torch.device("cpu"))
STATISTICS = Statistics(mean=(1.0, -2.0, 0.5), std=(2.0, 0.5, 3.0), num=10)


def test_the_codec_is_the_autoencoder_in_standardised_units() -> None:
    model, images = awake(config()), drawn(2, 3, 8, 12)
    codec: Codec = Latents(model, STATISTICS)
    posterior = model.encode(images)
    mean, std = codec.posterior(images)
    assert (codec.channels, codec.factor, mean.shape) == (3, 2, (2, 3, 4, 6))
    torch.testing.assert_close(mean[:, 1], (posterior.mean[:, 1] + 2) / 0.5)
    torch.testing.assert_close(std[:, 2], posterior.std[:, 2] / 3)
    torch.testing.assert_close(codec.decode(mean), model.decode(posterior.mean))
    assert not codec.decode(mean).requires_grad


@pytest.mark.parametrize("latent", [Gaussian(channels=3), VectorQuantized(channels=3, codes=16)])
def test_standardised_latents_of_fresh_images_have_mean_0_and_deviation_1(latent: Gaussian | VectorQuantized) -> None:
    """4,000 images that the statistics were not measured on; the encoder's own scale is far from 1."""
    model = awake(config(latent=latent, patch=2)).float()
    with torch.no_grad():
        model.encoder.head[-1].weight.mul_(3)
        model.encoder.head[-1].bias.add_(2)
    loader = Loader(Shapes(ShapesConfig(size=16)), seed=3)
    batches = [loader.batch(range(k, k + 250)) for k in range(0, 6000, 250)]
    statistics, fresh = measure(model, batches[:8], CPU), batches[8:]
    assert statistics.num == 2000
    codec = Latents(model, statistics)
    found = torch.cat([latents(codec, batch) for batch in fresh])
    assert found.mean(dim=(0, 2, 3)).abs().max() <= 0.02
    assert (found.std(dim=(0, 2, 3)) - 1).abs().max() <= 0.02
    raw = torch.cat([model.encode(batch.images).mean for batch in fresh[:2]])
    assert raw.mean(dim=(0, 2, 3)).abs().max() > 0.1  # there was something to standardise


def decoded(model: Autoencoder, latent: Tensor, tile: int) -> Tensor:
    return Latents(model, STATISTICS, tile).decode(latent)


@pytest.mark.parametrize("tile", [6, 16, 48, 100])
@pytest.mark.parametrize("patch", [1, 2])
def test_tiles_with_a_margin_of_the_receptive_field_are_the_whole(tile: int, patch: int) -> None:
    made = config(patch=patch)
    model, latent = awake(made), drawn(1, 3, 29, 19)
    whole = decoded(model, latent, 0)
    torch.testing.assert_close(decoded(model, latent, tile * patch), whole, rtol=0, atol=1e-12)
    single = decoded(model.float(), latent.float(), tile * patch)
    torch.testing.assert_close(single.double(), whole, rtol=0, atol=1e-5)


def test_a_narrower_margin_would_be_seen() -> None:
    made = config()
    model, latent = awake(made), drawn(1, 3, 37, 23)
    narrow = Tiling(8, made.reach() - 1, blend=False)(model.decode, latent, made.factor)
    assert (narrow - model.decode(latent)).abs().max() > 1e-9


def test_no_tile_is_decoded_with_more_than_its_margin() -> None:
    sides = []

    def decode(part: Tensor) -> Tensor:
        sides.append(max(part.shape[2:]))
        return torch.zeros(len(part), 3, *(2 * side for side in part.shape[2:]))

    Tiling(8, 3, blend=True)(decode, torch.zeros(1, 3, 40, 25), 2)
    assert max(sides) == 8 + 2 * 3
    assert len(sides) == 5 * 4


@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize(("size", "margin"), [(1, 4), (5, 2), (8, 8), (7, 0)])
def test_the_weights_of_the_tiles_add_up_to_one(blend: bool, size: int, margin: int) -> None:
    def ones(part: Tensor) -> Tensor:
        return torch.ones(len(part), 3, *(2 * side for side in part.shape[2:]), dtype=part.dtype)

    images = Tiling(size, margin, blend)(ones, drawn(1, 3, 23, 17), 2)
    torch.testing.assert_close(images, torch.ones_like(images))


@pytest.mark.parametrize(("norm", "attention"), [("group", False), ("position", True)])
def test_blended_tiles_have_no_seams(norm: str, attention: bool) -> None:
    """What sharp tiles add to the steps between neighbouring pixels at a border, blended ones do not."""
    made = config(norm=norm, middle_attention=attention)
    model, latent = awake(made), drawn(1, 3, 48, 48).cumsum(-1)
    whole = decoded(model, latent, 0)
    blended = decoded(model, latent, 48) - whole
    sharp = Tiling(24, made.reach(), blend=False)(model.decode, latent * 1.0, made.factor)
    torch.testing.assert_close(Latents(model, STATISTICS, 48).tiling, Tiling(24, max(made.reach(), FADE), blend=True))
    own = Tiling(24, made.reach(), blend=True)(model.decode, latent, made.factor) - model.decode(latent)
    jump = (sharp - model.decode(latent)).diff(dim=-1)[..., 47].abs().mean()
    assert own.diff(dim=-1)[..., 47].abs().mean() < 0.35 * jump
    assert blended.abs().max() > 1e-6  # not the whole, and said so


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: Latents(model, STATISTICS, tile=5), "a tile of 5 pixels is no multiple of .* factor 2"),
        (lambda model: Latents(model, Statistics(mean=(0,), std=(1,), num=1)), "1 channels for a latent of 3"),
        (
            lambda model: Latents(model, STATISTICS).posterior(drawn(1, 3, 8, 9)),
            "of 9x8 pixels .* sides that 2 divides",
        ),
        (lambda model: measure(model, [], CPU), "no images"),
    ],
)
def test_what_does_not_fit_is_refused(make, message: str) -> None:
    with pytest.raises(Refused, match=message):
        make(awake(config()))


def test_a_channel_that_never_changes_cannot_be_standardised() -> None:
    model = awake(config()).float()
    with torch.no_grad():
        model.encoder.head[-1].weight[1].zero_()
        model.encoder.head[-1].weight[4].zero_()
        model.encoder.head[-1].bias[4] = -100.0  # of the variance's logarithm
    with pytest.raises(Refused, match=r"channels \[1\] of the latent are the same in all 8 images"):
        measure(model, [Loader(Shapes(ShapesConfig(size=16)), seed=3).batch(range(8))], CPU)


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (0.0,)), ((0.0, 1.0), (1.0,))])
def test_statistics_are_positive_and_complete(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="as long as mean and positive"):
        Statistics(mean=mean, std=std, num=1)

"""Finished latents: those of the codec, drawn anew each time, and never those of another image or another codec."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lab.data.loader import Batch
from lab.errors import NonFinite
from lab.images import from_uint8
from tests.vae.test_autoencoder import awake, config
from vae.cached import ROWS, Cached, folder_of
from vae.codec import latents
from vae.latent import Latents, LatentsConfig, Origin, Statistics

STATISTICS = Statistics(mean=(1.0, -2.0, 0.5), std=(2.0, 0.5, 3.0), num=10)
ORIGIN = Origin(run="r", checkpoint="c", weights="ema", factor=2)


class Counted(Latents):
    """Counts the images that it encodes."""

    encoded = 0

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.encoded += len(images)
        return super().posterior(images)


@pytest.fixture
def codec() -> Counted:
    return Counted(awake(config()).float(), STATISTICS)


def pictures(num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return from_uint8(torch.randint(256, (num, 3, 8, 12), generator=generator, dtype=torch.uint8))


def batch(images: Tensor, start: int) -> Batch:
    num = len(images)
    return Batch(images, ("",) * num, tuple(range(start, start + num)), ("",) * num, seed=3)


def test_latents_are_those_of_the_codec_and_are_encoded_once(codec: Counted, tmp_path: Path) -> None:
    images = pictures(11)
    expected = Latents(codec.model, STATISTICS).posterior(images)
    cached = Cached(codec, tmp_path)
    for _ in range(2):
        for found, exact in zip(cached.posterior(images), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)
    assert codec.encoded == 2 * ROWS
    cached.cache.flush()
    again = Counted(codec.model, STATISTICS)
    other = Cached(again, tmp_path).posterior(images.flip(0))
    assert all(torch.equal(one.flip(0), two) for one, two in zip(cached.posterior(images), other, strict=True))
    assert again.encoded == 0
    torch.testing.assert_close(cached.decode(other[0]), codec.decode(other[0]))


def test_an_entry_does_not_depend_on_what_it_was_met_together_with(codec: Counted, tmp_path: Path) -> None:
    images = pictures(13)
    together = Cached(codec, tmp_path / "a").posterior(images)
    apart = Cached(codec, tmp_path / "b")
    single = [torch.stack(apart.posterior(images[k : k + 1])) for k in range(13)]
    assert torch.equal(torch.cat(single, dim=1), torch.stack(together))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.stack(Cached(codec, tmp_path / "c").posterior(images)), torch.stack(together))


def test_every_visit_draws_its_own_latent_from_the_kept_posterior(codec: Counted, tmp_path: Path) -> None:
    images, cached = pictures(4), Cached(codec, tmp_path)
    first, again, later = (latents(cached, batch(images, start)) for start in (0, 0, 4))
    mean, std = cached.posterior(images)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert 0.8 < ((later - mean) / std).std() < 1.2


def test_another_image_of_the_same_bytes_is_another(codec: Counted, tmp_path: Path) -> None:
    cached, images = Cached(codec, tmp_path), pictures(1)
    cached.posterior(images)
    cached.posterior(images.reshape(1, 3, 12, 8))
    changed = images.clone()
    changed[0, 2, 7, 11] += 2 / 255 if changed[0, 2, 7, 11] < 0 else -2 / 255
    cached.posterior(changed)
    assert codec.encoded == 3 * ROWS


def test_the_folder_is_named_by_what_the_latents_are_a_function_of() -> None:
    asked = LatentsConfig(run="here", origin=ORIGIN, statistics=STATISTICS)
    same = asked.model_copy(update={"run": "there", "tile": 64, "cache": "elsewhere"})
    others = [
        asked.model_copy(update={"origin": ORIGIN.model_copy(update={"checkpoint": "d"})}),
        asked.model_copy(update={"origin": ORIGIN.model_copy(update={"weights": "raw"})}),
        asked.model_copy(update={"statistics": STATISTICS.model_copy(update={"mean": (0.0, 0.0, 0.0)})}),
    ]
    assert folder_of("c", same) == folder_of("c", asked)
    assert len({folder_of("c", each) for each in (asked, *others)}) == 4


def test_what_is_not_finite_is_refused_and_not_kept(codec: Counted, tmp_path: Path) -> None:
    with torch.no_grad():
        codec.model.encoder.head[-1].bias[0] = 1e6  # type: ignore[union-attr, index, operator, attr-defined]
    cached = Cached(codec, tmp_path)
    with pytest.raises(NonFinite, match=r"not finite in 16 bits: measure the scale"):
        cached.posterior(pictures(2))
    assert len(cached.cache) == 0

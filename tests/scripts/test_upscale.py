"""The run of a fast decoder: trained, killed, measured, and used on any picture."""

import json
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pytest
import torch
from PIL import Image

from lab.data.shapes import Shapes, ShapesConfig
from lab.evaluation.pairs import psnr
from lab.images import from_uint8, read_image, to_uint8
from lab.resampling import bicubic
from scripts.assembly import enlarging, saved
from superres.degrade import degrade
from tests.faults import ROOT, Scripts, signal_at
from tests.lab.training.test_resume import differences, measured

TINY_FAST = ROOT / "tests" / "tiny_fast.yaml"


@pytest.fixture(scope="module")
def run(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "fast"
    done = script("train", TINY_FAST, "--run", path)
    assert done.code == 0, done.err
    return path


def picture(mode: str, width: int = 9, height: int = 6) -> Image.Image:
    """A slope of colours, or of greys."""
    y, x = np.mgrid[0:height, 0:width]
    levels = np.stack([20 + 20 * x, 20 + 30 * y, 200 - 10 * x, np.clip(60 * x, 0, 255)], axis=-1).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((257 * levels[..., 0].astype(np.uint16) + 100).astype(np.uint16))
    whole = Image.fromarray(levels)
    return whole.convert("RGB").convert("P") if mode == "P" else whole.convert(mode)


def test_a_killed_run_continues_bit_for_bit(script: Scripts, run: Path, tmp_path: Path) -> None:
    command = ("train", TINY_FAST, "--run", tmp_path / "run")
    for place, nth in (("loss", 7), ("after_tensors", 2), ("loss", 9)):
        assert script(*command, fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    assert script(*command).code == 0
    assert differences(run, tmp_path / "run") == set()
    assert {"train/psnr", "train/above_bicubic", "train/critic/real"} <= measured(run)[-1].keys()
    assert read_image(run / "previews" / "samples-00000009.png").shape[2] > 3 * 32


def test_figures_stand_beside_those_of_filters(script: Scripts, run: Path, tmp_path: Path) -> None:
    done = script("evaluate", run, "--num", 6, "--no-distances", "--json", tmp_path / "a.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "a.json").read_text())
    names = ["fast decoder", "bicubic", "lanczos", "linear filter 7 x 7"]
    assert list(figures["methods"]) == list(figures["seconds_per_picture"]) == names
    for method in figures["methods"].values():
        assert list(method) == ["psnr", "ssim", "consistency", "colour_shift", "contrast"]
    world = Shapes(ShapesConfig(size=32), "heldout")
    images = from_uint8(to_uint8(torch.stack([world.sample(0, slot).image for slot in range(6)])))
    found = saved.read(run)
    small = degrade(images, 2, enlarging.shape(found).degradation, 0, range(6))
    expected = psnr(enlarging.build(found)(small), images).mean().item()
    assert figures["methods"]["fast decoder"]["psnr"]["value"] == pytest.approx(expected, rel=1e-6)
    plain = psnr(bicubic(small, (32, 32)), images).mean().item()
    assert figures["methods"]["bicubic"]["psnr"]["value"] == pytest.approx(plain, rel=1e-6)
    assert figures["above"]["bicubic"]["psnr"]["value"] == pytest.approx(expected - plain, abs=1e-4)
    assert "above the linear filter 7 x 7" in done.out
    assert read_image(tmp_path / "a-pairs.png").shape[2] == 8 + 4 * (128 + 8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16", "CMYK"])
def test_any_picture_is_enlarged(script: Scripts, run: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture(mode).save(path)
    done = script("upscale", run, path, "--out", tmp_path / "out", "--tile", 4)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "out" / "a-x2.png") as made:
        assert made.size == (18, 12)
        assert made.mode == {"P": "RGB", "1": "L", "I;16": "L", "CMYK": "RGB"}.get(mode, mode)
    large = enlarging.build(saved.read(run))(read_image(path)[None])[0]
    found = to_uint8(read_image(tmp_path / "out" / "a-x2.png")).int()
    if made.mode in ("RGB", "RGBA"):  # on white it is what the network made
        assert (found - to_uint8(large).int()).abs().max() <= (3 if made.mode == "RGBA" else 1)
    else:
        grey = to_uint8(large).float().mean(dim=0)
        assert (found.float() - grey).abs().mean() < 12  # of a network that has learned nothing yet
        assert torch.equal(found[0], found[1])
    assert read_image(tmp_path / "out" / "a-x2-sheet.png").shape[2] > 2 * 18


def test_transparency_is_enlarged_by_the_bicubic_filter(script: Scripts, run: Path, tmp_path: Path) -> None:
    picture("RGBA").save(tmp_path / "a.png")
    assert script("upscale", run, tmp_path / "a.png", "--out", tmp_path / "out").code == 0
    opacity = torch.from_numpy(np.array(picture("RGBA"))[..., 3]).float()
    expected = bicubic(opacity[None, None], (12, 18))[0, 0].round().clamp(0, 255)
    with Image.open(tmp_path / "out" / "a-x2.png") as made:
        found = torch.from_numpy(np.array(made)[..., 3]).float()
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 7), (70, 3)])
def test_pictures_of_odd_sizes_are_enlarged(
    script: Scripts, run: Path, tmp_path: Path, width: int, height: int
) -> None:
    picture("RGB", width, height).save(tmp_path / "a.png")
    done = script("upscale", run, tmp_path / "a.png", "--out", tmp_path / "out", "--tile", 16)
    assert done.code == 0, done.err
    whole = script("upscale", run, tmp_path / "a.png", "--out", tmp_path / "whole", "--tile", 0)
    assert whole.code == 0, whole.err
    first, second = (to_uint8(read_image(tmp_path / folder / "a-x2.png")).int() for folder in ("out", "whole"))
    assert first.shape == (3, 2 * height, 2 * width)
    assert (first - second).abs().max() <= 1  # 1e-5 may round to another byte


def test_what_cannot_be_enlarged_is_one_line(script: Scripts, run: Path, reference: Path, tmp_path: Path) -> None:
    frames = [picture("RGB"), picture("RGB").rotate(180)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    picture("RGB").save(tmp_path / "a.png")
    (tmp_path / "b").mkdir()
    picture("RGB").save(tmp_path / "b" / "a.jpg")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a-x2.png").write_text("mine")
    (tmp_path / "sheet").mkdir()
    (tmp_path / "sheet" / "a-x2-sheet.png").write_text("mine")
    Image.fromarray(np.full((6, 9), 0.5, np.float32)).save(tmp_path / "float.tif")
    for model, words, code, answer in (
        (run, (tmp_path / "moving.gif",), 2, "has 2 frames: save the one that you want"),
        (run, (tmp_path / "text.png",), 65, "is not a readable image"),
        (run, (tmp_path / "float.tif",), 65, "has 32 bits a value"),
        (run, (tmp_path / "b" / "a.jpg", tmp_path / "none.png", "--out", tmp_path / "new"), 2, "no such image file"),
        (run, (tmp_path / "a.png", "--out", tmp_path / "sheet"), 2, "a-x2-sheet.png is there already"),
        (run, (tmp_path / "a.png",), 2, "a-x2.png is there already"),
        (run, (tmp_path / "a.png", tmp_path / "b" / "a.jpg", "--out", tmp_path / "new"), 2, "would both become"),
        (run, (tmp_path / "b" / "a.jpg", "--tile", -1, "--out", tmp_path / "new"), 2, "--tile -1"),
        (reference, (tmp_path / "a.png", "--out", tmp_path / "new"), 2, "trains nothing that enlarges pictures"),
    ):
        done = script("upscale", model, "--out", tmp_path / "out", *words)
        assert done.code == code, done.err
        assert answer in done.err.splitlines()[-1]
    assert (tmp_path / "out" / "a-x2.png").read_text() == (tmp_path / "sheet" / "a-x2-sheet.png").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_several_processes_are_refused(script: Scripts, run: Path, tmp_path: Path) -> None:
    picture("RGB").save(tmp_path / "a.png")
    done = script.together("upscale", run, tmp_path / "a.png", "--out", tmp_path / "out", faults=[[], []])
    refused = [each.err.splitlines()[-1] for each in done if each.code == 2]  # the other may be ended before it says so
    assert refused
    assert all("leave torchrun out" in line for line in refused)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train", ("data.size=33", "stage.crop=0"), "data.size=33 is not divisible by 2"),
        ("train", ("stage.crop=64",), "stage.crop=64 is more than data.size=32"),
        ("train", ("evaluate.every_steps=2",), "a fast decoder obeys no prompts: set evaluate.every_steps=0"),
        ("train", ("stage.decoder.factor=3",), "stage.decoder.factor"),
        ("sample", ("a red circle",), "trains a fast decoder, which draws nothing from prompts"),
        ("evaluate", ("--guidance", 2, "--no-distances"), "--guidance is for runs that draw from prompts"),
    ],
)
def test_what_a_fast_decoder_cannot_do_is_refused(
    script: Scripts, run: Path, tmp_path: Path, command: str, words: tuple[object, ...], message: str
) -> None:
    subject = (TINY_FAST, "--run", tmp_path / "run") if command == "train" else (run,)
    done = script(command, *subject, *words)
    assert done.code == 2, done.err
    assert message in done.err.splitlines()[-1]


def test_a_drawn_picture_passes_it_as_its_file_would(
    script: Scripts, run: Path, reference: Path, tmp_path: Path
) -> None:
    prompts = ("a red circle", "a green ring", "--num", 2)
    assert script("sample", reference, *prompts, "--out", tmp_path / "small").code == 0
    done = script("sample", reference, *prompts, "--upscale", run, "--out", tmp_path / "large")
    assert done.code == 0, done.err
    small, large = (
        sorted(path for path in (tmp_path / name).glob("*.png") if "grid" not in path.name)
        for name in ("small", "large")
    )
    assert len(small) == len(large) == 4
    assert {path.name for path in small}.isdisjoint(path.name for path in large)  # another recipe
    done = script("upscale", run, *small, "--out", tmp_path / "files")
    assert done.code == 0, done.err
    enlarged = {to_uint8(read_image(path)).numpy().tobytes() for path in (tmp_path / "files").rglob("*.png")}
    assert {to_uint8(read_image(path)).numpy().tobytes() for path in large} <= enlarged


def test_the_best_of_several_passes_it_too(script: Scripts, run: Path, reference: Path, tmp_path: Path) -> None:
    words = ("sample", reference, "a red circle", "--best-of", 2, "--upscale", run, "--out", tmp_path)
    done = script(*words)
    assert done.code == 0, done.err
    (picture,) = (path for path in tmp_path.glob("*.png") if "grid" not in path.name)
    side = 16 * saved.read(run).experiment.stage.decoder.factor  # type: ignore[union-attr]
    assert read_image(picture).shape == (3, side, side)
    assert script("sample", reference, "a red circle", "--reject", "2:0.5", "--out", tmp_path).code == 2

"""The run of a cascade: trained, killed, measured, and used on drawn pictures and on any other."""

import json
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
from PIL import Image

from diffusion.pipeline import Request
from lab.data.shapes import Shapes, ShapesConfig
from lab.evaluation.pairs import psnr
from lab.images import from_uint8, read_image, to_uint8
from lab.resampling import bicubic
from scripts.assembly import enlarging, saved
from superres.cascade_pipeline import CascadePipeline, back_projected
from superres.degrade import degrade
from tests.faults import ROOT, Scripts, signal_at
from tests.lab.training.test_resume import differences, measured
from tests.scripts.test_upscale import TINY_FAST, picture

TINY_CASCADE = ROOT / "tests" / "tiny_cascade.yaml"


@pytest.fixture(scope="module")
def run(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "cascade"
    done = script("train", TINY_CASCADE, "--run", path)
    assert done.code == 0, done.err
    return path


@pytest.fixture(scope="module")
def fast(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "fast"
    done = script("train", TINY_FAST, "train.steps=1", "stage.critic=", "--run", path)
    assert done.code == 0, done.err
    return path


def free(run: Path, tile: int = 0, **sampling: object) -> CascadePipeline:
    """The run's cascade without its back-projection, put together by hand."""
    own = enlarging.cascade(saved.read(run), tile)
    enlarged = own.enlarging.model_copy(update={"back_projection": 0})
    return replace(own, enlarging=enlarged, sampling=own.sampling.model_copy(update=sampling))


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if "grid" not in path.name and "sheet" not in path.name)


def test_a_killed_run_continues_bit_for_bit(script: Scripts, run: Path, tmp_path: Path) -> None:
    command = ("train", TINY_CASCADE, "--run", tmp_path / "run")
    for place, nth in (("loss", 5), ("after_tensors", 2), ("loss", 7)):
        assert script(*command, fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    assert script(*command).code == 0
    assert differences(run, tmp_path / "run") == set()
    assert {"train/loss", "train/detail"} <= measured(run)[-1].keys()
    assert read_image(run / "previews" / "samples-00000009.png").shape[2] > 3 * 32


def test_how_it_draws_may_change_on_the_way_and_what_it_learns_may_not(
    script: Scripts, run: Path, tmp_path: Path
) -> None:
    words = ("train.steps=2", "--run", tmp_path / "run")
    assert script("train", TINY_CASCADE, *words).code == 0
    again = ("train", "--resume", tmp_path / "run", "train.steps=3")
    done = script(*again, "stage.grain=0.3")
    assert done.code == 2
    assert "would make it another experiment" in done.err.splitlines()[-1]
    done = script(*again, "stage.enlarging.back_projection=3", "stage.sampling.steps=2")
    assert done.code == 0, done.err


def test_figures_stand_beside_those_of_filters(script: Scripts, run: Path, tmp_path: Path) -> None:
    words = ("evaluate", run, "--num", 6, "--no-distances")
    done = script(*words, "--json", tmp_path / "a.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "a.json").read_text())
    names = ["cascade", "back-projected", "bicubic", "lanczos", "linear filter 7 x 7"]
    assert list(figures["methods"]) == list(figures["seconds_per_picture"]) == names
    found = saved.read(run)
    assert figures["settings"] == enlarging.told(found)
    samples = [Shapes(ShapesConfig(size=32), "heldout").sample(0, slot) for slot in range(6)]
    images = from_uint8(to_uint8(torch.stack([sample.image for sample in samples])))
    small = degrade(images, 2, enlarging.shape(found).degradation, 0, range(6))
    requests = [Request(sample.caption, number) for number, sample in enumerate(samples)]
    drawn = free(run)(small, requests, 0, lambda: None)
    for name, made in (("cascade", drawn), ("back-projected", back_projected(drawn, small, 2))):
        expected = psnr(made, images).mean().item()
        assert figures["methods"][name]["psnr"]["value"] == pytest.approx(expected, rel=1e-5)
    gain = psnr(back_projected(drawn, small, 2), images) - psnr(bicubic(small, (32, 32)), images)
    assert figures["above"]["bicubic"]["psnr"]["value"] == pytest.approx(gain.mean().item(), abs=1e-3)
    assert (figures["times_back_projected"], "cascade" in figures["above"]) == (2, True)
    consistency = [figures["methods"][name]["consistency"]["value"] for name in names[:2]]
    assert consistency[1] > consistency[0] + 3
    done = script(*words, "--steps", 1, "--json", tmp_path / "b.json")
    assert done.code == 0, done.err
    other = json.loads((tmp_path / "b.json").read_text())
    assert other["settings"]["sampling"]["steps"] == 1
    assert other["methods"]["cascade"] != figures["methods"]["cascade"]
    assert other["methods"]["bicubic"] == figures["methods"]["bicubic"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "I;16"])
def test_any_picture_is_enlarged(script: Scripts, run: Path, tmp_path: Path, mode: str) -> None:
    picture(mode).save(tmp_path / "a.png")
    words = ("--prompt", "a red circle", "--seed", 3, "--back-projection", 4, "--tile", 8)
    done = script("upscale", run, tmp_path / "a.png", "--out", tmp_path / "out", *words)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "out" / "a-x2.png") as made:
        assert made.size == (18, 12)
        assert made.mode == {"P": "RGB", "I;16": "L"}.get(mode, mode)
    if mode == "RGB":
        image = read_image(tmp_path / "a.png")[None]
        large = free(run, tile=8, chunk=1)(image, [Request("a red circle")], 3, lambda: None)
        expected = to_uint8(back_projected(large, image, 4))
        assert torch.equal(to_uint8(read_image(tmp_path / "out" / "a-x2.png")), expected[0])


def test_pictures_do_not_depend_on_which_are_given_together(script: Scripts, run: Path, tmp_path: Path) -> None:
    picture("RGB").save(tmp_path / "a.png")
    picture("RGB", 5, 8).save(tmp_path / "b.png")
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert script("upscale", run, tmp_path / "b.png", "--out", alone).code == 0
    assert script("upscale", run, tmp_path / "a.png", tmp_path / "b.png", "--out", both).code == 0
    assert (alone / "b-x2.png").read_bytes() == (both / "b-x2.png").read_bytes()


def test_drawn_pictures_pass_it_with_their_prompts_and_stand_alone(
    script: Scripts, run: Path, reference: Path, tmp_path: Path
) -> None:
    words = ("--upscale", run, "--out")
    done = script("sample", reference, "a red circle", "a green ring", "--num", 2, *words, tmp_path / "both")
    assert done.code == 0, done.err
    assert script("sample", reference, "a green ring", *words, tmp_path / "one").code == 0
    (alone,), together = pictures(tmp_path / "one"), pictures(tmp_path / "both")
    assert len(together) == 4
    assert alone.read_bytes() in [path.read_bytes() for path in together]
    assert read_image(alone).shape == (3, 32, 32)


def test_upscalers_of_both_kinds_follow_each_other(
    script: Scripts, run: Path, fast: Path, reference: Path, tmp_path: Path
) -> None:
    for k, chain in enumerate(((run, fast), (fast, run), (run, run))):
        upscale = [word for path in chain for word in ("--upscale", path)]
        done = script("sample", reference, "a red circle", *upscale, "--out", tmp_path / str(k))
        assert done.code == 0, done.err
        (made,) = pictures(tmp_path / str(k))
        assert read_image(made).shape == (3, 64, 64)


def test_other_settings_of_its_run_are_another_recipe(
    script: Scripts, run: Path, reference: Path, tmp_path: Path
) -> None:
    words = ("sample", reference, "a red circle", "--upscale", run, "--out", tmp_path)
    config = run / "config.yaml"
    own = config.read_text()
    assert script(*words).code == 0
    try:
        config.write_text(own.replace("back_projection: 2", "back_projection: 3"))
        done = script(*words)
    finally:
        config.write_text(own)
    assert "1 drawn, 0 there already" in done.out
    assert len(pictures(tmp_path)) == 2


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train", ("data.size=34", "stage.crop=0"), "data.size=34 is not divisible by 4, the network's factor"),
        ("train", ("stage.crop=64",), "stage.crop=64 is more than data.size=32"),
        ("train", ("evaluate.every_steps=2",), "a cascade obeys no prompts: set evaluate.every_steps=0"),
        ("train", ("stage.unet.depths=[1, 2]",), "depths names 2 levels, but beside the coarsest there are 1"),
        ("sample", ("a red circle",), "trains a cascade, which draws nothing from prompts"),
        ("doctor", (), "trains a cascade"),
        ("evaluate", ("--eta", 0.5, "--sampler", "heun", "--no-distances"), "eta does nothing with sampler heun"),
        (
            "evaluate",
            ("--sampler", "ddpm", "--variance", "optimal", "--no-distances"),
            "is not measured for what draws",
        ),
        ("upscale", ("a.png", "--grain", 0.3, "--out", "new"), "enlarging.grain=0.3 is more than"),
        ("upscale", ("a.png", "--back-projection", -1, "--out", "new"), "back_projection"),
        ("upscale", ("a.png", "--spacing", "given", "--out", "new"), "times must decrease"),
    ],
)
def test_what_a_cascade_cannot_do_is_refused(
    script: Scripts, run: Path, tmp_path: Path, command: str, words: tuple[object, ...], message: str
) -> None:
    subject = (TINY_CASCADE, "--run", tmp_path / "run") if command == "train" else (run,)
    done = script(command, *subject, *words)
    assert done.code == 2, done.err
    assert message in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "a fox"), "was trained without captions and hears none"),
        (("--grain", 0.1), "--grain is for runs that draw from prompts or draw details"),
        (("--steps", 3), "--steps is for runs that draw from prompts or draw details"),
    ],
)
def test_what_is_a_cascade_s_is_refused_for_a_fast_decoder(
    script: Scripts, fast: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    picture("RGB").save(tmp_path / "a.png")
    done = script("upscale", fast, tmp_path / "a.png", "--out", tmp_path / "out", *words)
    assert done.code == 2
    assert message in done.err.splitlines()[-1]


def test_a_cascade_without_captions_is_told_nothing(script: Scripts, reference: Path, tmp_path: Path) -> None:
    words = ("stage.caption_drop=1.0", "stage.sampling.guidance=1", "train.steps=1", "--run", tmp_path / "run")
    assert script("train", TINY_CASCADE, *words).code == 0
    picture("RGB").save(tmp_path / "a.png")
    done = script("upscale", tmp_path / "run", tmp_path / "a.png", "--prompt", "a fox", "--out", tmp_path / "out")
    assert done.code == 2
    assert "was trained without captions and hears none" in done.err.splitlines()[-1]
    done = script("sample", reference, "a red circle", "--upscale", tmp_path / "run", "--out", tmp_path / "drawn")
    assert done.code == 0, done.err


def test_it_is_no_source_to_grow(script: Scripts, run: Path, tmp_path: Path) -> None:
    words = ("stage.kind=grown", f"stage.source={run}", "data.size=64", "--run", tmp_path / "run")
    done = script("train", ROOT / "tests" / "tiny.yaml", *words)
    assert done.code == 2
    assert "trains a cascade, and only a denoiser grows" in done.err.splitlines()[-1]

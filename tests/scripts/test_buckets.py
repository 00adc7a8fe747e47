"""Runs on pictures of many ratios: the same step however it is made, resumed in the middle of an epoch, and rectangles
that are drawn."""

from pathlib import Path
from signal import SIGKILL

import pytest
import torch
from PIL import Image

from diffusion.pipeline import Request
from lab import runtime as runtimes
from lab.data.buckets import BucketsConfig
from lab.data.loader import Loader
from lab.data.sources import source
from lab.images import read_image, read_metadata
from lab.rundir import RunDir
from lab.training.config import TrainConfig
from lab.training.optimizer import OptimizerConfig
from lab.training.trainer import Trainer
from scripts.assembly import assemble, drawing, experiments
from tests.faults import TINY, TINY_VAE, Scripts, in_double, signal_at
from tests.lab.training.test_processes import EXACT, distance
from tests.lab.training.test_resume import differences, measured

SIZES = {"wide": (40, 10), "square": (24, 24), "high": (10, 40)}
COLOURS = {"wide": (220, 30, 30), "square": (30, 220, 30), "high": (30, 30, 220)}
SHAPES = [(32, 8), (16, 16), (8, 32)]


def make(folder: Path, num: int = 20) -> Path:
    """A folder of wide, square and high pictures, each kind of another colour and with its name for a text."""
    folder.mkdir()
    for k in range(num):
        name = list(SIZES)[k * k % 7 % 3]
        Image.new("RGB", SIZES[name], COLOURS[name]).save(folder / f"{k:02}.png")
        (folder / f"{k:02}.txt").write_text(f"a {name} picture")
    return folder


def words(folder: Path) -> list[str]:
    given = {"kind": "folder", "path": folder, "size": 16, "split.heldout": 0, "cache": folder.parent / "cache"}
    buckets = ["data.buckets.step=8", "data.buckets.ratio=4"]
    return [*(f"data.{name}={value}" for name, value in given.items()), *buckets]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module")
def run(script: Scripts, folder: Path) -> Path:
    """The tiny preset on these pictures, 2.7 epochs, trained without interruption."""
    path = folder.parent / "run"
    done = script("train", TINY, *words(folder), "stage.frames=true", "--run", path)
    assert done.code == 0, done.err
    assert "20 of 20 samples, 0 of them all with an empty caption, 0 bad; " in done.out
    assert all(f" of {width}x{height}" in done.out for height, width in SHAPES)
    return path


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_in_the_middle_of_an_epoch_it_goes_on_bit_for_bit(
    script: Scripts, folder: Path, run: Path, tmp_path: Path, workers: int
) -> None:
    command = (
        "train",
        TINY,
        *words(folder),
        "stage.frames=true",
        f"train.workers={workers}",
        "--run",
        tmp_path / "cut",
    )
    for place, nth in (("loss", 7), ("after_rename", 2)):
        assert script(*command, fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    done = script(*command)
    assert done.code == 0, done.err
    assert differences(run, tmp_path / "cut") == set()


def test_every_division_of_a_step_and_of_its_work_trains_the_same(
    script: Scripts, folder: Path, tmp_path: Path
) -> None:
    command = (*EXACT, *words(folder), "--run")
    assert script("train", TINY, *command, tmp_path / "one", fault=(in_double,)).code == 0
    whole = script("train", TINY, *command, tmp_path / "whole", "train.micro_batch=0", fault=(in_double,))
    assert whole.code == 0, whole.err
    two = script.together("train", TINY, *command, tmp_path / "two", faults=[[(in_double,)], [(in_double,)]])
    assert [each.code for each in two] == [0, 0], two[0].err
    for other in ("whole", "two"):
        assert distance(tmp_path / "one", tmp_path / other) <= 1e-12
        for mine, theirs in zip(*map(measured, (tmp_path / "one", tmp_path / other)), strict=True):
            assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-12)


@pytest.mark.slow
def test_all_shapes_are_learned(folder: Path, tmp_path: Path) -> None:
    """A tiny network learns each shape in a few steps, though no pass has two of them."""
    experiment = assemble.complete(experiments.load(TINY, [*words(folder), "stage.unet.dropout=0"]))
    runtime = runtimes.start(experiment.runtime)
    stage = assemble.diffusion_stage(experiments.text_to_image(experiment, TINY), runtime)
    loader = Loader(source(experiment.data, batch=8), seed=3)
    config = TrainConfig(
        steps=40, batch=8, optimizer=OptimizerConfig(rate=3e-3, warm_up=5), preview_every=0, checkpoint_every=99
    )
    parts = loader.parts(range(20))
    assert {part.images.shape[2:] for part in parts} == set(SHAPES)

    def losses() -> dict[tuple[int, ...], float]:
        with torch.no_grad():
            return {
                tuple(part.images.shape[2:]): stage.losses_by_level(stage.players["model"], part, 4).mean().item()
                for part in parts
            }

    before = losses()
    with RunDir.create(tmp_path / "run", experiment) as rundir:
        assert Trainer(stage, loader, runtime, rundir, config).fit() == 0
    after = losses()
    assert all(after[shape] < 0.8 * before[shape] for shape in SHAPES), (before, after)


def test_rectangles_are_drawn(script: Scripts, run: Path, tmp_path: Path) -> None:
    for out, words in (("wide", ("--size", "32x8")), ("square", ("--size", "16x16")), ("own", ())):
        done = script("sample", run, "a wide picture", "--num", 2, *words, "--out", tmp_path / out)
        assert done.code == 0, done.err
    found = {out: sorted((tmp_path / out).glob("[0-9]*.png")) for out in ("wide", "square", "own")}
    assert [tuple(read_image(path).shape) for path in found["wide"]] == [(3, 8, 32)] * 2
    assert '"size": "32x8"' in read_metadata(found["wide"][0])["recipe"]
    for told, default in zip(found["square"], found["own"], strict=True):
        assert torch.equal(read_image(told), read_image(default))
        assert told.name != default.name


def test_a_rectangle_is_told_to_be_whole(run: Path) -> None:
    trained = drawing.shaped(drawing.trained(run), (8, 32))
    model, seen = trained.pipeline.model, []
    assert model.frame is not None
    model.frame.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    next(trained.pipeline.draw([Request("a wide picture")], 0, trained.experiment.stage.sampling))
    assert {tuple(row) for told in seen for row in told.tolist()} == {(-1.0, 1.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--size", "30x8"), "--size 30x8: width and height must be multiples of 8"),
        (("--size", "0x8"), "such as 8x8"),
        (("--size=-8x8",), "such as 8x8"),
        (("--size", "large"), "argument --size: invalid shape value: 'large'"),
        (("--size", "32x8", "--best-of", "2"), "the verifier of the Shapes reads squares"),
    ],
)
def test_sizes_that_cannot_be_are_refused(script: Scripts, run: Path, words: tuple[str, ...], told: str) -> None:
    done = script("sample", run, "a wide picture", *words)
    assert (done.code, told in done.err.splitlines()[-1]) == (2, True), done.err


@pytest.mark.parametrize(
    ("preset", "more", "told"),
    [
        (TINY, ["data.buckets.step=4"], "data.buckets.step=4 is not divisible by 8, the network's factor"),
        (TINY, ["train.shard=true", "train.optimizer.matrices=adamw"], "with train.shard every process makes as many"),
        (TINY_VAE, [], "data.buckets is for stage.kind=diffusion, and vae is trained on squares"),
    ],
)
def test_runs_that_cannot_be_are_refused(
    script: Scripts, folder: Path, tmp_path: Path, preset: Path, more: list[str], told: str
) -> None:
    done = script("train", preset, *words(folder), *more, "--run", tmp_path / "run")
    assert (done.code, told in done.err.splitlines()[-1]) == (2, True), done.err


def test_the_doctor_counts_the_pictures_of_each_shape(script: Scripts, folder: Path, tmp_path: Path) -> None:
    done = script("prepare", "doctor", TINY, *words(folder), "--out", tmp_path / "out")
    assert done.code == 0, done.err
    counts = [sum(k * k % 7 % 3 == kind for k in range(20)) for kind in (2, 1, 0)]
    told = ", ".join(f"{num} of {width}x{height}" for num, (height, width) in zip(counts, SHAPES, strict=True))
    assert f"Trained on as: {told}." in (tmp_path / "out" / "report.md").read_text()
    assert "| small | 0 |" in done.out
    assert BucketsConfig(step=8, ratio=4.0).shapes(16) == SHAPES

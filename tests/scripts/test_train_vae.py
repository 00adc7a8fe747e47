"""An autoencoder and its critic through the commands of every run: kills, processes, and what is not for them.

The tiny preset makes 9 steps of two players with two micro-batches each, so a step has 4 losses; the codebook, the
contest with the critic (from step 4 on) and two optimizers have a history.
"""

import shutil
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
import torch

from lab.images import read_image
from lab.rundir import RunDir
from lab.training import checkpoint
from tests.faults import TINY_VAE, Scripts, forget, in_double, signal_at
from tests.lab.training.test_processes import are_stopped, distance, end
from tests.lab.training.test_resume import differences, measured


@pytest.fixture(scope="module")
def reference(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the tiny preset, trained without any interruption; only to be read."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    done = script("train", TINY_VAE, "--run", run)
    assert done.code == 0, done.err
    return run


def test_a_run_trains_both_players_and_keeps_what_they_remember(reference: Path) -> None:
    tensors = checkpoint.load(end(reference)).tensors
    assert {name.split(".")[0] for name in tensors["model"]} == {"model", "critic"}
    assert {name.split(".")[0] for name in tensors["optim"]} == {"model", "critic"}
    assert {name: tensor.item() != 0 for name, tensor in tensors["memory"].items()} == dict.fromkeys(
        ("step", "weight", "real", "fake"), True
    )
    codes = tensors["model"]["model.latent.codes"]
    assert torch.equal(codes, tensors["ema_0.050"]["latent.codes"])  # an average is decoded with the codes of the day
    lines = measured(reference)
    assert lines[-1]["train/psnr"] > lines[0]["train/psnr"] + 2
    assert lines[0]["train/critic/gradient_norm"] == 0 < lines[1]["train/critic/gradient_norm"]
    preview = read_image(reference / "previews" / "samples-00000009.png")
    assert preview.shape[2] > 2 * 3 * 16


@pytest.mark.parametrize(
    "places",
    [
        [("after_tensors", 1), ("loss", 7), ("loss", 9)],  # in the critic's first pass, then at the model's
        pytest.param([("after_rename", 2), ("loss", 1), ("before_rename", 2)], marks=pytest.mark.slow),
        pytest.param([("loss", 20), ("in_retention", 1), ("after_manifest", 1)], marks=pytest.mark.slow),
    ],
    ids=lambda places: "-".join(name for name, _ in places),
)
def test_a_killed_run_continues_bit_for_bit(
    script: Scripts, reference: Path, tmp_path: Path, places: list[tuple[str, int]]
) -> None:
    command = ("train", TINY_VAE, "--run", tmp_path / "run")
    for place, nth in places:
        assert script(*command, fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    done = script(*command)
    assert done.code == 0, done.err
    assert differences(reference, tmp_path / "run") == set()


@pytest.fixture(scope="module")
def cut(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after the critic has begun; only to be copied."""
    run = tmp_path_factory.mktemp("cut") / "run"
    assert script("train", TINY_VAE, "--run", run, fault=(signal_at, "loss", 26, SIGKILL)).code == -SIGKILL
    return run


@pytest.mark.parametrize(("part", "visible"), [("memory", "memory.safetensors"), ("optim", "model.safetensors")])
def test_a_resume_that_forgets_would_be_seen(
    script: Scripts, reference: Path, cut: Path, tmp_path: Path, part: str, visible: str
) -> None:
    run = Path(shutil.copytree(cut, tmp_path / "run"))
    assert script("train", TINY_VAE, "--run", run, fault=(forget, part)).code == 0
    assert visible in differences(reference, run)


def test_two_processes_make_the_steps_of_one(script: Scripts, tmp_path: Path) -> None:
    words = (
        *("train.optimizer.matrices=adamw", "train.batch=7", "train.micro_batch=2", "train.log_every=1"),
        *("train.preview_every=0", "--run"),
    )
    double = [[(in_double,)], [(in_double,)]]
    assert script("train", TINY_VAE, *words, tmp_path / "one", fault=(in_double,)).code == 0
    done = script.together("train", TINY_VAE, *words, tmp_path / "two", faults=double)
    assert [each.code for each in done] == [0, 0], [each.err for each in done]
    stop = [[(signal_at, "loss", 9, SIGTERM), (in_double,)]] * 2
    assert are_stopped(script.together("train", TINY_VAE, *words, tmp_path / "cut", faults=stop))
    assert script("train", TINY_VAE, *words, tmp_path / "cut", fault=(in_double,)).code == 0
    for name in ("two", "cut"):
        assert distance(tmp_path / "one", tmp_path / name) <= 1e-10
        for line, same in zip(measured(tmp_path / "one"), measured(tmp_path / name), strict=True):
            assert line == pytest.approx(same, rel=1e-7, abs=1e-12)


def test_a_run_begins_with_the_weights_of_another(script: Scripts, reference: Path, tmp_path: Path) -> None:
    words = (f"train.init_from={reference}", "train.steps=1", "--run", tmp_path / "run")
    done = script("train", TINY_VAE, "stage.loss.perceptual.kind=lite0", *words)
    assert done.code == 0, done.err
    (line,) = [each for each in RunDir.view(tmp_path / "run").metrics() if "train/psnr" in each]
    assert line["train/psnr"] > measured(reference)[0]["train/psnr"] + 2
    assert line["train/perceptual"] > 0
    done = script("train", TINY_VAE, "stage.autoencoder.widths=[8, 24]", *words[:-1], tmp_path / "other")
    assert done.code == 2
    assert "does not fit; differences" in done.err


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train", ("data.size=18",), "data.size=18 is not divisible by 8"),
        ("train", ("stage.crop=64",), "stage.crop=64 is more than data.size=16: lower it"),
        ("train", ("stage.crop=12",), "stage.crop=12 is not divisible by 8, the network's factor"),
        ("train", ("evaluate.every_steps=2",), "an autoencoder obeys no prompts: set evaluate.every_steps=0"),
        ("train", ("stage.autoencoder.patch=3",), "stage.autoencoder: patch 3 and 2 widths make"),
        ("train", ("stage.kind=gan",), "stage: unknown kind 'gan'; choose one of diffusion, grown, vae, fast"),
        ("train", ("stage.loss.pixels=l2",), "did you mean stage.loss.pixel?"),
        ("sample", ("a red circle",), "trains an autoencoder, which draws nothing from prompts"),
        ("evaluate", ("--steps", 3, "--no-distances"), "--steps is for runs that draw from prompts"),
    ],
)
def test_what_an_autoencoder_cannot_do_is_refused(
    script: Scripts, reference: Path, tmp_path: Path, command: str, words: tuple[str, ...], message: str
) -> None:
    subject = (TINY_VAE, "--run", tmp_path / "run") if command == "train" else (reference,)
    done = script(command, *subject, *words)
    assert done.code == 2, done.err
    assert message in done.err.splitlines()[-1]

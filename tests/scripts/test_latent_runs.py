"""Diffusion on the latents of an autoencoder that a run has trained: the same stage, the same commands."""

import json
import shutil
from pathlib import Path
from signal import SIGKILL

import pytest
import yaml

from lab.config import load
from lab.images import read_image
from lab.training import checkpoint
from scripts.assembly.experiments import AnyExperiment
from tests.faults import TINY, Scripts, signal_at
from tests.lab.training.test_resume import differences
from tests.vae.test_published import kl

TINY_VAE = TINY.with_name("tiny_vae.yaml")


@pytest.fixture(scope="module")
def autoencoder(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vae"
    done = script("train", TINY_VAE, "--run", run)
    assert done.code == 0, done.err
    return run


@pytest.fixture
def preset(autoencoder: Path, tmp_path: Path) -> Path:
    """The tiny preset on latents of 4 x 4 positions."""
    run = tmp_path / "vae"
    shutil.copytree(autoencoder, run)
    told = {
        "base": str(TINY),
        "stage": {"kind": "diffusion", "codec": {"kind": "autoencoder", "run": str(run)}, "unet": {"patch": 1}},
    }
    path = tmp_path / "latent.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def test_a_latent_run_is_trained_resumed_and_drawn_from(script: Scripts, preset: Path, tmp_path: Path) -> None:
    command = ("train", preset, "train.preview_every=5", "--run")
    done = script(*command, tmp_path / "whole")
    assert done.code == 0, done.err
    assert script(*command, tmp_path / "cut", fault=(signal_at, "loss", 7, SIGKILL)).code == -SIGKILL
    assert script(*command, tmp_path / "cut").code == 0
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    end = checkpoint.latest(tmp_path / "whole" / "ckpt")
    assert end is not None
    names = checkpoint.load(end).tensors["model"]
    assert all(name.startswith(("model.denoiser", "model.text", "denoiser", "text")) for name in names)
    drawn = script("sample", tmp_path / "whole", "a red circle", "--out", tmp_path / "out")
    assert drawn.code == 0, drawn.err
    (picture,) = (path for path in (tmp_path / "out").glob("*.png") if "grid" not in path.name)
    assert read_image(picture).shape == (3, 16, 16)


def test_a_latent_run_starts_from_the_weights_of_another(script: Scripts, preset: Path, tmp_path: Path) -> None:
    assert script("train", preset, "train.steps=2", "train.preview_every=0", "--run", tmp_path / "first").code == 0
    words = ("train.steps=1", "train.preview_every=0", f"train.init_from={tmp_path / 'first'}")
    done = script("train", preset, *words, "--run", tmp_path / "second")
    assert done.code == 0, done.err


def test_the_scale_of_latents_is_measured_once_and_stands_in_both_runs(
    script: Scripts, preset: Path, tmp_path: Path
) -> None:
    shown = script("prepare", "standardise", tmp_path / "vae")
    assert shown.code == 0, shown.err
    assert shown.out.count("channel ") == 4
    (kept,) = (tmp_path / "vae").glob("latents-*.json")
    facts = json.loads(kept.read_text()) | {"mean": [1.0, 2.0, 3.0, 4.0]}
    kept.write_text(json.dumps(facts))  # to see that it is read, and by nobody measured again
    assert script("train", preset, "train.steps=2", "--run", tmp_path / "run").code == 0
    config = load(tmp_path / "run" / "config.yaml", [], AnyExperiment).stage
    assert config.codec.statistics.mean == (1.0, 2.0, 3.0, 4.0)  # type: ignore[union-attr]
    assert config.codec.origin.checkpoint in kept.name  # type: ignore[union-attr]


def test_an_autoencoder_that_moved_or_trained_on_is_found_by_its_hash(
    script: Scripts, preset: Path, tmp_path: Path
) -> None:
    command = ("train", "--resume", tmp_path / "run")
    assert script("train", preset, "train.steps=2", "--run", tmp_path / "run").code == 0
    assert script("train", "--resume", tmp_path / "vae", "train.steps=10").code == 0  # keeps the one before
    (tmp_path / "vae").rename(tmp_path / "moved")
    done = script(*command, "train.steps=3", f"stage.codec.run={tmp_path / 'moved'}")
    assert done.code == 0, done.err
    assert script("train", "--resume", tmp_path / "moved", "train.steps=12").code == 0  # forgets it
    done = script(*command, "train.steps=4")
    assert done.code == 2
    assert "no checkpoint" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("stage.codec.run=/nowhere",), "is not a run directory"),
        (("stage.unet.patch=4",), "is not divisible by 32"),
        (("stage.codec.weights=ema_0.700",), "no weights 'ema_0.700' there"),
    ],
)
def test_what_does_not_fit_is_one_line(script: Scripts, preset: Path, words: tuple[str, ...], answer: str) -> None:
    done = script("train", preset, *words, "--run", preset.parent / "run")
    assert done.code == 2
    assert answer in done.err.splitlines()[-1]


def test_prepared_latents_are_read_and_never_computed_again(script: Scripts, preset: Path, tmp_path: Path) -> None:
    words = (f"stage.codec.cache={tmp_path / 'cache'}", "train.steps=3", "evaluate.every_steps=0")
    done = script("prepare", preset, *words, "--num", 4, "--out", tmp_path / "doctor")
    assert done.code == 0, done.err
    assert "latent cache: 18 images, 18 of them new" in done.out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert script("train", preset, *words, "--run", tmp_path / "cached").code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == before
    assert script("train", preset, *words[1:], "--run", tmp_path / "plain").code == 0
    losses = [
        [json.loads(line)["train/loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cached", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    again = script("prepare", preset, *words, "--num", 4, "--out", tmp_path / "doctor")
    assert "latent cache: 18 images, 0 of them new" in again.out


@pytest.mark.slow
def test_a_published_autoencoder_that_moved_is_gone_on_with_and_another_is_not(
    script: Scripts, preset: Path, tmp_path: Path
) -> None:
    kl().save_pretrained(tmp_path / "theirs")
    told = yaml.safe_load(preset.read_text())
    told["stage"]["codec"] = {"kind": "published", "pretrained": str(tmp_path / "theirs")}
    preset.write_text(yaml.safe_dump(told))
    done = script("train", preset, "train.steps=2", "train.preview_every=2", "--run", tmp_path / "run")
    assert done.code == 0, done.err
    (tmp_path / "theirs").rename(tmp_path / "moved")
    command = ("train", "--resume", tmp_path / "run", f"stage.codec.pretrained={tmp_path / 'moved'}")
    assert script(*command, "train.steps=3").code == 0
    drawn = script("sample", tmp_path / "run", "a red circle", "--out", tmp_path / "out")
    assert drawn.code == 0, drawn.err
    (picture,) = (path for path in (tmp_path / "out").glob("*.png") if "grid" not in path.name)
    assert read_image(picture).shape == (3, 16, 16)
    kl(scaling_factor=2.0).save_pretrained(tmp_path / "moved")
    done = script(*command, "train.steps=4")
    assert done.code == 2
    assert "other files" in done.err.splitlines()[-1]


def test_a_diffusion_run_is_no_autoencoder(script: Scripts, reference: Path, preset: Path) -> None:
    done = script("train", preset, f"stage.codec.run={reference}", "--run", preset.parent / "run")
    assert done.code == 2
    assert "trains no autoencoder" in done.err.splitlines()[-1]

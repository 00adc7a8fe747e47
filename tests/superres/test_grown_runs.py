"""Growing a model on a run: the same commands as for any run, and what does not fit is one line."""

import hashlib
import json
import shutil
from pathlib import Path
from signal import SIGKILL

import pytest
import yaml

from diffusion.stage import DiffusionConfig
from lab.config import load
from lab.errors import Refused
from lab.images import read_image
from lab.training import checkpoint
from scripts.assembly import growing
from scripts.assembly.experiments import AnyExperiment
from tests.faults import TINY, TINY_VAE, Scripts, signal_at
from tests.lab.training.test_resume import differences, spoil
from vae.latent import LatentsConfig
from vae.published import PublishedConfig

SAMPLING = {"steps": 3, "chunk": 4, "guidance": 2}


def preset(source: Path, size: int, path: Path, **stage: object) -> Path:
    """A preset that grows a source to ``size`` pixels."""
    grown = {"kind": "grown", "source": str(source), "levels": {"widths": [16], "depth": 1}, "sampling": SAMPLING}
    told = {"base": str(TINY), "name": path.stem, "data": {"size": size}, "stage": {**grown, **stage}}
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.fixture(scope="module")
def grown(script: Scripts, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run grown on the reference, to 32 pixels; only to be read."""
    root = tmp_path_factory.mktemp("grown")
    done = script("train", preset(reference, 32, root / "grown.yaml"), "--run", root / "run")
    assert done.code == 0, done.err
    return root / "run"


@pytest.fixture
def copied(reference: Path, tmp_path: Path) -> Path:
    """A source of the test's own."""
    shutil.copytree(reference, tmp_path / "source")
    return tmp_path / "source"


def hashes(run: Path) -> dict[str, str]:
    """Of every file of the checkpoints."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (run / "ckpt").rglob("*")
        if path.is_file()
    }


def test_a_run_is_grown_killed_resumed_and_leaves_its_source_alone(
    script: Scripts, reference: Path, grown: Path, tmp_path: Path
) -> None:
    before = hashes(reference)
    command = ("train", preset(reference, 32, tmp_path / "grown.yaml"), "--run", tmp_path / "cut")
    for nth in (3, 8):
        assert script(*command, fault=(signal_at, "loss", nth, SIGKILL)).code == -SIGKILL
    assert script(*command).code == 0
    assert differences(grown, tmp_path / "cut") == set()
    assert hashes(reference) == before


def test_checkpoints_hold_the_new_weights_alone_and_the_run_names_its_source(grown: Path, reference: Path) -> None:
    end, source = checkpoint.latest(grown / "ckpt"), checkpoint.latest(reference / "ckpt")
    assert end is not None
    assert source is not None
    tensors = checkpoint.load(end).tensors
    new = {"level", "text", "up", "head"}
    assert {name.split(".")[3] for stem in ("model", "optim") for name in tensors[stem]} == new
    assert {name.split(".")[2] for name in tensors["ema_0.050"]} == new
    config = load(grown / "config.yaml", [], AnyExperiment)
    there = load(reference / "config.yaml", [], AnyExperiment)
    assert config.text == there.text
    facts = json.loads((reference / "environment.json").read_text())
    assert config.stage.root.model_dump() == {  # type: ignore[union-attr]
        "run": facts["run_id"],
        "checkpoint": checkpoint.identity(source),
        "weights": "ema",
    }


@pytest.mark.parametrize(
    "words", [(), ("--sampler", "dpmpp_2m", "--guidance", "3"), ("--weights", "raw", "--guidance", "1")], ids=str
)
def test_a_grown_run_draws(script: Scripts, grown: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = script("sample", grown, "a red circle", "--out", tmp_path, *words)
    assert done.code == 0, done.err
    (picture,) = (path for path in tmp_path.glob("*.png") if "grid" not in path.name)
    assert read_image(picture).shape == (3, 32, 32)


def test_a_grown_run_is_no_upscaler_and_says_what_to_do(
    script: Scripts, reference: Path, grown: Path, tmp_path: Path
) -> None:
    done = script("sample", reference, "a red circle", "--upscale", grown, "--out", tmp_path)
    assert done.code == 2
    assert f'python scripts/sample.py {grown} "PROMPT"' in done.err.splitlines()[-1]


def test_a_grown_run_is_evaluated_and_grown_again(script: Scripts, grown: Path, tmp_path: Path) -> None:
    done = script("evaluate", grown, "--num", "2", "--no-distances", "--json", tmp_path / "figures.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "figures.json").read_text())["prompt_accuracy"]["pair"]["n"] == 4
    again = preset(grown, 64, tmp_path / "again.yaml")
    done = script("train", again, "train.steps=1", "--run", tmp_path / "again")
    assert done.code == 0, done.err
    done = script("sample", tmp_path / "again", "a red circle", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    (picture,) = (path for path in (tmp_path / "out").glob("*.png") if "grid" not in path.name)
    assert read_image(picture).shape == (3, 64, 64)


def test_a_grown_run_begins_with_the_weights_of_another(
    script: Scripts, reference: Path, grown: Path, tmp_path: Path
) -> None:
    words = (preset(reference, 32, tmp_path / "grown.yaml"), f"train.init_from={grown}", "train.steps=1")
    done = script("train", *words, "--run", tmp_path / "run")
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["init_from"]["run"] == json.loads((grown / "environment.json").read_text())["run_id"]


def test_a_runs_own_configuration_is_held_against_its_source_again(
    script: Scripts, grown: Path, tmp_path: Path
) -> None:
    done = script("train", grown / "config.yaml", "data.size=64", "--run", tmp_path / "run")
    assert done.code == 2
    assert "set data.size=32" in done.err.splitlines()[-1]
    done = script("train", grown / "config.yaml", "stage.weights=raw", "--run", tmp_path / "run")
    assert done.code == 2
    assert "stage.weights=raw, but ema of " in done.err.splitlines()[-1]
    done = script("train", grown / "config.yaml", "stage.weights=raw", "stage.root=null", "--run", tmp_path / "run")
    assert done.code == 0, done.err


def test_a_source_that_moved_or_trained_on_is_found_by_its_hash(script: Scripts, copied: Path, tmp_path: Path) -> None:
    command = ("train", "--resume", tmp_path / "run")
    words = (preset(copied, 32, tmp_path / "grown.yaml"), "train.steps=2")
    assert script("train", *words, "--run", tmp_path / "run").code == 0
    assert script("train", "--resume", copied, "train.steps=10").code == 0  # keeps the one before
    copied.rename(tmp_path / "moved")
    done = script(*command, "train.steps=3")
    assert done.code == 2
    assert "name its new place by stage.source=RUN" in done.err.splitlines()[-1]
    done = script(*command, "train.steps=3", f"stage.source={tmp_path / 'moved'}")
    assert done.code == 0, done.err
    assert script("train", "--resume", tmp_path / "moved", "train.steps=12").code == 0  # forgets it
    for again in ((*command, "train.steps=4"), ("sample", tmp_path / "run", "a red circle")):
        done = script(*again)
        assert done.code == 2
        assert "stage.source: " in done.err.splitlines()[-1]
        assert "no checkpoint" in done.err.splitlines()[-1]


def test_a_missing_source_of_the_source_is_told_with_whose_it_is(script: Scripts, copied: Path, tmp_path: Path) -> None:
    first = (preset(copied, 32, tmp_path / "first.yaml"), "train.steps=1", "--run", tmp_path / "first")
    second = (preset(tmp_path / "first", 64, tmp_path / "second.yaml"), "train.steps=1", "--run", tmp_path / "second")
    assert script("train", *first).code == 0
    copied.rename(tmp_path / "moved")
    done = script("train", *second)
    assert done.code == 2
    line = done.err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / 'first'}: stage.source: ")
    assert "name its new place by stage.source=RUN" in line


def test_a_source_that_was_changed_or_exchanged_is_refused(script: Scripts, copied: Path, tmp_path: Path) -> None:
    words = (preset(copied, 32, tmp_path / "grown.yaml"), "train.steps=2", "--run", tmp_path / "run")
    assert script("train", *words).code == 0
    end = checkpoint.latest(copied / "ckpt")
    assert end is not None
    spoil(end / "ema_0.050.safetensors")
    done = script("train", "--resume", tmp_path / "run", "train.steps=3")
    assert done.code == 2
    line = done.err.splitlines()[-1]
    assert "ema_0.050.safetensors is not what was written (hash differs); put it back as it was" in line
    spoil(end / "ema_0.050.safetensors")  # flips the bit back
    facts = json.loads((copied / "environment.json").read_text())
    (copied / "environment.json").write_text(json.dumps(facts | {"run_id": "0" * 16}))
    done = script("sample", tmp_path / "run", "a red circle")
    assert done.code == 2
    assert f"is run {'0' * 16}, but run {facts['run_id']} was grown" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("data.size=64",), "draws 16 pixels and grows to twice as many: set data.size=32"),
        (("stage.source=/nowhere",), "/nowhere: is not a run directory"),
        (("stage.weights=ema_0.700",), "no weights 'ema_0.700' there"),
        (("text.layers=3",), "whose encoder stays as it is: leave it out"),
        (("stage.loss.offset_noise=0.1",), "halve white noise but no offset"),
        (("stage.levels.widths=[20]",), "widths must be positive multiples of 16, got [20]"),
        (("stage.levels.widths=[16, 16, 16, 16]",), "each level halves the pixels per position, which are 4"),
    ],
)
def test_what_does_not_fit_is_one_line(
    script: Scripts, reference: Path, tmp_path: Path, words: tuple[str, ...], answer: str
) -> None:
    done = script("train", preset(reference, 32, tmp_path / "grown.yaml"), *words, "--run", tmp_path / "run")
    assert done.code == 2
    assert answer in done.err.splitlines()[-1]
    assert not (tmp_path / "run" / "ckpt").exists()


ORIGIN = {"run": "0", "checkpoint": "0", "weights": "ema", "factor": 1}
LATENTS = {
    "kind": "autoencoder",
    "run": "vae",
    "origin": ORIGIN,
    "statistics": {"mean": [0.0], "std": [1.0], "num": 1},
}


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"codec": LATENTS}, "means of latents are no latents of smaller images"),
        ({"loss": {"offset_noise": 0.1}}, "do not halve as they halve white noise"),
        ({"frames": True}, "nobody would tell it that when it is grown"),
        (yaml.safe_load(TINY_VAE.read_text())["stage"], "trains an autoencoder, and only a denoiser grows"),
    ],
    ids=["latents", "offset-noise", "frames", "vae"],
)
def test_a_source_of_another_kind_is_refused(
    script: Scripts, copied: Path, tmp_path: Path, change: dict[str, object], answer: str
) -> None:
    """The checkpoint is good, and its configuration says that it is of something else."""
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["stage"] = change if change.get("kind") else config["stage"] | change
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    done = script("train", preset(copied, 32, tmp_path / "grown.yaml"), "--run", tmp_path / "run")
    assert done.code == 2
    assert answer in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    "codec", [PublishedConfig(pretrained="theirs"), LatentsConfig(run="ours")], ids=lambda c: c.kind
)
def test_a_source_on_latents_of_any_kind_does_not_grow(codec: PublishedConfig | LatentsConfig) -> None:
    source = load(TINY, [], AnyExperiment)
    assert isinstance(source.stage, DiffusionConfig)
    growing.check(source, Path("source"))
    latent = source.model_copy(update={"stage": source.stage.model_copy(update={"codec": codec})})
    with pytest.raises(Refused, match="means of latents are no latents"):
        growing.check(latent, Path("source"))

"""Every preset says what it is for, loads, comes back from its own dump, and builds, without its data and weights."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lab import runtime as runtimes
from lab.config import dump, load
from lab.data.collection import Collection
from lab.data.shapes import Shapes
from lab.data.sources import source
from lab.errors import Refused
from lab.runtime import RuntimeConfig
from lab.text import selection
from lab.text.clip import ClipConfig, vocabulary
from lab.text.frozen import PretrainedConfig
from lab.text.weights import Identity
from scripts.assembly import assemble, experiments, latent
from scripts.assembly.experiments import AnyExperiment
from superres.stage import GrownConfig
from tests.faults import ROOT, Scripts
from vae.codec import PixelsConfig

PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
SIDES = {"minilm": 384, "google/flan-t5-base": 768}  # widths of pretrained encoders
EMOJI = ROOT / "configs" / "emoji64.yaml"


@pytest.fixture(params=PRESETS, ids=lambda path: path.stem)
def preset(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_a_preset_opens_with_its_purpose_its_command_its_cost_and_what_to_expect(preset: Path) -> None:
    lines = preset.read_text().splitlines()
    comment = lines[: next(k for k, line in enumerate(lines) if not line.startswith("#"))]
    assert comment[0].endswith(".")
    assert f"python scripts/train.py configs/{preset.name}" in "\n".join(comment)
    assert [line.split(":")[0] for line in comment if line.startswith(("# Cost: ", "# Expect: "))] == [
        "# Cost",
        "# Expect",
    ]


def test_a_preset_comes_back_from_its_own_dump(preset: Path, tmp_path: Path) -> None:
    experiment = experiments.load(preset, [])
    assert experiment.name == preset.stem
    (tmp_path / "config.yaml").write_text(dump(experiment))
    assert load(tmp_path / "config.yaml", [], AnyExperiment) == experiment


def test_a_preset_builds_a_network_for_its_images(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiments.load(preset, [])
    if isinstance(experiment.stage, GrownConfig):
        pytest.skip("this one needs the run that it grows: see tests/superres/test_grown_presets.py")
    text = experiment.text
    if isinstance(text, PretrainedConfig) and text.pretrained:
        known = Identity(weights="0", tokenizer="0", width=SIDES[text.pretrained])
        text = text.model_copy(update={"identity": known})
    text = selection.complete(text, None, lambda: ["a red fox"], allow_download=False)
    runtime = runtimes.start(RuntimeConfig(device="cpu", precision="fp32", channels_last=False))
    if getattr(experiment.stage, "codec", PixelsConfig()) != PixelsConfig():  # the autoencoder is not here
        monkeypatch.setattr(latent, "codec", lambda *_: SimpleNamespace(channels=4, factor=8))
    with torch.device("meta"):
        stage = assemble.stage(experiment.model_copy(update={"text": text}), runtime)
        model = stage.players["model"]
    network = getattr(model, "denoiser", model)
    num = sum(weight.numel() for weight in network.parameters())
    assert 5e5 < num < 2e8


def test_a_preset_without_its_data_says_how_to_have_it(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = experiments.load(preset, []).data
    if not isinstance(data, Collection):
        pytest.skip("this one needs no files")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"no such (file|folder).*; to have it: \w+") as caught:
        source(data)
    assert str(caught.value).endswith(data.remedy)


def test_the_refusal_of_the_emoji_names_the_command_that_makes_them(script: Scripts, tmp_path: Path) -> None:
    words = (f"data.path={tmp_path}/none", "text={kind: clip, width: 16, layers: 1, heads: 2}", "--run")
    done = script("train", EMOJI, *words, tmp_path / "run")
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert "none: no such folder" in line
    assert line.endswith("to have it: python scripts/prepare.py emoji data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reads"),
    [("tiny", True), ("tiny_cascade", True), ("tiny_scorer", True), ("tiny_vae", False), ("tiny_fast", False)],
)
def test_captions_are_read_only_for_what_hears_them(name: str, reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = experiments.load(ROOT / "tests" / f"{name}.yaml", ["runtime.precision=fp32"])
    monkeypatch.setattr(Shapes, "captions", lambda _: ["a red fox"])
    text = assemble.complete(asked).text
    assert isinstance(text, ClipConfig)
    assert text.vocabulary == vocabulary(["a red fox"] if reads else [])


def test_a_run_that_once_read_captions_in_vain_goes_on() -> None:
    asked = experiments.load(ROOT / "tests" / "tiny_vae.yaml", ["runtime.precision=fp32"])
    old = asked.text.model_copy(update={"vocabulary": vocabulary(["a red fox"])})
    before = assemble.complete(asked).model_copy(update={"text": old})
    assert assemble.complete(asked, before) == before

"""The presets that grow: each builds on the one before, and trains few weights."""

from pathlib import Path

import pytest
import torch

from lab import runtime as runtimes
from lab.runtime import RuntimeConfig
from scripts.assembly import assemble, experiments
from tests.faults import ROOT, Scripts

SHORT = ("train.steps=1", "train.batch=2", "train.preview_every=0", "evaluate.every_steps=0", "runtime.device=cpu")
PLAIN = ("runtime.precision=fp32", "runtime.channels_last=false", "runtime.threads=1")


def num_weights(experiment: experiments.AnyExperiment) -> int:
    """What is trained, text encoder included."""
    settings = RuntimeConfig(device="cpu", precision="fp32", channels_last=False)
    completed = assemble.complete(experiment.model_copy(update={"runtime": settings}))
    runtime = runtimes.start(settings)
    with torch.device("meta"):
        model = assemble.stage(completed, runtime).players["model"]
    return sum(weight.numel() for weight in model.parameters())


@pytest.fixture
def chain(script: Scripts, tmp_path: Path) -> dict[str, Path]:
    """Runs of one step of the preset of 32 px and of each that grows, by preset."""
    runs: dict[str, Path] = {}
    source: tuple[str, ...] = ()
    for name in ("shapes", "shapes64_grown", "shapes128_grown"):
        runs[name] = tmp_path / name
        done = script("train", ROOT / "configs" / f"{name}.yaml", *SHORT, *PLAIN, *source, "--run", runs[name])
        assert done.code == 0, done.err
        source = (f"stage.source={runs[name]}",)
    return runs


def test_each_preset_grows_the_one_before_and_trains_at_most_two_fifths_of_the_weights(chain: dict[str, Path]) -> None:
    scratch = num_weights(experiments.load(ROOT / "configs" / "shapes64.yaml", []))
    for name, source in (("shapes64_grown", "shapes"), ("shapes128_grown", "shapes64_grown")):
        experiment = experiments.load(ROOT / "configs" / f"{name}.yaml", [f"stage.source={chain[source]}"])
        below = experiments.load(chain[source] / "config.yaml", [])
        assert experiment.stage.schedule.shift == 2 * below.stage.schedule.shift  # type: ignore[union-attr]
        assert 1e5 < num_weights(experiment) < 0.4 * scratch

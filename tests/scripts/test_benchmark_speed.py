"""scripts/benchmark.py: what speed is measured beside, and that slow parts show."""

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.pipeline import Pipeline
from diffusion.unet import UNetConfig
from lab import runtime as runtimes
from lab.data.loader import Loader
from lab.data.shapes import Shapes
from lab.errors import Refused
from lab.rundir import RunDir
from lab.text.auto import TransformerText
from scripts import benchmark
from scripts.assembly import assemble, experiments
from scripts.assembly.drawing import Trained
from scripts.benchmarks import (
    against_diffusers,
    against_unet,
    bare_loop,
    overhead,
    training,
)
from scripts.benchmarks.timing import alternating
from tests.faults import TINY, Scripts
from tests.lab.data.test_finite import make
from tests.scripts.test_benchmark import sampling, trained
from vae.codec import Pixels

__all__ = ["trained"]  # a fixture


def test_sides_take_turns_in_changing_order() -> None:
    calls: list[str] = []
    seconds = alternating({"a": lambda: calls.append("a"), "b": lambda: time.sleep(0.01)}, 3, "test")
    assert (len(calls), len(seconds["a"]), len(seconds["b"])) == (4, 3, 3)
    order: list[str] = []
    alternating({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "test")
    assert "".join(order) in ("abbaab", "baabba")


class Slow:
    """Pixels whose decoding takes its time."""

    channels, factor = Pixels.channels, Pixels.factor

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return Pixels().posterior(images)

    def decode(self, latents: Tensor) -> Tensor:
        time.sleep(0.3)
        return latents


def test_overhead_is_what_the_network_does_not_take(trained: Trained) -> None:
    slow = replace(trained.pipeline, codec=Slow())
    share, per_step, apart = overhead.measure(slow, sampling(), repeats=3)
    assert 0.3 / 4 < per_step < 0.6 / 4
    assert min(share, apart) > 0.5
    network = trained.pipeline.model.denoiser.network
    slow_network(network)
    try:
        share, _, _ = overhead.measure(trained.pipeline, sampling(), repeats=3)
    finally:
        del network.forward
    assert share < 0.2


def slow_network(network: torch.nn.Module) -> None:
    honest = network.forward

    def forward(*arguments: Any) -> Any:
        time.sleep(0.05)
        return honest(*arguments)

    network.forward = forward  # type: ignore[method-assign]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_diffusers_draws_the_same_pictures(trained: Trained, sampler: str, guidance: float) -> None:
    same = sampling(sampler=sampler, steps=20, spacing="trailing", guidance=guidance)
    assert against_diffusers.distance(trained.pipeline, same) < 1e-4
    other = same.model_copy(update={"spacing": "karras"})  # what theirs does not walk along
    assert against_diffusers.distance(trained.pipeline, other) > 1e-3


def test_a_schedule_that_diffusers_does_not_know(trained: Trained) -> None:
    from diffusion.parameterization import Edm

    denoiser = SimpleNamespace(parameterization=Edm(), schedule=None)
    model = SimpleNamespace(denoiser=denoiser)
    with pytest.raises(Refused, match="know no parameterization edm"):
        against_diffusers.Theirs(Pipeline(model, Pixels(), 8, trained.pipeline.runtime), sampling())  # type: ignore[arg-type]


@pytest.fixture
def slow_data(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Shapes.sample

    def sample(self: Shapes, seed: int, slot: int) -> Any:
        time.sleep(0.05)
        return honest(self, seed, slot)

    monkeypatch.setattr(Shapes, "sample", sample)


@pytest.mark.usefixtures("slow_data")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_slow_data_shows_in_the_speed_of_training_and_in_its_parts(tmp_path: Path, workers: int) -> None:
    quiet = ["train.log_every=1", "train.preview_every=0", "train.checkpoint_every=100", "evaluate.every_steps=0"]
    quiet.append(f"train.workers={workers}")
    experiment = assemble.complete(experiments.load(TINY, quiet))
    seconds, shares = training.measure(experiment, tmp_path, steps=2, repeats=1)
    assert [len(steps) for steps in seconds.values()] == [2, 2]
    assert min(seconds["loader"]) > (0.3, 0.2)[workers]  # batches of 6; a worker loads while a step is made
    assert max(seconds["kept"]) < 0.2
    assert shares["data"] > max(shares[part] for part in ("forward", "backward", "optimizer"))
    assert min(shares.values()) > 0
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.slow
def test_what_a_text_cache_saves_is_told(
    tmp_path: Path,
    encoder_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest = TransformerText.forward

    def slow(self: TransformerText, prepared: Any) -> Any:
        time.sleep(1)
        return honest(self, prepared)

    monkeypatch.setattr(TransformerText, "forward", slow)
    make(tmp_path / "data", 8)
    data = f"data={{kind: folder, path: {tmp_path / 'data'}, size: 16, cache: {tmp_path}}}"
    text = f"text={{kind: auto, pretrained: {encoder_folder('bert')}, context: 16, cache: {tmp_path / 'text'}}}"
    assert benchmark.main(["train", str(TINY), data, text, "--alone", "--steps", "1", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    found = re.search(
        r"loader ([\d.]+), .*encoding the captions in the loop ([\d.]+); .* ([\d.]+) times that", out, re.S
    )
    assert found
    loader, encoding, gain = map(float, found.groups())
    assert encoding < 6  # batches of 6 wait for the encoder, which takes a second
    assert 1.3 < gain == pytest.approx(loader / encoding, rel=0.05)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("train {tiny} --alone train.batchh=3", "{tiny}: train.batchh: unknown key (given 3); did you mean "),
        ("train {tiny} --alonee", "unrecognized arguments: --alonee"),
        ("evaluation --num 20 {tiny}", "unrecognized arguments: {tiny}"),
    ],
)
def test_settings_may_stand_behind_an_option(script: Scripts, words: str, answer: str) -> None:
    done = script("benchmark", *words.format(tiny=TINY).split())
    assert (done.code, done.out) == (2, "")
    assert answer.format(tiny=TINY) in done.err.splitlines()[-1]


BERT, CLIP = "{kind: auto, pretrained: bert%s}", "{kind: clip, width: 16, layers: 1, heads: 2}"


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (BERT % "", [None]),
        (f"{{kind: concat, parts: [{CLIP}, {BERT % ''}]}}", [None, None]),
        (BERT % ", frozen: false", []),
        (BERT % ", cache: null", []),
        (CLIP, []),
    ],
)
def test_a_side_without_a_text_cache_is_where_there_is_one(text: str, places: list[None]) -> None:
    experiment = experiments.load(TINY, [f"text={text}"])
    without = training.uncached(experiment)
    assert (without is not None) == bool(places)
    if without:
        assert [part.cache for part in getattr(without.text, "parts", [without.text])] == places
        assert without.model_copy(update={"text": experiment.text}) == experiment


def test_the_loop_by_hand_makes_the_trainer_s_step(tmp_path: Path) -> None:
    """Or their times would say nothing: one step of each from the same weights moves every weight alike."""
    quiet = ["train.optimizer.matrices=adamw", "train.optimizer.rate=1e-3", "train.optimizer.warm_up=0"]
    words = [*quiet, "train.optimizer.weight_decay=0.01", "train.optimizer.decay=none", "train.preview_every=0"]
    experiment = assemble.complete(experiments.load(TINY, [*words, "train.steps=1", "stage.unet.dropout=0"]))
    runtime = runtimes.start(experiment.runtime)
    stage = assemble.stage(experiment, runtime)
    window = Loader(Shapes(experiment.data), experiment.seed).batch(range(experiment.train.batch)).split(4)
    loop = bare_loop.BareLoop(stage, window, runtime)
    loop.step()
    with RunDir.create(tmp_path / "run", experiment) as rundir:
        trainer = assemble.trainer(experiment, rundir)
        before = {name: weight.clone() for name, weight in trainer.stage.players["model"].state_dict().items()}
        trainer.fit()
    for name, weight in trainer.stage.players["model"].state_dict().items():
        moved, by_hand = weight - before[name], loop.model.state_dict()[name] - before[name]
        assert (moved - by_hand).abs().max() <= 2e-5  # vectors do not decay in the trainer: 1e-3 * 0.01


def test_the_trainer_and_the_loop_by_hand_take_turns(tmp_path: Path) -> None:
    words = ["train.micro_batch=3", "train.log_every=1", "train.preview_every=0", "train.checkpoint_every=100"]
    experiment = assemble.complete(experiments.load(TINY, words))
    times = bare_loop.measure(experiment, tmp_path, steps=1, repeats=2)
    turns = dataclasses.asdict(times)
    assert {what: len(seconds) for what, seconds in turns.items()} == dict.fromkeys(turns, 2)
    assert min(min(seconds) for seconds in turns.values()) > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_diffusers_network_is_built_with_the_same_settings(capsys: pytest.CaptureFixture[str]) -> None:
    config = UNetConfig(patch=2, widths=(32, 64), depth=1, middle=2, attention=(1,), head_width=16)
    more = against_unet.as_much_work(config)
    their = against_unet.theirs(config, 16, width=24)
    assert blocks(against_unet.ours(more, 24), "ResidualBlock") == 4 + 5
    assert blocks(their, "ResnetBlock2D") == 3 + 5  # the fine level's, and the coarse level's of both ways and between
    assert blocks(against_unet.ours(more, 24), "Transformer") == 5
    assert blocks(their, "BasicTransformerBlock") == 4
    attention = next(m for m in their.modules() if type(m).__name__ == "Attention")
    assert (attention.heads, attention.inner_dim) == (4, 64)
    experiment = assemble.complete(experiments.load(TINY, []))
    against_unet.compare(experiment, repeats=1)
    said = capsys.readouterr().out
    assert said.count("images per second, ") == 4
    assert said.count("bar: ") == 1


def blocks(network: Any, name: str) -> int:
    return sum(type(module).__name__ == name for module in network.modules())

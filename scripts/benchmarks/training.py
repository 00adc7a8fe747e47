"""How fast the trainer's step is with its loader and with one batch kept in memory, and what a step consists of.

Both are steps of one trainer in a temporary folder, which takes every other batch from memory: what else the machine
does meets both alike. Where a text encoder is frozen, another trainer takes turns with it and encodes every caption
anew, as if there were no cache. Checkpoints are written between the turns and do not count.
"""

import argparse
import tempfile
import time
from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from lab import runtime as runtimes
from lab.data.loader import Batch, Loader
from lab.rundir import RunDir
from lab.text.concat import ConcatConfig
from lab.training.stage import Stage
from scripts.assembly import assemble, experiments
from scripts.assembly.experiments import DiffusionExperiment
from scripts.benchmarks import against_unet
from scripts.benchmarks.timing import met
from scripts.preparation import checkup

BAR = 0.95
PRESET = "configs/shapes.yaml"
PARTS = ("forward", "backward", "optimizer", "data", "rest")


@dataclass(frozen=True)
class Kept:
    """Gives the same batches for ever, in the place of a loader.

    Attributes:
        window: the batches of one step.
    """

    window: Sequence[Batch]

    def batches(self, start: int, sizes: Sequence[int], skipped: int = 0) -> Generator[Batch, None, None]:
        """Give the batches round and round."""
        while True:
            yield from self.window


@dataclass(frozen=True)
class Alternating:
    """Gives steps from a loader and steps from memory in turn, in the place of a loader.

    Attributes:
        loader: loads.
        window: the batches of one step, which are kept.
        length: steps before the other side's turn. Workers load ahead, so their turns are long, and each starts anew.
    """

    loader: Loader
    window: Sequence[Batch]
    length: int

    def batches(self, start: int, sizes: Sequence[int], skipped: int = 0) -> Generator[Batch, None, None]:
        """Give ``length`` loaded steps, as many kept ones, and so on; see ``Loader.batches``."""
        while True:
            with closing(self.loader.batches(start, sizes, skipped)) as loaded:
                for _ in range(self.length):
                    samples = 0
                    while samples < sum(sizes):
                        yield (batch := next(loaded))
                        samples += len(batch)
            start += self.length * (sum(sizes) + skipped)
            for _ in range(self.length):
                yield from self.window


class Clocked:
    """A stage whose parts of a step are timed: a ``Stage`` around another.

    The backward pass is what lies between the loss and the optimizer, clipping included.

    Args:
        stage: what is trained.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.players: MutableMapping[str, nn.Module] = stage.players
        self.memory, self.needs_whole_batch = stage.memory, stage.needs_whole_batch
        self.seconds = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
        self._since = 0.0

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give the stage's loss, on the clock."""
        self._note(None)
        result = self.stage.loss(player, batch)
        self._note("forward")
        return result

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Let the stage take note of a step."""
        self.stage.after_step(samples)

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Draw the stage's preview."""
        return self.stage.preview(model, captions)

    def findings(self) -> Mapping[str, float]:
        """Give the stage's findings."""
        return self.stage.findings()

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw the stage's charts."""
        return self.stage.charts()

    def watch(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Time the steps of these optimizers, which follow each other."""
        for k, optimizer in enumerate(optimizers):
            part = "optimizer" if k else "backward"
            optimizer.register_step_pre_hook(lambda *_, part=part: self._note(part))
            optimizer.register_step_post_hook(lambda *_: self._note("optimizer"))

    def _note(self, part: str | None) -> None:
        """Book the time since the last note on a part; what None ends is booked elsewhere."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if part is not None:
            self.seconds[part] += now - self._since
        self._since = now


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    presets = [word for word in options.words if "=" not in word] or [PRESET]
    overrides = [word for word in options.words if "=" in word]
    quiet = ["train.preview_every=0", "evaluate.every_steps=0", "train.log_every=1"]
    far = f"train.checkpoint_every={2 * (options.steps + 1) * (options.repeats + 1)}"
    preset = Path(presets[0])
    experiment = assemble.complete(experiments.diffusion(experiments.load(preset, [*overrides, *quiet, far]), preset))
    if uncached(experiment):
        print(checkup.fill(experiment.data, checkup.encoder(experiment)))
    with tempfile.TemporaryDirectory() as folder:
        seconds, shares = measure(experiment, Path(folder), options.steps, options.repeats)
    runtime, threads, batch = experiment.runtime, torch.get_num_threads(), experiment.train.batch
    speeds = {name: batch / median(taken) for name, taken in seconds.items()}
    print(f"{preset}: batch {batch}, {runtime.precision}, {threads} threads")
    print(f"images per second: loader {speeds['loader']:.1f}, one batch in memory {speeds['kept']:.1f}")
    pairs = [kept / loaded for kept, loaded in zip(seconds["kept"], seconds["loader"], strict=True)]
    low, middle, high = quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    print(f"their ratio in {len(pairs)} pairs of steps: {middle:.3f} (quartiles {low:.3f} - {high:.3f}); ", end="")
    print(met(middle, BAR, at_least=True))
    if "encoding" in speeds:
        gain = speeds["loader"] / speeds["encoding"]
        print(f"encoding the captions in the loop {speeds['encoding']:.1f}; with the text cache {gain:.2f} times that")
    if (memory := runtimes.start(runtime).peak_memory()) is not None:
        print(f"peak memory of the GPU, all sides: {memory:.2f} GiB")
    print("share of a step:   " + ", ".join(f"{part} {shares[part]:.1%}" for part in PARTS))
    if not options.alone:
        against_unet.compare(experiment, options.repeats)
    return 0


def measure(
    experiment: DiffusionExperiment, folder: Path, steps: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Train in turns.

    Args:
        experiment: completed; every step of it is logged.
        folder: for the runs.
        steps: of each side measured per turn, after one that is not, since workers start in it.
        repeats: measured turns, after one that is not.

    Returns:
        Seconds of each step by side, "loader", "kept" (step k of both were neighbours, without workers) and, where a
        frozen text encoder has a cache, "encoding"; and the share of each part of a step with the loader.
    """
    batch, length = experiment.train.batch, steps + 1 if experiment.train.workers else 1
    without = uncached(experiment)
    seconds: dict[str, list[float]] = {name: [] for name in ("loader", "kept", *(("encoding",) if without else ()))}
    parts = dict.fromkeys(PARTS, 0.0)
    for turn in tqdm(range(repeats + 1), unit="turn", desc="train"):
        until = (turn + 1) * (steps + 1)
        lines, clock = _turn(experiment, folder / "cached", 2 * until, length)
        sides = {
            name: [line for k, line in enumerate(lines) if k // length % 2 == number]
            for number, name in enumerate(("loader", "kept"))
        }
        if without:
            sides["encoding"], _ = _turn(without, folder / "encoding", until)
        if turn == 0:
            continue
        for name, own in sides.items():
            seconds[name].extend(_seconds(line, batch) for line in own[1:])
        rest = sum(_seconds(line, batch) - _waited(line, batch) for line in lines) - sum(clock.seconds.values())
        data = 2 * sum(_waited(line, batch) for line in sides["loader"])  # the other parts are those of both sides
        for part, value in {**clock.seconds, "data": data, "rest": rest}.items():
            parts[part] += value
    return seconds, {part: value / sum(parts.values()) for part, value in parts.items()}


def uncached(experiment: DiffusionExperiment) -> DiffusionExperiment | None:
    """Give the same experiment without a text cache; ``None`` where it has none."""
    text = experiment.text
    parts = text.parts if isinstance(text, ConcatConfig) else (text,)
    if not any(part.is_frozen and part.cache for part in parts):
        return None
    bare = tuple(part.model_copy(update={"cache": None}) for part in parts)
    without = text.model_copy(update={"parts": bare}) if isinstance(text, ConcatConfig) else bare[0]
    return experiment.model_copy(update={"text": without})


def _seconds(line: Mapping[str, Any], batch: int) -> float:
    """Give how long the step of a line of the log took."""
    return float(batch / line["time/images_per_second"])


def _waited(line: Mapping[str, Any], batch: int) -> float:
    """Give how long it waited for data."""
    return _seconds(line, batch) * float(line["time/data_wait_share"])


def _turn(
    experiment: DiffusionExperiment, folder: Path, until: int, length: int | None = None
) -> tuple[list[dict[str, Any]], Clocked]:
    """Train a run on to a step; give its new lines of the log, and the clock of its parts.

    Where a length is given, so many steps are loaded and as many kept, in turn.
    """
    longer = experiment.model_copy(update={"train": experiment.train.model_copy(update={"steps": until})})
    with RunDir.open(folder) if RunDir.is_run(folder) else RunDir.create(folder, longer) as rundir:
        before = len(list(rundir.metrics()))
        trainer = assemble.trainer(longer, rundir)
        if length is not None:
            window = [trainer.loader.batch(range(size)) for size in longer.train.windows()]
            trainer.loader = cast(Loader, Alternating(trainer.loader, window, length))
        trainer.stage = trainer.updater.stage = clock = Clocked(trainer.stage)
        clock.watch(trainer.updater.optimizers["model"])
        trainer.fit()
        return list(rundir.metrics())[before:], clock

"""How fast the trainer's step is with its loader and with one batch kept in memory, and what a step consists of.

Where a text encoder is frozen, a third side encodes every caption anew, as if there were no cache. All sides are whole
trainers in a temporary folder, which take turns for a few steps each. Checkpoints are written between the turns and do
not count.
"""

import argparse
import tempfile
import time
from collections.abc import Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
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
from scripts import checkup
from scripts.assembly import assemble, experiments
from scripts.assembly.experiments import DiffusionExperiment
from scripts.benchmarks import against_unet
from scripts.benchmarks.timing import met

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
    far = f"train.checkpoint_every={(options.steps + 1) * (options.repeats + 1)}"
    preset = Path(presets[0])
    experiment = assemble.complete(experiments.diffusion(experiments.load(preset, [*overrides, *quiet, far]), preset))
    if uncached(experiment):
        print(checkup.fill(experiment.data, checkup.encoder(experiment)))
    with tempfile.TemporaryDirectory() as folder:
        speeds, shares = measure(experiment, Path(folder), options.steps, options.repeats)
    loader, kept = median(speeds["loader"]), median(speeds["kept"])
    runtime, threads = experiment.runtime, torch.get_num_threads()
    print(f"{preset}: batch {experiment.train.batch}, {runtime.precision}, {threads} threads")
    print(
        f"images per second: loader {loader:.1f}, one batch in memory {kept:.1f}; ratio {loader / kept:.3f}; ", end=""
    )
    print(met(loader / kept, BAR, at_least=True))
    if "encoding" in speeds:
        encoding = median(speeds["encoding"])
        print(
            f"encoding the captions in the loop {encoding:.1f}; with the text cache {loader / encoding:.2f} times that"
        )
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
        steps: measured per turn, after one that is not, since workers start in it.
        repeats: measured turns of each side, after one that is not.

    Returns:
        Images per second of each turn by side, "loader", "kept" and, where a frozen text encoder has a cache,
        "encoding"; and the share of each part of a step with the loader.
    """
    batch = experiment.train.batch
    sides = {"loader": experiment, "kept": experiment}
    if without := uncached(experiment):
        sides["encoding"] = without
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    parts = dict.fromkeys(PARTS, 0.0)
    for turn in tqdm(range(repeats + 1), unit="turn", desc="train"):
        for name in speeds if turn % 2 else reversed(speeds):
            lines, clock = _turn(sides[name], folder / name, (turn + 1) * (steps + 1), keep=name == "kept")
            seconds = [batch / line["time/images_per_second"] for line in lines]
            if turn == 0:
                continue
            speeds[name].append(batch * steps / sum(seconds[1:]))
            if name == "loader":
                data = sum(s * line["time/data_wait_share"] for s, line in zip(seconds, lines, strict=True))
                rest = sum(seconds) - data - sum(clock.seconds.values())
                for part, value in {**clock.seconds, "data": data, "rest": rest}.items():
                    parts[part] += value
    return speeds, {part: value / sum(parts.values()) for part, value in parts.items()}


def uncached(experiment: DiffusionExperiment) -> DiffusionExperiment | None:
    """Give the same experiment without a text cache; ``None`` where it has none."""
    text = experiment.text
    parts = text.parts if isinstance(text, ConcatConfig) else (text,)
    if not any(part.is_frozen and part.cache for part in parts):
        return None
    bare = tuple(part.model_copy(update={"cache": None}) for part in parts)
    without = text.model_copy(update={"parts": bare}) if isinstance(text, ConcatConfig) else bare[0]
    return experiment.model_copy(update={"text": without})


def _turn(
    experiment: DiffusionExperiment, folder: Path, until: int, *, keep: bool
) -> tuple[list[dict[str, Any]], Clocked]:
    """Train a run on to a step; give its new lines of the log, and the clock of its parts."""
    longer = experiment.model_copy(update={"train": experiment.train.model_copy(update={"steps": until})})
    with RunDir.open(folder) if RunDir.is_run(folder) else RunDir.create(folder, longer) as rundir:
        before = len(list(rundir.metrics()))
        trainer = assemble.trainer(longer, rundir)
        if keep:
            window = [trainer.loader.batch(range(size)) for size in longer.train.windows()]
            trainer.loader = cast(Loader, Kept(window))
        trainer.stage = trainer.updater.stage = clock = Clocked(trainer.stage)
        clock.watch(trainer.updater.optimizers["model"])
        trainer.fit()
        return list(rundir.metrics())[before:], clock

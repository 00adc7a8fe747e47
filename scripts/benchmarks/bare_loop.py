"""What the trainer costs beside the loop that anybody would write by hand.

The same network, loss, batches in memory, AdamW, clipping and one average of the weights, once in a loop of a dozen
lines and once in the trainer with all that it checks, counts and logs; they take turns. What one more average and a
checkpoint cost is too small to be seen between two sides, so both are timed on their own after each of the trainer's
turns.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import cast

import torch
from torch import nn
from tqdm import tqdm

from lab import runtime as runtimes
from lab.data.loader import Batch, Loader
from lab.data.sources import source
from lab.rundir import RunDir
from lab.runtime import Runtime
from lab.training import checkpoint
from lab.training.stage import Stage
from scripts.assembly import assemble, experiments
from scripts.assembly.experiments import DiffusionExperiment
from scripts.benchmarks.timing import met, timed
from scripts.benchmarks.training import Kept

BAR, EMA_BAR, SAVE_BAR = 1.03, 1.015, 2.0
PRESET = "configs/shapes.yaml"


@dataclass
class Times:
    """Seconds, one entry per turn.

    Attributes:
        bare, trainer: of a step.
        average: of the update of one average.
        save: of a checkpoint.
    """

    bare: list[float] = field(default_factory=list)
    trainer: list[float] = field(default_factory=list)
    average: list[float] = field(default_factory=list)
    save: list[float] = field(default_factory=list)


class BareLoop:
    """Training by hand.

    Args:
        stage: gives the network and the loss.
        window: the micro-batches of every step.
        runtime: where it runs.
    """

    def __init__(self, stage: Stage, window: Sequence[Batch], runtime: Runtime) -> None:
        self.stage, self.runtime = stage, runtime
        self.model = runtime.place(stage.players["model"]).train()
        self.window = [batch.with_images(runtime.batch(batch.images)) for batch in window]
        self.average = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)

    def step(self) -> None:
        """Make one step."""
        samples = sum(len(batch) for batch in self.window)
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self.window:
            with self.runtime.autocast():
                losses, _ = self.stage.loss("model", batch)
            (losses.sum() / samples).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 0.01)


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    presets = [word for word in options.words if "=" not in word] or [PRESET]
    overrides = [word for word in options.words if "=" in word]
    quiet = ["train.preview_every=0", "evaluate.every_steps=0", "train.optimizer.matrices=adamw"]
    rare = [f"train.log_every={options.steps}", f"train.checkpoint_every={10 * options.steps * (options.repeats + 1)}"]
    for micro_batch in options.micro_batches:
        words = [*overrides, *quiet, *rare, f"train.micro_batch={micro_batch}"]
        preset = Path(presets[0])
        experiment = assemble.complete(experiments.diffusion(experiments.load(preset, words), preset))
        with tempfile.TemporaryDirectory() as folder:
            times = measure(experiment, Path(folder), options.steps, options.repeats)
        bare, trainer = median(times.bare), median(times.trainer)
        average, save = 1 + median(times.average) / trainer, median(times.save) / trainer
        batch, runtime = experiment.train.batch, experiment.runtime
        print(
            f"{presets[0]}: {batch} samples in passes of {micro_batch}, {runtime.precision}, "
            f"{torch.get_num_threads()} threads: by hand {1e3 * bare:.1f} ms a step, the trainer {1e3 * trainer:.1f} ms"
        )
        print(f"the trainer takes {trainer / bare:.3f} of it by hand; {met(trainer / bare, BAR, at_least=False)}")
        print(f"one more average makes it {average:.4f}; {met(average, EMA_BAR, at_least=False)}")
        print(f"a checkpoint takes {save:.2f} steps' time; {met(save, SAVE_BAR, at_least=False)}")
    return 0


def measure(experiment: DiffusionExperiment, folder: Path, steps: int, repeats: int) -> Times:
    """Let the sides take turns.

    Args:
        experiment: completed.
        folder: for the trainer's run.
        steps: measured per turn, after as many that are not.
        repeats: measured turns of each side, after one that is not.
    """
    runtime = runtimes.start(experiment.runtime)
    loader = Loader(source(experiment.data), experiment.seed)
    window = loader.batch(range(experiment.train.batch)).split(experiment.train.micro_batch)
    loop = BareLoop(assemble.stage(experiment, runtime), window, runtime)

    def by_hand(times: Times, turn: int) -> None:
        for _ in range(steps):
            loop.step()
        begin = time.perf_counter()
        for _ in range(steps):
            loop.step()
        times.bare.append((time.perf_counter() - begin) / steps)

    def trainer(times: Times, turn: int) -> None:
        _turn_of_trainer(experiment, folder, window, 2 * steps * (turn + 1), times)

    times = Times()
    for turn in tqdm(range(repeats + 1), unit="turn", desc="trainer"):
        for side in (by_hand, trainer) if turn % 2 else (trainer, by_hand):
            side(times if turn else Times(), turn)
    return times


def _turn_of_trainer(
    experiment: DiffusionExperiment, folder: Path, window: Sequence[Batch], until: int, times: Times
) -> None:
    """Train the run on to a step and note what took how long: a step, as the log says it of the turn's second half."""
    longer = experiment.model_copy(update={"train": experiment.train.model_copy(update={"steps": until})})
    run = folder / "run"
    with RunDir.open(run) if RunDir.is_run(run) else RunDir.create(run, longer) as rundir:
        trainer = assemble.trainer(longer, rundir)
        trainer.loader = cast(Loader, Kept(window))
        trainer.fit()
        speed: float = list(rundir.metrics())[-1]["time/images_per_second"]
        times.trainer.append(longer.train.batch / speed)
        facts = {**trainer.facts, "run_id": rundir.run_id}
        times.save.append(timed(lambda: checkpoint.save(folder / "spare", trainer.state(), facts)))
        average, model = trainer.averages[0], trainer.stage.players["model"]
        times.average.append(timed(lambda: average.update(model, trainer.step)))

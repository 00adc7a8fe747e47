"""The one loop, for every stage.

A step takes ``batch`` samples from slot ``seen`` on, in micro-batches of any size, and updates each player in turn:

    gradient = sum over the step's samples of d loss_i / batch          (exact whatever the micro-batches)
    clip, check that it is finite, the optimizers at their rates of this step, then the averages

Data, noise and rates are functions of the slot and the step, so the state between steps is the weights, the averages,
the optimizers' moments, what the stage remembers and one number: running the same command again goes on bit for bit.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from lab.config import Config
from lab.data.loader import Batch, Loader
from lab.errors import NonFinite, Refused, StorageFailed
from lab.images import grid
from lab.randomness import seed_torch
from lab.rundir import RunDir, State
from lab.runtime import Runtime
from lab.training import checkpoint, snapshot
from lab.training.ema import Average
from lab.training.history import History, is_due
from lab.training.meter import Meter
from lab.training.optimizer import OptimizerConfig, build, clip, set_rates
from lab.training.signals import Stopper
from lab.training.stage import Stage

log = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3


class TrainConfig(Config):
    """How long and how to train.

    Attributes:
        steps: optimizer steps in all.
        batch: samples per step.
        micro_batch: samples per pass of the network, any number up to ``batch``; 0 for all at once. The step is the
            same but for rounding.
        workers: loader processes; 0 loads in the training process.
        optimizer: what updates the weights, and its rates.
        ema: relative lengths of the averages of the weights; samples are drawn from the first.
        snapshots: how many times on the way, evenly spaced, the averages are kept for scripts/average.py; 0 for never.
            Two lengths are needed, such as 0.05 and 0.1.
        log_every, preview_every, checkpoint_every: in steps; previews 0 for none.
        keep_last: checkpoints to keep, at least 2.
    """

    steps: int = Field(10_000, ge=1)
    batch: int = Field(32, ge=1)
    micro_batch: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: tuple[float, ...] = (0.05,)
    snapshots: int = Field(0, ge=0)
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=0)
    checkpoint_every: int = Field(500, ge=1)
    keep_last: int = Field(2, ge=2)

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.micro_batch > self.batch:
            raise ValueError(f"micro_batch {self.micro_batch} is larger than batch {self.batch}")
        names = {snapshot.average_name(length) for length in self.ema}
        if not self.ema or not all(0.001 <= length < 0.28 for length in self.ema) or len(names) < len(self.ema):
            raise ValueError(
                f"ema must be one or more different lengths from 0.001 to 0.28, to three decimals, got {list(self.ema)}"
            )
        if self.snapshots > self.steps:
            raise ValueError(f"snapshots {self.snapshots} is more than steps {self.steps}")
        if self.snapshots and len(self.ema) < 2:
            raise ValueError(
                f"snapshots need averages of two lengths, got ema {list(self.ema)}: set ema to [0.05, 0.1]"
            )
        return self

    def windows(self) -> list[int]:
        """Give the micro-batch sizes of one step."""
        micro = self.micro_batch or self.batch
        whole, rest = divmod(self.batch, micro)
        return [micro] * whole + [rest] * bool(rest)


class Evaluator(Protocol):
    """Something measured on a period; it sees the averaged model and must leave no trace in the training state."""

    every_steps: int

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Give named figures."""
        ...


@dataclass
class Trainer:
    """Trains a stage in a run directory; never subclassed.

    Attributes:
        stage: what is trained.
        loader: batches by slot.
        runtime: where it runs.
        rundir: where it is written, opened for writing.
        config: how long and how.
        facts: what every checkpoint's manifest says of its origin.
        evaluators: measured on their own periods.
        step: optimizer steps made so far.
        seconds: wall time of training so far, previews and checkpoints included, over all processes that worked on the
            run.
    """

    stage: Stage
    loader: Loader
    runtime: Runtime
    rundir: RunDir
    config: TrainConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    evaluators: Sequence[Evaluator] = ()
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, player in self.stage.players.items():
            self.stage.players[name] = self.runtime.place(player)
        self.optimizers = {
            name: build(player, self.config.optimizer, self.runtime.dtype)
            for name, player in self.stage.players.items()
        }
        self.averages = [Average(self.stage.players["model"], length) for length in self.config.ema]
        self._history = History(self.rundir.snapshots)
        self._failed_saves = 0
        self._meter = Meter()

    @property
    def seen(self) -> int:
        """Samples consumed, which is also the next slot."""
        return self.step * self.config.batch

    def fit(self) -> int:
        """Train to the last step, from wherever the newest checkpoint is.

        Returns:
            0 when finished, 128 + signal when a signal ended it; the state is saved in both cases.

        Raises:
            NonFinite: a loss or gradient is not a number; nothing of that step is kept.
            StorageFailed: the disk refused three checkpoints in a row, or the last one.
        """
        newest = checkpoint.latest(self.rundir.checkpoints)
        checkpoint.clean(self.rundir.checkpoints)
        if newest is not None:
            self.load_state(checkpoint.load(newest))
        self.rundir.rewind(self.step if newest is not None else None)
        self._history.rewind(self.step)
        self._status("running")
        try:
            with Stopper().listening() as stopper:
                if self.step == 0:
                    for name, picture in self.stage.charts().items():
                        self.rundir.save_picture(0, name, picture)
                self._loop(stopper)
        except BaseException as error:
            self._status("failed", f"{type(error).__name__}: {error}")
            raise
        if stopper.signal is not None and self.step < self.config.steps:
            self._status("preempted", f"signal {stopper.signal}")
            return stopper.exit_code
        self._status("finished")
        return 0

    def state(self) -> checkpoint.Snapshot:
        """Give the whole state at a step boundary."""
        tensors = snapshot.take(self.stage.players, self.optimizers, self.averages, self.stage.memory)
        state = {"step": self.step, "seen": self.seen, "batch": self.config.batch, "seconds": self.seconds}
        return checkpoint.Snapshot(tensors, {**state, "meter": self._meter.state()})

    def load_state(self, saved: checkpoint.Snapshot) -> None:
        """Take over a state, strictly: what is missing or left over is an error.

        Raises:
            Refused: the state is of another model or batch size.
        """
        if saved.state["batch"] != self.config.batch:
            raise Refused(
                f"train.batch={self.config.batch}, but the checkpoint was trained with {saved.state['batch']}: "
                "keep the batch (train.micro_batch is free), or start another run"
            )
        snapshot.restore(saved.tensors, self.stage.players, self.optimizers, self.averages, self.stage.memory)
        self.step, self.seconds = int(saved.state["step"]), float(saved.state["seconds"])
        self._meter = Meter(saved.state["meter"])

    def _loop(self, stopper: Stopper) -> None:
        config = self.config
        meter, began = self._meter, time.perf_counter() - self.seconds
        bar = tqdm(total=config.steps, initial=self.step, unit="step", desc="train", dynamic_ncols=True)
        with closing(self.loader.batches(self.seen, config.windows())) as batches, bar:
            last = False
            while not last and self.step < config.steps:
                with meter.waiting():
                    window = [self._receive(next(batches)) for _ in config.windows()]
                samples: dict[str, Tensor] = {}
                for name in self.stage.players:
                    said, means = self._update(name, window)
                    samples |= said
                    meter.add(means)
                self.step += 1
                self.stage.after_step(samples)  # with several processes, gathered from all of them
                for average in self.averages:
                    average.update(self.stage.players["model"], self.step)
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    figures = meter.read(config.batch)
                    bar.set_postfix(
                        loss=f"{figures['train/loss']:.4f}", images_per_s=f"{figures['time/images_per_second']:.0f}"
                    )
                    self.rundir.log(self.step, self.seen, figures)
                self.seconds = time.perf_counter() - began
                with meter.paused():
                    if is_due(self.step, config.steps, config.snapshots):
                        self._history.keep(self.step, self.seen, self.averages, self.facts)
                    self._look(stopper)
                    last = self.step == config.steps or stopper.signal is not None
                    if last or self.step % config.checkpoint_every == 0:
                        self._save(last)

    def _receive(self, batch: Batch) -> Batch:
        return batch.with_images(self.runtime.batch(batch.images))

    def _update(self, name: str, window: Sequence[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Make one optimizer step of one player; give what each of its samples said (batch,), and figures of all."""
        player, optimizers, config = self.stage.players[name], self.optimizers[name], self.config
        player.train()
        player.zero_grad(set_to_none=True)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        prefix = "" if name == "model" else f"{name}/"
        for batch in window:
            seed_torch(batch.seed, f"dropout/{name}", batch.slots[0])
            with self.runtime.autocast():
                losses, metrics = self.stage.loss(name, batch)
            (losses.sum() / config.batch).backward()
            for metric, values in {"loss": losses, **metrics}.items():
                parts[prefix + metric].append(values.detach())
        samples = {metric: torch.cat(values) for metric, values in parts.items()}
        means = {metric: values.sum() / config.batch for metric, values in samples.items()}
        norm = clip(player.parameters(), config.optimizer.clip)
        if not (torch.isfinite(norm) and torch.isfinite(means[prefix + "loss"])):
            self._report_non_finite(name, window)
        factor = config.optimizer.factor_at(self.step, config.steps)
        set_rates(optimizers, factor)
        for optimizer in optimizers:
            optimizer.step()
        return samples, {
            **means,
            prefix + "gradient_norm": norm,
            prefix + "learning_rate": torch.tensor(factor * config.optimizer.rate),
        }

    def _report_non_finite(self, name: str, window: Sequence[Batch]) -> None:
        modules = [
            key
            for key, p in self.stage.players[name].named_parameters()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        ids = [sample for batch in window for sample in batch.ids]
        raise NonFinite(
            f"step {self.step + 1}: loss or gradient of {name!r} is not finite (first in "
            f"{modules[0] if modules else 'the loss'}; samples {ids[0]} .. {ids[-1]}); nothing of this step is kept. "
            "Lower train.optimizer.rate, or set runtime.precision=fp32"
        )

    def _look(self, stopper: Stopper) -> None:
        """Previews and evaluators whose period has come; they see the averaged model."""
        config, model = self.config, self.averages[0].module
        if config.preview_every and (self.step % config.preview_every == 0 or self.step == config.steps):
            captions = self.loader.batch(range(min(16, config.batch))).captions
            with torch.random.fork_rng(), torch.no_grad():
                images = self.stage.preview(model, captions)
            self.rundir.save_picture(self.step, "samples", grid(images.float().cpu(), captions))
        for evaluator in self.evaluators:
            if stopper.signal is None and self.step % evaluator.every_steps == 0:
                with torch.random.fork_rng(), torch.no_grad():
                    self.rundir.log(self.step, self.seen, evaluator(model))

    def _save(self, last: bool) -> None:
        self.rundir.flush()
        try:
            folder = checkpoint.save(self.rundir.checkpoints, self.state(), self.facts, self.config.keep_last)
        except StorageFailed as error:
            self._failed_saves += 1
            if last or self._failed_saves >= MAX_FAILED_SAVES:
                raise
            log.warning("%s; the next try is in %d steps", error, self.config.checkpoint_every)
            return
        self._failed_saves = 0
        self.rundir.set_status("running", self.step, self.seen, folder.name)

    def _status(self, state: State, reason: str = "") -> None:
        newest = max((folder.name for folder in self.rundir.checkpoints.glob("step-*")), default=None)
        self.rundir.set_status(state, self.step, self.seen, newest, reason)

"""The one loop, for every stage.

A step takes ``batch`` samples from slot ``seen`` on, updates each player in turn (``lab.training.update``) and then the
averages. Of several processes each takes its share of the samples, all make the same update, and the first writes.

Data, noise and rates are functions of the slot and the step, so the state between steps is the weights, the averages,
the optimizers' moments, what the stage remembers and one number: running the same command again goes on bit for bit.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lab.data.loader import Batch, Loader
from lab.errors import BadData, NonFinite, Refused, StorageFailed
from lab.rundir import RunDir, State
from lab.runtime import Runtime
from lab.training import checkpoint, snapshot
from lab.training.budget import Budget, Ending, seconds_of
from lab.training.config import TrainConfig
from lab.training.ema import Average
from lab.training.history import History, is_due
from lab.training.meter import Meter
from lab.training.observer import Evaluator, Observer
from lab.training.progress import Progress
from lab.training.quarantine import Quarantine
from lab.training.retention import Retention
from lab.training.sharding import shard
from lab.training.signals import Interrupted, Stopper
from lab.training.stage import Stage
from lab.training.update import Updater

log = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3


@dataclass
class Trainer:
    """Trains a stage in a run directory; never subclassed.

    Attributes:
        stage: what is trained.
        loader: batches by slot.
        runtime: where it runs.
        rundir: where it is written, opened for writing.
        config: how long and how.
        facts: what every checkpoint's manifest says of its origin, beside the run's id.
        evaluators: measured on their own periods.
        takes_other_data: whether to go on from a checkpoint of other data than this.
        quarantine: keeps account of the samples that could not be used; ``None`` where every one can.
        step: optimizer steps made so far.
        ending: when the run ends and how its rate falls; ``None`` while a budget has not decided it.
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
    takes_other_data: bool = False
    quarantine: Quarantine | None = None
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, player in self.stage.players.items():
            self.stage.players[name] = self.runtime.prepare(player)
        self.averages = [Average(self.stage.players["model"], length) for length in self.config.ema]
        self._shown = self.averages[0].module  # what previews and evaluators see
        if self.config.shard and self.runtime.world.size > 1:
            self._shown = copy.deepcopy(self._shown)
            modules = [*self.stage.players.values(), *(average.module for average in self.averages)]
            shard(modules, self.runtime.device, self.runtime.world)
        self.updater = Updater(self.stage, self.loader, self.runtime, self.config)
        self._observer = Observer(
            self.stage, self.loader, self.rundir, min(16, self.config.batch), self.config.preview_every, self.evaluators
        )
        self.ending: Ending | None = self.config.optimizer.ending(self.config.steps)
        self._budget: Budget | None = None
        if self.config.budget:
            share = self.config.optimizer.decay_share
            self._budget, self.ending = Budget(seconds_of(self.config.budget), share, self.config.steps), None
        self._writes = self.runtime.world.is_first
        self._history = History(self.rundir.snapshots)
        self._failed_saves = 0
        self._newest: str | None = None
        self._meter = Meter()

    @property
    def seen(self) -> int:
        """Samples consumed, which is also the next slot."""
        return self.step * self.config.batch

    @property
    def is_done(self) -> bool:
        """Whether the last step is made."""
        return self.ending is not None and self.step >= self.ending.last

    def fit(self) -> int:
        """Train to the last step, from wherever the newest checkpoint is.

        Returns:
            0 when finished, 128 + signal when a signal ended it; the state is saved in both cases.

        Raises:
            NonFinite: a loss or gradient is not a number, and the run is to stop then; what stood before it is saved.
            StorageFailed: the disk refused three checkpoints in a row, or the last one.
            BadData: too many samples cannot be used; what was learned is saved.
            ProcessLost: another process died or hangs.
        """
        newest = checkpoint.latest(self.rundir.checkpoints, self.rundir.run_id)
        if newest is not None:
            self.load_state(checkpoint.load(newest))
            self._newest = newest.name
        self._agree_on_step()
        if self._writes:
            checkpoint.prepare(self.rundir.checkpoints, newest)
            self.rundir.rewind(self.step if newest is not None else None)
            self._history.rewind(self.step)
        if self.quarantine is not None:
            self.quarantine.rewind(self.seen, writes=self._writes)
        self._status("running")
        try:
            with Stopper().listening() as stopper:
                if self.step == 0 and self._writes:
                    for name, picture in self.stage.charts().items():
                        self.rundir.save_picture(0, name, picture)
                signal = self._loop(stopper)
                if not signal or (self.is_done and not self._observer.is_behind):
                    self._status("finished")
                    return 0
                self._status("preempted", f"signal {signal}")
                self.runtime.world.largest(0)  # wait, or the launcher ends the first process while it writes
                return 128 + signal
        except BaseException as error:
            self._status("failed", f"{type(error).__name__}: {error}")
            raise

    def state(self) -> checkpoint.Snapshot:
        """Give the whole state at a step boundary."""
        tensors = snapshot.take(self.stage.players, self.updater.optimizers, self.averages, self.stage.memory)
        state = {"step": self.step, "seen": self.seen, "batch": self.config.batch, "seconds": self.seconds}
        more: dict[str, Any] = {"meter": self._meter.state(), "updater": self.updater.state()}
        more["unlooked"] = self._observer.is_behind
        more["data"] = self.facts.get("data")
        if self._budget:
            more["ending"] = asdict(self.ending) if self.ending else None
        return checkpoint.Snapshot(tensors, {**state, **more})

    def load_state(self, saved: checkpoint.Snapshot) -> None:
        """Take over a state, strictly: what is missing or left over is an error.

        Raises:
            Refused: the state is of another model, batch size or data.
        """
        if saved.state["batch"] != self.config.batch:
            raise Refused(
                f"train.batch={self.config.batch}, but the checkpoint was trained with {saved.state['batch']}: "
                "keep the batch (train.micro_batch is free), or start another run"
            )
        data = self.facts.get("data")
        if saved.state.get("data", data) != data and not self.takes_other_data:
            raise Refused(
                "the data is not what the checkpoint was trained on: files were changed, added or removed; put them "
                "back, insist by --allow-change, or start another run (train.init_from takes over the weights)"
            )
        snapshot.restore(saved.tensors, self.stage.players, self.updater.optimizers, self.averages, self.stage.memory)
        self.step, self.seconds = int(saved.state["step"]), float(saved.state["seconds"])
        self._meter = Meter(saved.state["meter"])
        self.updater.load_state(saved.state.get("updater", {}))
        self._observer.is_behind = bool(saved.state.get("unlooked", False))
        if self._budget and saved.state.get("ending"):
            self.ending = Ending(**saved.state["ending"])

    def _agree_on_step(self) -> None:
        world = self.runtime.world
        if world.largest(self.step) != -world.largest(-self.step):
            raise Refused(
                f"process {world.rank} finds step {self.step} in {self.rundir.checkpoints}, another process another "
                "step: the run's folder must be one that all processes see"
            )

    def _loop(self, stopper: Stopper) -> int:
        """Make steps to the last one or to a signal; give the signal's number, or 0."""
        config, world, meter = self.config, self.runtime.world, self._meter
        began, signal = time.perf_counter() - self.seconds, 0
        share = world.share(config.batch)
        rounds = self.loader.batches(
            self.seen + share.start, config.windows(len(share)), skipped=config.batch - len(share)
        )
        progress = Progress(self.step, config.workers, shown=self._writes)
        with closing(rounds) as batches, progress:
            if self._observer.is_behind:  # a signal kept this step from being looked at
                self._look(stopper)
                signal = world.largest(stopper.signal or 0)
            while not signal and not self.is_done:
                try:
                    with meter.waiting(), stopper.interruptible() if world.size == 1 else nullcontext():
                        window = self._window(batches, len(share))
                except Interrupted:  # data may be long in coming
                    signal = stopper.signal or 0
                    self._save_here()
                    break
                self._make_step(window)
                spoilt = self._set_aside(window)
                self.seconds = time.perf_counter() - began
                decided = self._decide()
                progress.advance(self.ending)
                if self.step % config.log_every == 0 or self.is_done:
                    figures = meter.read(config.batch, self.runtime.peak_memory()) | self._data_figures()
                    progress.show(figures)
                    self._log(figures)
                with meter.paused():
                    if is_due(self.step, config.steps, config.snapshots):
                        self._keep_averages()
                    figures = self._look(stopper)
                    signal = world.largest(stopper.signal or 0)
                    last = self.is_done or signal > 0 or spoilt != ""
                    if last or decided or self.step % config.checkpoint_every == 0:
                        self._save(last, figures)
                if spoilt:
                    raise BadData(spoilt)
        return signal

    def _set_aside(self, window: Sequence[Batch]) -> str:
        """Take note of the samples that could not be delivered; say if they are too many."""
        if self.quarantine is None:
            return ""
        self.quarantine.add(fault for batch in window for fault in batch.faults)
        self.quarantine.settle(self.runtime.world)
        return self.quarantine.excess(self.seen)

    def _data_figures(self) -> dict[str, float]:
        return {} if self.quarantine is None else {"data/bad": float(len(self.quarantine))}

    def _window(self, batches: Iterator[Batch], num: int) -> list[Batch]:
        """Take this process's samples of a step, and bring them to the device."""
        window: list[Batch] = []
        while sum(map(len, window)) < num:
            batch = next(batches)
            window.append(batch.with_images(self.runtime.batch(batch.images)))
        return window

    def _make_step(self, window: Sequence[Batch]) -> None:
        """Update every player on this process's samples of the step, then what follows the players."""
        self.runtime.world.beat(f"step {self.step}")
        samples: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        all_made = True
        factor = self.config.optimizer.factor_at(self.step, self.ending)
        for name in self.stage.players:
            prefix = "" if name == "model" else f"{name}/"
            try:
                update = self.updater(name, window, self.step, factor)
            except NonFinite as error:
                raise NonFinite(f"{error}. {self._save_last_good(is_boundary=not samples)}") from error
            all_made &= update.made
            samples |= {prefix + metric: values for metric, values in update.samples.items()}
            numbers = {metric: values for metric, values in update.samples.items() if values.ndim == 1}
            figures |= {prefix + metric: values.sum() / self.config.batch for metric, values in numbers.items()}
            figures[prefix + "gradient_norm"] = update.gradient_norm
            figures[prefix + "learning_rate"] = torch.tensor(factor * self.config.optimizer.rate)
        self.step += 1
        if all_made:
            self._meter.add(figures)
            self.stage.after_step(samples)
            for average in self.averages:
                average.update(self.stage.players["model"], self.step)
        else:
            self._meter.skip()

    def _save_last_good(self, *, is_boundary: bool) -> str:
        """Save the state before a step that cannot be made, if no player was changed yet; say what to do."""
        remedy = (
            "Lower train.optimizer.rate, set runtime.precision=fp32, or leave such updates out by "
            "train.on_nonfinite=skip"
        )
        if not is_boundary:
            return remedy
        self._save_here()
        self.runtime.world.largest(0)  # wait, or the launcher ends the first process while it saves
        return f"{remedy}; the same command goes on from step {self.step}"

    def _save_here(self) -> None:
        """Save the state of a step unless it stands on the disk, with the figures that were measured then."""
        is_saved = self._newest == f"step-{self.step:08d}"
        if self.step > 0 and not self.runtime.world.from_first(int(is_saved)):
            self._save(last=True, figures={})

    def _look(self, stopper: Stopper) -> dict[str, float]:
        """Let the observer see the averaged model, if there is something to see; give what was measured."""
        if not self._observer.is_due(self.step, is_last=self.is_done):
            return {}
        model = self._shown
        if model is not self.averages[0].module:  # every process gives its part
            model.load_state_dict(snapshot.whole_state(self.averages[0].module))
        if not self._writes:
            return {}
        figures = self._observer.look(model, self.step, stopper, is_last=self.is_done)
        if figures:
            self._log(figures)
        return figures

    def _keep_averages(self) -> None:
        tensors = {snapshot.average_name(a.length): snapshot.whole_state(a.module) for a in self.averages}
        if self._writes:
            self._history.keep(self.step, self.seen, tensors, {**self.facts, "run_id": self.rundir.run_id})

    def _decide(self) -> bool:
        """Let the budget, if there is one, decide on the ending; say whether it just did."""
        if self._budget is None or self.ending is not None:
            return False
        ending = self._budget.decide(self.step, self.seconds)
        last = self.runtime.world.from_first(ending.last if ending else 0)
        if last:
            self.ending = Ending(float(self.step), last)
        return last > 0

    def _log(self, figures: Mapping[str, float]) -> None:
        if self._writes:
            self.rundir.log(self.step, self.seen, figures)

    def _save(self, last: bool, figures: Mapping[str, float]) -> None:
        if not (self._writes or self.config.shard):
            return
        state = self.state()  # of a sharded model every process gives its part
        if not self._writes:
            return
        config, known = self.config, {name: value for name, value in figures.items() if math.isfinite(value)}
        keep = Retention(config.keep_last, config.keep_every, config.keep_best)
        if figures and keep.metric not in ("", *figures):
            log.warning("train.keep_best=%s is not among what was measured: %s", config.keep_best, ", ".join(figures))
        facts = {**self.facts, "run_id": self.rundir.run_id, "figures": known}
        self.rundir.flush()
        try:
            folder = checkpoint.save(self.rundir.checkpoints, state, facts, keep)
        except StorageFailed as error:
            self._failed_saves += 1
            if last or self._failed_saves >= MAX_FAILED_SAVES:
                raise
            log.warning("%s; the next try is in %d steps", error, self.config.checkpoint_every)
            return
        self._failed_saves = 0
        self._newest = folder.name
        self._status("running")

    def _status(self, state: State, reason: str = "") -> None:
        if self._writes:
            self.rundir.set_status(state, self.step, self.seen, self._newest, reason)

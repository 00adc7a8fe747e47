"""How long and how a run trains."""

from typing import Literal

from pydantic import Field, model_validator

from lab.config import Config
from lab.training import snapshot
from lab.training.budget import PATTERN
from lab.training.optimizer import OptimizerConfig


class TrainConfig(Config):
    """How long and how to train.

    Attributes:
        steps: optimizer steps in all; with a budget, at most.
        budget: training time after which the run is finished, such as "6h", "90m" or "1h30m"; "" for none. The fall of
            the rate is placed by the speed that the run shows, once, and every step after that is as in any other run.
        init_from: a run whose weights this one begins with: "runs/A" or "runs/A:ema" for its first average,
            "runs/A:ema_0.100" for another, "runs/A:raw" for the weights themselves; empty for fresh ones. Read once,
            before the first step: a resume does not need that run.
        batch: samples per step, over all processes.
        micro_batch: samples per pass of the network, any number up to ``batch``; 0 for all of a process's at once. The
            step is the same but for rounding. It is halved when memory runs out.
        shard: whether weights, gradients and moments are cut into one part per process (FSDP2), for models that do not
            fit on one GPU. Every process then needs as many samples as the others, and Muon is not possible.
        workers: loader processes; 0 loads in the training process.
        optimizer: what updates the weights, and its rates.
        ema: relative lengths of the averages of the weights; samples are drawn from the first.
        snapshots: how many times on the way, evenly spaced, the averages are kept for scripts/average.py; 0 for never.
            Two lengths are needed, such as 0.05 and 0.1.
        on_nonfinite: what to do when a loss or a gradient is not finite: "stop" ends the run at the last good state,
            "skip" leaves that update out and counts it.
        max_skipped: updates left out in a row before the run is stopped after all.
        log_every, preview_every, checkpoint_every: in steps; previews 0 for none.
        keep_last: the newest checkpoints to keep, at least 2.
        keep_every: keep those of each step that this divides for ever; 0 for none.
        keep_best: a figure that is measured while training, such as "accuracy/pair/right": of the checkpoints at whose
            step it was measured the one with the highest is kept, or with the lowest after a "-". Empty for none.
    """

    steps: int = Field(10_000, ge=1)
    budget: str = Field("", pattern=PATTERN)
    init_from: str = ""
    batch: int = Field(32, ge=1)
    micro_batch: int = Field(0, ge=0)
    shard: bool = False
    workers: int = Field(0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: tuple[float, ...] = (0.05,)
    snapshots: int = Field(0, ge=0)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = Field(20, ge=1)
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=0)
    checkpoint_every: int = Field(500, ge=1)
    keep_last: int = Field(2, ge=2)
    keep_every: int = Field(0, ge=0)
    keep_best: str = ""

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.micro_batch > self.batch:
            raise ValueError(f"micro_batch {self.micro_batch} is larger than batch {self.batch}")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(f"keep_every {self.keep_every} is no multiple of checkpoint_every {self.checkpoint_every}")
        if self.shard and self.optimizer.matrices == "muon":
            raise ValueError("shard cuts the matrices that Muon needs whole: set optimizer.matrices to adamw")
        if self.budget and (self.optimizer.decay != "wsd" or self.optimizer.decay_share > 0.5):
            raise ValueError(
                "budget decides late when the rate falls: set optimizer.decay to wsd and optimizer.decay_share to at "
                "most 0.5"
            )
        names = {snapshot.average_name(length) for length in self.ema}
        if not self.ema or not all(0.001 <= length < 0.28 for length in self.ema) or len(names) < len(self.ema):
            raise ValueError(
                f"ema must be one or more different lengths from 0.001 to 0.28, to three decimals, got {list(self.ema)}"
            )
        self._check_snapshots()
        return self

    def _check_snapshots(self) -> None:
        if self.snapshots > self.steps:
            raise ValueError(f"snapshots {self.snapshots} is more than steps {self.steps}")
        if self.snapshots and len(self.ema) < 2:
            raise ValueError(
                f"snapshots need averages of two lengths, got ema {list(self.ema)}: set ema to [0.05, 0.1]"
            )
        if self.snapshots and self.budget:
            raise ValueError(
                "snapshots are spaced evenly over steps that a budget does not tell: set steps, or snapshots to 0"
            )

    def windows(self, samples: int | None = None) -> list[int]:
        """Give the sizes of the micro-batches that make up a step's samples, or a process's share of them."""
        samples = samples or self.batch
        micro = self.micro_batch or samples
        whole, rest = divmod(samples, micro)
        return [micro] * whole + [rest] * bool(rest)

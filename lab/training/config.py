"""How long and how a run trains."""

from typing import Literal

from pydantic import Field, model_validator

from lab.config import Config
from lab.training import snapshot
from lab.training.optimizer import OptimizerConfig


class TrainConfig(Config):
    """How long and how to train.

    Attributes:
        steps: optimizer steps in all.
        init_from: a run whose weights this one begins with: "runs/A" or "runs/A:ema" for its first average,
            "runs/A:ema_0.100" for another, "runs/A:raw" for the weights themselves; empty for fresh ones. Read once,
            before the first step: a resume does not need that run.
        batch: samples per step, over all processes.
        micro_batch: samples per pass of the network, any number up to ``batch``; 0 for all of a process's at once. The
            step is the same but for rounding. It is halved when memory runs out.
        workers: loader processes; 0 loads in the training process.
        optimizer: what updates the weights, and its rates.
        ema: relative lengths of the averages of the weights; samples are drawn from the first.
        on_nonfinite: what to do when a loss or a gradient is not finite: "stop" ends the run at the last good state,
            "skip" leaves that update out and counts it.
        max_skipped: updates left out in a row before the run is stopped after all.
        log_every, preview_every, checkpoint_every: in steps; previews 0 for none.
        keep_last: checkpoints to keep, at least 2.
    """

    steps: int = Field(10_000, ge=1)
    init_from: str = ""
    batch: int = Field(32, ge=1)
    micro_batch: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: tuple[float, ...] = (0.05,)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = Field(20, ge=1)
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
        return self

    def windows(self, samples: int | None = None) -> list[int]:
        """Give the sizes of the micro-batches that make up a step's samples, or a process's share of them."""
        samples = samples or self.batch
        micro = self.micro_batch or samples
        whole, rest = divmod(samples, micro)
        return [micro] * whole + [rest] * bool(rest)

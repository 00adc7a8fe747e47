"""Stages in float64, trained for a few steps: what a step is must not depend on how it is divided."""

from pathlib import Path

from lab.config import Config
from lab.data.loader import Batch, Loader
from lab.data.source import Source
from lab.rundir import RunDir
from lab.runtime import CPU
from lab.training.config import TrainConfig
from lab.training.optimizer import OptimizerConfig
from lab.training.stage import Stage
from lab.training.trainer import Trainer


class InDouble(Loader):
    """Batches in float64."""

    def _collate(self, items: list) -> Batch:
        batch = super()._collate(items)
        return batch.with_images(batch.images.double())


def trained(path: Path, made: Stage, source: Source, micro_batch: int = 0, steps: int = 4) -> Trainer:
    """Train a stage for a few steps of 8 samples."""
    optimizer = OptimizerConfig(rate=0.01, warm_up=1)
    config = TrainConfig(
        steps=steps, batch=8, micro_batch=micro_batch, optimizer=optimizer, preview_every=0, checkpoint_every=99,
        log_every=1,
    )  # fmt: skip
    with RunDir.create(path, Config()) as rundir:
        trainer = Trainer(made, InDouble(source, seed=3), CPU, rundir, config)
        assert trainer.fit() == 0
    return trainer

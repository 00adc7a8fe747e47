"""What is looked at while a run trains: previews and figures of the averaged model. It leaves no trace in the state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from lab.data.loader import Loader
from lab.images import grid
from lab.rundir import RunDir
from lab.training.signals import Interrupted, Stopper
from lab.training.stage import Stage


class Evaluator(Protocol):
    """Something measured on a period; it sees the averaged model and must leave no trace in the training state."""

    every_steps: int

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Give named figures."""
        ...


@dataclass
class Observer:
    """Draws previews and runs evaluators where their period has come.

    Attributes:
        stage: draws the previews.
        loader: gives their captions, the first of the data.
        rundir: takes the pictures.
        previews: pictures at a time.
        preview_every: in steps; 0 for none.
        evaluators: measured on their own periods.
        is_behind: whether a signal cut the last look short, so that it is to be made up for.
    """

    stage: Stage
    loader: Loader
    rundir: RunDir
    previews: int
    preview_every: int
    evaluators: Sequence[Evaluator]
    is_behind: bool = False

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """Whether there is something to look at after a step."""
        return self._is_preview_due(step, is_last) or any(step % each.every_steps == 0 for each in self.evaluators)

    def look(self, model: nn.Module, step: int, stopper: Stopper, *, is_last: bool) -> dict[str, float]:
        """Look at a model after a step, and give what was measured: nothing if a signal cut it short."""
        self.is_behind = True
        figures: dict[str, float] = {}
        try:
            if self._is_preview_due(step, is_last):
                parts = self.loader.parts(range(self.previews))
                captions = [caption for part in parts for caption in part.captions]
                with stopper.interruptible(), torch.random.fork_rng(), torch.no_grad():
                    images = self.stage.preview(model, captions)
                self.rundir.save_picture(step, "samples", grid(images.float().cpu(), captions))
            for evaluator in self.evaluators:
                if step % evaluator.every_steps == 0:
                    with stopper.interruptible(), torch.random.fork_rng(), torch.no_grad():
                        figures |= evaluator(model)
        except Interrupted:
            return {}
        self.is_behind = False
        return figures

    def _is_preview_due(self, step: int, is_last: bool) -> bool:
        return self.preview_every > 0 and (is_last or step % self.preview_every == 0)

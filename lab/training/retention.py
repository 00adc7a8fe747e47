"""Which checkpoints stay. The rule alone: reading, verifying and deleting them is ``lab.training.checkpoint``'s."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """A checkpoint on the disk.

    Attributes:
        folder: where.
        step: of the training.
        figures: what the evaluators measured at that step.
    """

    folder: Path
    step: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Retention:
    """The checkpoints to keep: the newest ones, some for ever, and the best.

    Attributes:
        last: how many of the newest that verify, at least 2.
        every: those of each step that this divides, for ever; 0 for none.
        best: the one with the highest figure of this name, or the lowest if the name begins with "-"; of equal ones the
            newest. Empty for none. A step at which the figure was not measured is no candidate.
    """

    last: int = 2
    every: int = 0
    best: str = ""

    def __post_init__(self) -> None:
        assert self.last >= 2, "one checkpoint is none: the newest may be torn"

    @property
    def metric(self) -> str:
        """The name of the figure to be the best by."""
        return self.best.removeprefix("-")

    def doomed(self, found: Sequence[Found], verifies: Callable[[Found], bool]) -> list[Found]:
        """Choose which may go: none, until as many as ``last`` verify.

        Args:
            found: newest first.
            verifies: reads a checkpoint's every byte, and is asked of as few as possible.
        """
        kept = list(islice(filter(verifies, found), self.last))
        if len(kept) < self.last:
            return []
        old = found[found.index(kept[-1]) + 1 :]
        best = self.choose(found, verifies)
        return [each for each in old if each != best and not (self.every and each.step % self.every == 0)]

    def choose(self, found: Sequence[Found], verifies: Callable[[Found], bool]) -> Found | None:
        """Give the best of those that verify; ``found`` is newest first."""
        measured = [each for each in found if self.metric in each.figures]
        sign = 1 if self.best.startswith("-") else -1
        ranking = sorted(measured, key=lambda each: sign * each.figures[self.metric])
        return next(filter(verifies, ranking), None)


LAST_TWO = Retention()

"""A run that ends at a given time: its last step is decided once, from the speed so far, and is a number from then on.

The rate stays at its peak until the time that is left is the decay's share of the budget, or the steps that are left
the same share of the most there may be. Then the steps that fit into both are counted out, and the rate falls over
them. The decision is saved at once with a checkpoint, so that everything is a function of the step again, also after a
resume on a slower machine.
"""

import re
from collections import deque
from dataclasses import dataclass

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
PATTERN = r"^((\d+(\.\d+)?)[dhms])*$"
AIM = 0.985  # of the budget: steps that take a little longer than those before must still fit
MEASURED = 200  # steps whose speed counts


def seconds_of(duration: str) -> float:
    """Read "6h", "90m" or "1h30m" in seconds; "" is 0."""
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([dhms])", duration))


@dataclass(frozen=True)
class Ending:
    """How a run ends.

    Attributes:
        decay_from: step, counted from 0, before which the rate is at its peak; it falls to 0 at ``last``.
        last: number of steps in all.
    """

    decay_from: float
    last: int


class Budget:
    """Decides when a run ends.

    Args:
        seconds: of training, over all processes that worked on the run one after the other.
        decay_share: of the budget over which the rate falls.
        most: steps at most.
    """

    def __init__(self, seconds: float, decay_share: float, most: int) -> None:
        self.seconds, self.decay_share, self.most = seconds, decay_share, most
        self._ends: deque[float] = deque(maxlen=MEASURED)  # of the latest steps, in seconds of training

    def decide(self, step: int, seconds: float) -> Ending | None:
        """Give the ending, if the time for it has come.

        Args:
            step: steps made so far.
            seconds: of training so far, previews and checkpoints included.
        """
        self._ends.append(seconds)
        left = AIM * self.seconds - seconds
        if left > self.decay_share * self.seconds and step < (1 - self.decay_share) * self.most:
            return None
        measured = len(self._ends) - 1
        per_step = (self._ends[-1] - self._ends[0]) / measured if measured > 0 else seconds / step
        more = max(0, int(left / per_step))
        return Ending(float(step), min(step + more, max(step, self.most)))

"""In which order some configurations come, and whether the order is more than chance between runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lab.errors import Refused


@dataclass(frozen=True)
class Ranking:
    """Configurations, the best first.

    Attributes:
        values: of each configuration, one value per seed, the same seeds for all.
        lower_is_better: as of a distance.
        spread: standard deviation between the runs of a configuration, pooled over all; not a number with one seed.
    """

    values: Mapping[str, Sequence[float]]
    lower_is_better: bool
    spread: float

    @property
    def means(self) -> dict[str, float]:
        """The mean of each configuration."""
        return {name: float(np.mean(values)) for name, values in self.values.items()}

    @property
    def gaps(self) -> list[float]:
        """How far each configuration is from the next, at least 0; one fewer than there are configurations."""
        return [abs(other - one) for one, other in pairwise(self.means.values())]

    @property
    def is_stable(self) -> bool:
        """Whether every seed alone gives this order."""
        seeds = zip(*self.values.values(), strict=True)
        return all(list(own) == sorted(own, reverse=not self.lower_is_better) for own in seeds)

    @property
    def is_clear(self) -> bool:
        """Whether every gap is larger than the spread between the runs of one configuration."""
        return all(gap > self.spread for gap in self.gaps)


def rank(values: Mapping[str, Sequence[float]], *, lower_is_better: bool) -> Ranking:
    """Order configurations by their means.

    Args:
        values: of each configuration, one value per seed, the same seeds in the same order for all.
        lower_is_better: as of a distance.

    Raises:
        Refused: configurations with different numbers of runs, or with none.
    """
    if len(counts := {len(own) for own in values.values()}) != 1 or 0 in counts:
        told = ", ".join(f"{name} {len(own)}" for name, own in values.items())
        raise Refused(f"a ranking needs as many runs of each configuration, and there are: {told or 'none'}")
    order = sorted(values, key=lambda name: float(np.mean(values[name])), reverse=not lower_is_better)
    variances = [float(np.var(own, ddof=1)) if len(own) > 1 else float("nan") for own in values.values()]
    spread = float(np.sqrt(np.mean(variances)))
    return Ranking({name: tuple(values[name]) for name in order}, lower_is_better, spread)

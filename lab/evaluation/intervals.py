"""Confidence intervals of proportions and of means."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev

from lab.errors import NonFinite

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Args:
        successes: 0 to n.
        n: trials, at least 1.
        z: normal quantile; the default gives 95 %.

    Returns:
        (low, high) in [0, 1].

    Raises:
        ValueError: ``n`` is not positive, or ``successes`` is outside of 0..n.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"a proportion needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    centre = (successes + z * z / 2) / (n + z * z)
    half = z * sqrt(successes * (n - successes) / n + z * z / 4) / (n + z * z)
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True)
class Mean:
    """The mean of a measure over images with its 95 % interval.

    Attributes:
        value: the mean.
        low, high: the interval, which covers the mean over all images that might have been drawn.
        n: images.
        unit: of the measure; "" for a pure number.
        interval: the kind of interval.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str = ""
    interval: str = "95 %, Student's t over images"


def mean(values: Sequence[float], unit: str = "") -> Mean:
    """Give the mean of independent values, at least 2, with Student's interval.

    Raises:
        ValueError: fewer than 2 values say nothing of their spread.
        NonFinite: a value is infinite or not a number.

    Source: Student 1908, Biometrika 6, 1.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"the interval of a mean needs at least 2 values, not {n}")
    if not all(map(isfinite, values)):
        raise NonFinite(f"a mean of {n} values, some of which are not finite, would say nothing")
    from scipy.special import stdtrit

    value, half = fmean(values), float(stdtrit(n - 1, 0.975)) * stdev(values) / sqrt(n)
    return Mean(value, value - half, value + half, n, unit)

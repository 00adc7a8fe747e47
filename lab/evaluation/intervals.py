"""Confidence intervals of proportions."""

from math import sqrt

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

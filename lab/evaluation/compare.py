"""Is there a difference? Two questions, which are never mixed.

*Do these two checkpoints differ?* Both answered the same n prompts from the same noise, so the unit is the prompt:
``mcnemar`` for verdicts, ``permutation`` for scores. The answer says nothing of the configurations that made them: the
same configuration with another seed gives another checkpoint.

*Is configuration B better than A?* The unit is the training run. Runs r and prompts p are crossed, and the difference
that runs of B and of A show is

    d_rp = difference + run_r + prompt_p + noise_rp

whose variances ``Components`` holds. With k runs of each configuration and n prompts its mean has the variance

    run / k + prompt / n + noise / (k n)

of which only the first and the last fall with more runs, and only the last two with more prompts. Mean squares give
two independent estimates: V of what runs do (first and last term) with few degrees of freedom, and Q of what prompts do
with many. The interval, about new runs and new prompts of the same kinds, has the half width

    sqrt(t_runs^2 V + t_prompts^2 Q)

with the t quantile of either's own degrees of freedom. (Degrees of freedom estimated for V + Q as Satterthwaite does
give false alarms in up to 9 % of experiments with three runs each.)
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.evaluation.intervals import Z95
from lab.randomness import key

Values = NDArray[Any]
LEAST_RUNS = 3  # of each configuration, below which nothing is said of it
_MOST_RUNS = 1000
_EXPERIMENTS = 20_000  # that are simulated for a power
_LEAST_P = 1e-12


@dataclass(frozen=True)
class Paired:
    """How two checkpoints differ over the same prompts.

    Attributes:
        test: which; also says what the interval is.
        difference: mean of B minus mean of A.
        low, high: 95 % interval of the difference, over prompts.
        p_value: two-sided.
        n: prompts.
        only_a, only_b: prompts that only one of them got right; 0 for scores.
    """

    test: str
    difference: float
    low: float
    high: float
    p_value: float
    n: int
    only_a: int = 0
    only_b: int = 0


@dataclass(frozen=True)
class Components:
    """Variances of the difference that one run of B and one of A show; see the module's text."""

    run: float
    prompt: float
    noise: float


@dataclass(frozen=True)
class Hierarchical:
    """How two configurations differ, with the training run as the unit.

    Attributes:
        difference: mean of B minus mean of A.
        low, high: 95 % interval of the difference, t-type, over runs and prompts.
        p_value: two-sided.
        runs: of A and of B.
        n: prompts.
        is_paired: whether run r of A and of B share their seed, and so were compared pair by pair.
        components: the estimated variances.
    """

    difference: float
    low: float
    high: float
    p_value: float
    runs: tuple[int, int]
    n: int
    is_paired: bool
    components: Components


def mcnemar(a: Values, b: Values) -> Paired:
    """Compare the verdicts of two checkpoints: of the prompts on which they differ, are half right by each?

    Args:
        a, b: (n,) booleans for the same prompts and noise.

    Returns:
        The exact test; its interval is Agresti and Min's, cut to [-1, 1].

    Source: McNemar 1947, Psychometrika 12, 153; Agresti and Min 2005, Statistics in Medicine 24, 729 (half a prompt
    is added to each cell of the table).
    """
    from scipy.stats import binomtest

    a, b = _alike(np.asarray(a, dtype=bool), np.asarray(b, dtype=bool))
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    p_value = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    centre, differing = (only_b - only_a) / (n + 2), (only_a + only_b + 1) / (n + 2)
    half = Z95 * sqrt((differing - centre**2) / (n + 2))
    low, high = max(centre - half, -1.0), min(centre + half, 1.0)
    return Paired("McNemar, exact", (only_b - only_a) / n, low, high, p_value, n, only_a, only_b)


def permutation(a: Values, b: Values, resamples: int = 9999) -> Paired:
    """Compare the scores of two checkpoints: were A and B swapped at random on each prompt, how often so far apart?

    Args:
        a, b: (n,) scores for the same prompts and noise, n at least 2.
        resamples: random swappings; all 2^n of them where these are no more.

    Returns:
        The test; its interval is the t interval of the paired differences.
    """
    from scipy import stats

    a, b = _alike(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    change = b - a
    found = stats.permutation_test(
        (change,), np.mean, permutation_type="samples", n_resamples=resamples, rng=key(0, "permutation", 0)
    )
    half = float(stats.t.ppf(0.975, len(a) - 1) * change.std(ddof=1) / sqrt(len(a)))
    middle = float(change.mean())
    return Paired("paired permutation", middle, middle - half, middle + half, float(found.pvalue), len(a))


def hierarchical(a: Values, b: Values, *, is_paired: bool) -> Hierarchical:
    """Compare two configurations by runs of each on the same prompts.

    Args:
        a, b: (runs, n) verdicts or scores, at least ``LEAST_RUNS`` runs of each and 2 prompts.
        is_paired: whether row r of both shares its seed. Pairing takes out what the seed does to both alike, and costs
            half of the degrees of freedom: with unrelated runs it is right but sees less. Without pairs the runs of
            both are taken to spread alike; where one spreads twice as much as the other, false alarms rise to 7 %.

    Raises:
        ValueError: fewer runs, other prompts, or pairs without a partner.

    Source: mean squares of the two-way crossed layout with random runs and prompts; the sum of the half widths' squares
    is Howe's, 1974, J. Am. Stat. Assoc. 69, 789.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if min(len(a), len(b)) < LEAST_RUNS or a.shape[1] != b.shape[1] or (is_paired and len(a) != len(b)):
        raise ValueError(
            f"at least {LEAST_RUNS} runs each of the same prompts, in pairs if paired: {a.shape} {b.shape}"
        )
    tables, n = [b - a] if is_paired else [a, b], a.shape[1]
    by_prompt = b.mean(axis=0) - a.mean(axis=0)
    free = sum(len(table) - 1 for table in tables)
    between, noise = (sum(squares) / free for squares in zip(*map(_squares, tables), strict=True))
    share = sum(1 / len(table) for table in tables)  # how much of one table's variance is left in the difference
    prompt = max(float(by_prompt.var(ddof=1)) - share * noise, 0.0)
    difference, error = float(by_prompt.mean()), _Error(share * between, free, prompt / n, n - 1)
    half, sides = float(error.half(0.05)), len(tables)
    return Hierarchical(
        difference=difference,
        low=difference - half,
        high=difference + half,
        p_value=error.p_value(difference),
        runs=(len(a), len(b)),
        n=n,
        is_paired=is_paired,
        components=Components(sides * max(between - noise / n, 0.0), prompt, sides * noise),
    )


def smallest_detectable(
    components: Components, runs: int, prompts: int, *, is_paired: bool, power: float = 0.8
) -> float:
    """Give the difference that ``hierarchical`` finds, at the 5 % level, in a share ``power`` of such experiments.

    Args:
        components: of the difference.
        runs: of each configuration, at least ``LEAST_RUNS``.
        prompts: n.
        is_paired: as in ``hierarchical``.
        power: between 0.05 and 1.
    """
    from scipy import optimize, special

    rng, free = key(0, "power", 0), (runs - 1) * (1 if is_paired else 2)
    noise = components.noise / runs

    def mean_squares(degrees: int) -> Values:
        return rng.chisquare(degrees, _EXPERIMENTS) / degrees

    of_runs, of_prompts = (
        components.run / runs + noise / prompts,
        (components.prompt + noise) * mean_squares(prompts - 1),
    )
    excess = np.maximum(of_prompts - noise * mean_squares(free * (prompts - 1)), 0) / prompts
    deviation = sqrt(of_runs + components.prompt / prompts)
    if deviation == 0:
        return 0.0
    halves = _Error(of_runs * mean_squares(free), free, excess, prompts - 1).half(0.05) / deviation

    def lack(shift: float) -> float:
        return float(power - (special.ndtr(shift - halves) + special.ndtr(-shift - halves)).mean())

    return float(optimize.brentq(lack, 0.0, 10 + float(halves.max()))) * deviation


def runs_needed(difference: float, components: Components, prompts: int, *, is_paired: bool) -> int | None:
    """Give how many runs of each configuration find such a difference with a power of 80 %; ``None`` for no number."""

    def suffices(runs: int) -> bool:
        return smallest_detectable(components, runs, prompts, is_paired=is_paired) <= abs(difference)

    if not suffices(_MOST_RUNS):
        return None
    low, high = LEAST_RUNS - 1, _MOST_RUNS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


class _Error(NamedTuple):
    """What is known of the error of a difference: two variances with their degrees of freedom."""

    of_runs: Any
    free_runs: int
    of_prompts: Any
    free_prompts: int

    def half(self, level: float) -> Any:
        """Half the width of the interval that misses the truth in a share ``level`` of experiments."""
        from scipy.special import stdtrit

        runs, prompts = (stdtrit(free, 1 - level / 2) for free in (self.free_runs, self.free_prompts))
        return np.sqrt(runs**2 * self.of_runs + prompts**2 * self.of_prompts)

    def p_value(self, difference: float) -> float:
        """The level at which the interval just reaches zero."""
        from scipy.optimize import brentq

        if self.half(_LEAST_P) <= abs(difference):
            return _LEAST_P if difference else 1.0
        return float(brentq(lambda level: float(self.half(level)) - abs(difference), _LEAST_P, 1.0))


def _squares(table: Values) -> tuple[float, float]:
    """Sums of squares of a table (runs, n) per runs - 1 degrees of freedom: of the runs' means; of what is left."""
    means = table.mean(axis=1, keepdims=True)
    rest = table - means - table.mean(axis=0, keepdims=True) + table.mean()
    return float(((means - means.mean()) ** 2).sum()), float((rest**2).sum() / (table.shape[1] - 1))


def _alike(a: Values, b: Values) -> tuple[Values, Values]:
    assert a.shape == b.shape, "one answer of each to every prompt"
    assert a.ndim == 1, "one checkpoint each"
    return a, b

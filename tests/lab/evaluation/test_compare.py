"""Is there a difference? Exact sums, closed forms, and experiments that are simulated from known variances.

The full numbers are checked by ``python -m pytest tests/lab/evaluation/test_compare.py -m "slow or not slow"``.
"""

import json
from itertools import combinations, product
from math import comb, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lab.evaluation.compare import (
    Components,
    Hierarchical,
    hierarchical,
    mcnemar,
    permutation,
    runs_needed,
    smallest_detectable,
)

ROOT = Path(__file__).parents[3]
REAL = Components(run=8e-4, prompt=0.02, noise=0.2)  # the order of size of verdicts: runs spread by 0.02
REGIMES = [
    REAL,
    Components(run=8e-4, prompt=0.0, noise=0.2),
    Components(run=2e-3, prompt=0.1, noise=0.2),
    Components(run=0.0, prompt=0.02, noise=0.2),
]


def verdicts(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 5), (5, 3), (10, 2), (0, 12), (7, 7), (120, 148)])
def test_mcnemar_is_the_direct_binomial_sum(only_a: int, only_b: int) -> None:
    found, total = mcnemar(*verdicts(40, only_a, only_b, 30)), only_a + only_b
    tail = sum(comb(total, k) for k in range(min(only_a, only_b) + 1)) / 2**total
    assert found.p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert (found.only_a, found.only_b, found.n) == (only_a, only_b, 70 + total)
    assert found.difference == pytest.approx((only_b - only_a) / found.n)
    assert -1 <= found.low <= found.difference <= found.high <= 1


def test_mcnemar_without_any_difference() -> None:
    found = mcnemar(*verdicts(5, 0, 0, 5))
    assert (found.p_value, found.difference) == (1.0, 0.0)
    assert found.low < 0 < found.high  # ten prompts do not prove that none differs


def test_the_interval_of_two_checkpoints_covers_the_truth() -> None:
    """Paired verdicts from known probabilities; also at the edge, where all are right."""
    rng = np.random.default_rng(0)
    for shares in ([0.5, 0.1, 0.2, 0.2], [0.9, 0.02, 0.06, 0.02], [0.3, 0.02, 0.6, 0.08]):
        tables = rng.multinomial(300, shares, size=600)
        inside = [
            found.low <= shares[2] - shares[1] <= found.high for found in (mcnemar(*verdicts(*t)) for t in tables)
        ]
        assert 0.93 <= np.mean(inside) <= 0.975


def test_permutations_are_all_swaps_where_these_are_few() -> None:
    a, b = np.array([0.1, 0.5, 0.2, 0.9, 0.3, 0.7]), np.array([0.4, 0.6, 0.1, 0.95, 0.8, 0.9])
    change = b - a
    means = [np.mean(change * signs) for signs in product((1, -1), repeat=6)]
    expected = np.mean([abs(mean) >= abs(change.mean()) - 1e-12 for mean in means])
    found = permutation(a, b)
    assert found.p_value == pytest.approx(expected)
    assert found.difference == pytest.approx(change.mean())
    assert found.low < found.difference < found.high
    assert permutation(b, a).difference == pytest.approx(-found.difference)


def test_many_permutations_are_drawn_alike_each_time() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=50)
    b = a + rng.normal(0.3, 1, size=50)
    assert permutation(a, b) == permutation(a, b)
    assert permutation(a, b).p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_where_runs_are_all_that_varies_it_is_the_t_test() -> None:
    """Every prompt alike within a run: the paired and the pooled t test over the runs."""
    a, b = np.array([0.5, 0.55, 0.52, 0.6]), np.array([0.6, 0.58, 0.66, 0.63])
    tables = [np.repeat(side[:, None], 200, axis=1) for side in (a, b)]
    for is_paired, expected in ((True, stats.ttest_rel(b, a)), (False, stats.ttest_ind(b, a))):
        found = hierarchical(*tables, is_paired=is_paired)
        low, high = expected.confidence_interval()
        assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
        assert found.components.prompt == pytest.approx(0, abs=1e-12)
        assert found.components.noise == pytest.approx(0, abs=1e-12)
    assert found.components.run == pytest.approx(a.var(ddof=1) + b.var(ddof=1))


def test_where_prompts_are_all_that_varies_it_is_the_t_test_over_prompts() -> None:
    rng = np.random.default_rng(2)
    change = rng.normal(0.1, 1, size=80)
    a = np.tile(rng.normal(size=80), (3, 1))
    found = hierarchical(a, a + change, is_paired=True)
    expected = stats.ttest_1samp(change, 0)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.components.prompt == pytest.approx(change.var(ddof=1))


def test_p_value_and_interval_say_the_same() -> None:
    for found in experiments(REAL, 3, 100, 0.08, is_paired=False, num=100):
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        assert found.low <= found.difference <= found.high


def test_the_variances_are_found_again() -> None:
    found = list(experiments(Components(0.02, 0.05, 0.2), 6, 400, 0.1, is_paired=False, num=200))
    for name, truth in (("run", 0.02), ("prompt", 0.05), ("noise", 0.2)):
        assert np.mean([getattr(each.components, name) for each in found]) == pytest.approx(truth, rel=0.1)


def test_unequal_numbers_of_runs() -> None:
    rng = np.random.default_rng(3)
    found = hierarchical(rng.normal(size=(3, 50)), rng.normal(size=(5, 50)), is_paired=False)
    assert found.runs == (3, 5)
    rate = np.mean([each.p_value < 0.05 for each in experiments(REAL, 3, 200, 0.0, is_paired=False, num=600, more=3)])
    assert 0.02 <= rate <= 0.08


@pytest.mark.parametrize(
    ("shapes", "is_paired"), [(((2, 9), (3, 9)), False), (((3, 9), (3, 8)), False), (((3, 9), (4, 9)), True)]
)
def test_what_cannot_be_compared(shapes: tuple[tuple[int, int], tuple[int, int]], is_paired: bool) -> None:
    with pytest.raises(ValueError, match="at least 3 runs each"):
        hierarchical(*(np.zeros(shape) for shape in shapes), is_paired=is_paired)


@pytest.mark.parametrize("is_paired", [True, False])
def test_false_alarms_and_power_in_simulated_experiments(is_paired: bool) -> None:
    check(REAL, 3, 1000, is_paired=is_paired, num=1000)


def test_false_alarms_and_power_with_the_variances_of_six_real_runs() -> None:
    """Six seeds of one configuration: what differs between two of them is run and noise, and no prompt favours one."""
    table = six_real_runs()
    single = crossed(table)
    assert 0.015 < sqrt(single.run) < 0.03  # accuracies 0.06 to 0.14, of which the prompts' own luck explains 0.012
    components = Components(run=2 * single.run, prompt=0.0, noise=2 * single.noise)
    check(components, 3, table.shape[1], is_paired=False, num=1000)


def test_halves_of_six_runs_of_one_configuration_hardly_ever_differ() -> None:
    table = six_real_runs()
    halves = [(0, *others) for others in combinations(range(1, 6), 2)]
    assert len(halves) == 10
    found = [
        hierarchical(table[list(half)], np.delete(table, half, axis=0), is_paired=False).p_value for half in halves
    ]
    assert sum(p_value < 0.05 for p_value in found) <= 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("components", REGIMES)
def test_false_alarms_and_power_in_other_worlds(components: Components, is_paired: bool) -> None:
    check(components, 3, 1000, is_paired=is_paired, num=4000)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_paired", [True, False])
def test_false_alarms_and_power_with_verdicts(is_paired: bool) -> None:
    """Right or wrong by a probit: a difficulty of each prompt, and one of its own in each configuration and run."""
    null = [hierarchical(*probit(k, 0.0), is_paired=is_paired) for k in range(4000)]
    assert 0.03 <= np.mean([found.p_value < 0.05 for found in null]) <= 0.07
    known = [hierarchical(*probit(k, 0.0, runs=100), is_paired=is_paired).components for k in range(40)]
    components = Components(*(float(np.mean([getattr(c, name) for c in known])) for name in ("run", "prompt", "noise")))
    size = smallest_detectable(components, 3, PROMPTS, is_paired=is_paired)
    found = [hierarchical(*probit(k, size), is_paired=is_paired).p_value < 0.05 for k in range(4000)]
    assert 0.75 <= np.mean(found) <= 0.85


def test_detectable_differences_against_the_noncentral_t_distribution() -> None:
    only_runs = Components(run=2.0, prompt=0.0, noise=0.0)
    for runs, is_paired in ((3, False), (5, False), (5, True), (20, True)):
        free = (runs - 1) * (1 if is_paired else 2)
        shift = smallest_detectable(only_runs, runs, 100, is_paired=is_paired) / sqrt(2 / runs)
        limit = stats.t.ppf(0.975, free)
        assert stats.nct.sf(limit, free, shift) == pytest.approx(0.8, abs=0.01)


def test_more_runs_and_more_prompts_find_smaller_differences() -> None:
    sizes = [smallest_detectable(REAL, runs, 500, is_paired=False) for runs in (3, 4, 6, 10, 30)]
    assert sizes == sorted(sizes, reverse=True)
    assert smallest_detectable(REAL, 5, 2000, is_paired=False) < smallest_detectable(REAL, 5, 200, is_paired=False)
    for size in sizes[1:]:
        needed = runs_needed(1.0001 * size, REAL, 500, is_paired=False)
        assert needed == [3, 4, 6, 10, 30][sizes.index(size)]
    assert runs_needed(5.0, REAL, 500, is_paired=False) == 3
    assert runs_needed(0.001, REAL, 500, is_paired=False) is None  # the prompts alone hide it


PROMPTS = 500


def six_real_runs() -> np.ndarray:
    """Right or wrong (6, 500): six seeds of one configuration, the same prompts and noise each."""
    record = json.loads((ROOT / "runs/reference/six_seeds/outcomes.json").read_text())
    return np.array([[float(answer) for answer in line] for line in record["right"].values()])


def crossed(table: np.ndarray) -> Components:
    """Variances of the verdicts of runs of one configuration, by mean squares of the crossed table (runs, prompts)."""
    runs, prompts = table.shape
    by_run, by_prompt = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    noise = np.square(table - by_run - by_prompt + table.mean()).sum() / ((runs - 1) * (prompts - 1))
    run, prompt = by_run.var(ddof=1) - noise / prompts, by_prompt.var(ddof=1) - noise / runs
    return Components(run=float(run), prompt=float(prompt), noise=float(noise))


def experiments(
    components: Components, runs: int, prompts: int, difference: float, *, is_paired: bool, num: int, more: int = 0
):
    """Simulate experiments; half of each variance of the difference stems from A and half from B."""
    rng = np.random.default_rng(hash((components.run, components.prompt, runs, prompts, is_paired)) % 2**32)
    run, prompt, noise = (sqrt(part / 2) for part in (components.run, components.prompt, components.noise))
    for _ in range(num):
        difficulty = rng.normal(0, 0.5, prompts)
        sides = [
            rng.normal(0, run, (count, 1)) + rng.normal(0, prompt, prompts) + rng.normal(0, noise, (count, prompts))
            for count in (runs, runs + more)
        ]
        yield hierarchical(difficulty + sides[0], difference + difficulty + sides[1], is_paired=is_paired)


def check(components: Components, runs: int, prompts: int, *, is_paired: bool, num: int) -> None:
    def found(difference: float) -> float:
        alike: list[Hierarchical] = list(
            experiments(components, runs, prompts, difference, is_paired=is_paired, num=num)
        )
        return float(np.mean([each.p_value < 0.05 for each in alike]))

    assert 0.03 <= found(0.0) <= 0.07
    assert 0.75 <= found(smallest_detectable(components, runs, prompts, is_paired=is_paired)) <= 0.85


def probit(experiment: int, difference: float, runs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two tables (runs, PROMPTS) of verdicts whose expected shares are 0.6 and 0.6 + difference."""
    rng = np.random.default_rng(experiment)
    spreads = {"difficulty": 1.0, "run": 0.06, "prompt": 0.2}
    width = sqrt(1 + sum(spread**2 for spread in spreads.values()))  # of the sum, in units of the last normal's
    difficulty = rng.normal(0, spreads["difficulty"], PROMPTS)
    tables = []
    for share in (0.6, 0.6 + difference):
        level = width * stats.norm.ppf(share) + difficulty + rng.normal(0, spreads["prompt"], PROMPTS)
        of_run = rng.normal(0, spreads["run"], (runs, 1))
        tables.append(level + of_run + rng.normal(size=(runs, PROMPTS)) > 0)
    return tables[0], tables[1]

"""The two questions of scripts/compare.py, answered in numbers and in words."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lab.config import Config, diff
from lab.errors import Refused
from lab.evaluation import compare
from lab.evaluation.compare import LEAST_RUNS, Components, Hierarchical, Paired
from scripts.comparison.evaluations import Evaluation

LEVEL = 0.05
SPREADS = (0.01, 0.02, 0.04)  # standard deviations between runs that are assumed where none is known
INDIVIDUAL = ("name", "seed", "runtime.")  # what may differ between runs of one configuration


@dataclass(frozen=True)
class Answer:
    """What was found, for the terminal and the page.

    Attributes:
        question: that was asked.
        kind: of the prompts that the verdict is about.
        facts: lines that say what was compared.
        header, rows: a table; its first column names the kind of prompts.
        verdict: sentences.
        intervals: by kind, (low, difference, high).
    """

    question: str
    kind: str
    facts: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdict: Sequence[str]
    intervals: Mapping[str, tuple[float, float, float]]


def checkpoints(a: Evaluation, b: Evaluation, kind: str, what: str) -> Answer:
    """Do these two checkpoints differ?

    Raises:
        Refused: nothing of that kind or name was judged.
    """
    test: Callable[[compare.Values, compare.Values], Paired]
    test = compare.permutation if what == "agreement" else compare.mcnemar
    found = {each: test(a.answers(each, what), b.answers(each, what)) for each in _kinds(a, kind, what)}
    rows = []
    for each, result in found.items():
        first = float(a.answers(each, what).mean())
        only = ["", ""] if what == "agreement" else [str(result.only_a), str(result.only_b)]
        rows.append([*_row(each, first, result), *only, f"{result.p_value:.2g}", str(result.n)])
    result = found[kind]
    sides = {"A": a, "B": b}
    facts = [f"{name}  {each.run}, step {each.step} ({each.path.name})" for name, each in sides.items()]
    return Answer(
        question="Do these two checkpoints differ?  Paired over the same prompts and noise.",
        kind=kind,
        facts=[*facts, *differences(a, b)],
        header=["", "A", "B", "B - A", "95 % interval", "only A", "only B", f"p ({result.test})", "n"],
        rows=rows,
        verdict=[
            f"On {kind}, {_better(result, 'checkpoint B', 'checkpoint A')}",
            *_alone(a, b, kind, what),
        ],
        intervals={each: (result.low, result.difference, result.high) for each, result in found.items()},
    )


def configurations(a: Sequence[Evaluation], b: Sequence[Evaluation], kind: str, what: str, *, pair: bool) -> Answer:
    """Is configuration B better than A?

    Args:
        a, b: runs of each.
        kind, what: on which the verdict is given.
        pair: whether runs of the same seed are paired where every run has its partner.

    Raises:
        Refused: runs of one side differ in more than their seed, or are the same run twice.
    """
    a, b = one_configuration(a, "--a"), one_configuration(b, "--b")
    seeds = [[each.experiment.seed for each in side] for side in (a, b)]
    is_paired = pair and seeds[0] == seeds[1]
    facts = [
        *(
            f"{name}  {len(side)} run(s), seeds {', '.join(map(str, own))}: {', '.join(str(each.run) for each in side)}"
            for name, side, own in zip("AB", (a, b), seeds, strict=True)
        ),
        *differences(a[0], b[0]),
    ]
    question = "Is configuration B better than A?  The unit is the training run."
    if min(len(a), len(b)) < LEAST_RUNS:
        return Answer(question, kind, facts, [], [], _too_few(a, b, kind, what), {})
    found = {
        each: compare.hierarchical(_table(a, each, what), _table(b, each, what), is_paired=is_paired)
        for each in _kinds(a[0], kind, what)
    }
    facts.append("compared pair by pair, by seed" if is_paired else "compared without pairs (Welch)")
    rows = []
    for each, result in found.items():
        first = float(_table(a, each, what).mean())
        cells = [f"{result.p_value:.2g}", f"{_detectable(result):.3f}", str(result.n)]
        rows.append([*_row(each, first, result), *cells])
    return Answer(
        question=question,
        kind=kind,
        facts=[*facts, *(_means(name, side, kind, what) for name, side in (("A", a), ("B", b)))],
        header=["", "A", "B", "B - A", "95 % interval", "p", "detectable", "n"],
        rows=rows,
        verdict=_judgement(kind, found[kind], len(found)),
        intervals={each: (result.low, result.difference, result.high) for each, result in found.items()},
    )


def one_configuration(side: Sequence[Evaluation], flag: str) -> list[Evaluation]:
    """Order runs by seed, and check that they are runs of one configuration.

    Raises:
        Refused: they differ in more than their seed, or two have the same.
    """
    ordered = sorted(side, key=lambda each: (each.experiment.seed, str(each.run)))
    for one, other in pairwise(ordered):
        if changes := _changes(ordered[0].experiment, other.experiment):
            raise Refused(
                f"{flag}: {ordered[0].run} and {other.run} are not runs of one configuration ({changes[0]}): "
                "name runs that differ in their seed alone"
            )
        if one.experiment.seed == other.experiment.seed:
            raise Refused(
                f"{flag}: {one.run} and {other.run} both have seed {other.experiment.seed}: a run counts once; "
                "train more with other seeds (scripts/sweep.py --seeds)"
            )
        if one.step != other.step and not one.experiment.train.budget:
            raise Refused(
                f"{flag}: {one.run} was evaluated at step {one.step} and {other.run} at {other.step}: "
                "finish the shorter run, and evaluate it again"
            )
    return ordered


def differences(a: Evaluation, b: Evaluation) -> list[str]:
    """What differs between two runs' configurations and settings of the sampler, a line each."""
    lines = [f"differs: {line}" for line in _changes(a.experiment, b.experiment)]
    before, after = a.figures["sampling"], b.figures["sampling"]
    drawn = [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    if a.drawing != b.drawing:
        drawn.append(f"the code's revision: {a.drawing} -> {b.drawing}; evaluate the older one again")
    return [*lines, *(f"differs in how pictures were drawn: {line}" for line in drawn)]


def _changes(one: Config, other: Config) -> list[str]:
    return [line for line in diff(one, other) if not line.startswith(INDIVIDUAL)]


def _kinds(evaluation: Evaluation, kind: str, what: str) -> list[str]:
    """The kind of the verdict first, then the others of which the same was judged."""
    evaluation.answers(kind, what)
    others = []
    for each in evaluation.kinds:
        with suppress(Refused):  # "single" states no relation
            evaluation.answers(each, what)
            others.append(each)
    return [kind, *(each for each in others if each != kind)]


def _table(side: Sequence[Evaluation], kind: str, what: str) -> compare.Values:
    """(runs, n)."""
    return np.stack([each.answers(kind, what) for each in side])


def _row(kind: str, first: float, result: Paired | Hierarchical) -> list[str]:
    second = first + result.difference
    interval = f"[{result.low:+.3f}, {result.high:+.3f}]"
    return [kind, f"{first:.3f}", f"{second:.3f}", f"{result.difference:+.3f}", interval]


def _better(result: Paired | Hierarchical, b: str, a: str) -> str:
    if result.p_value >= LEVEL:
        return f"no difference between {a} and {b} was found (p {result.p_value:.2g})."
    winner, loser = (b, a) if result.difference > 0 else (a, b)
    return f"{winner} is better than {loser} by {abs(result.difference):.3f} (p {result.p_value:.2g})."


def _detectable(result: Hierarchical) -> float:
    runs = min(result.runs)
    return compare.smallest_detectable(result.components, runs, result.n, is_paired=result.is_paired)


def _means(name: str, side: Sequence[Evaluation], kind: str, what: str) -> str:
    values = _table(side, kind, what).mean(axis=1)
    listed = "  ".join(f"{value:.3f}" for value in values)
    return f"{name}  {kind} by run: {listed}  (standard deviation {values.std(ddof=1):.3f})"


def _judgement(kind: str, result: Hierarchical, looks: int) -> list[str]:
    if result.low == result.high:
        return [
            f"On {kind}, every run has the same outcome on each prompt: nothing can be told apart by these prompts."
        ]
    verdict = [f"On {kind}, {_better(result, 'configuration B', 'configuration A')}"]
    detectable = _detectable(result)
    if result.p_value >= LEVEL:
        verdict.append(
            f"That is not to say that there is none: with {min(result.runs)} runs each, one below {detectable:.3f} is "
            "missed more often than in one of five experiments."
        )
        verdict.append(_more_runs(result))
    else:
        verdict.append(
            f"The smallest difference that {min(result.runs)} runs each find with 80 % power is {detectable:.3f}."
        )
    if looks > 1:
        verdict.append(
            f"The verdict is on {kind} alone: of {looks} lines one is below p 0.05 by chance more often than one "
            "line is. Choose --kind before you look."
        )
    return verdict


def _more_runs(result: Hierarchical) -> str:
    needed = compare.runs_needed(result.difference, result.components, result.n, is_paired=result.is_paired)
    size = f"A difference of the size seen ({abs(result.difference):.3f})"
    if needed is None:
        return f"{size} is not found by more runs on these {result.n} prompts."
    return f"{size} is found with 80 % power by {needed} runs of each."


def _alone(a: Evaluation, b: Evaluation, kind: str, what: str) -> list[str]:
    if not _changes(a.experiment, b.experiment):
        return [
            "Both are runs of one configuration: whatever differs is the seed, the step or how pictures were drawn."
        ]
    return [
        "This is about these two checkpoints, not about what they were trained with:",
        *_too_few([a], [b], kind, what),
    ]


def _too_few(a: Sequence[Evaluation], b: Sequence[Evaluation], kind: str, what: str) -> list[str]:
    """Why nothing can be said of configurations, and what it would take."""
    count = min(len(a), len(b))
    first, second = _table(a, kind, what), _table(b, kind, what)
    change = second.mean(axis=0) - first.mean(axis=0)
    size, n = float(change.mean()), len(change)
    told = f"Is the configuration better? We cannot tell from {'one run' if count == 1 else f'{count} runs'} each"
    if size == 0:
        return [f"{told}; at least {LEAST_RUNS} are needed."]
    needs = []
    for spread in SPREADS:
        assumed = Components(2 * spread**2, 0.0, float(change.var(ddof=1)))
        needed = compare.runs_needed(size, assumed, n, is_paired=False)
        needs.append(f"{needed or 'more than a thousand'} if runs of one configuration spread by {spread}")
    return [
        f"{told}: how much runs of one configuration differ is not known. A difference of {abs(size):.3f} on {kind} "
        f"({n} prompts) needs, for 80 % power, at least this many runs of each:",
        f"  {'; '.join(needs)} (standard deviation).",
        f"Three or more of each come from: python scripts/sweep.py PRESET --vary key=a,b --seeds {LEAST_RUNS}",
    ]

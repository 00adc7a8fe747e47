"""The record of a run: each fault planted at three strengths is found, and runs in order have none."""

import json
from collections.abc import Callable

import pytest

from lab.randomness import key
from lab.training.symptoms import Lines, Symptom, of_record
from tests.faults import ROOT


def healthy(num: int = 80) -> list[dict[str, float | None]]:
    """The record of a run in order, with the unrest that such records have."""
    lines: list[dict[str, float | None]] = []
    for k in range(num):
        wave, jump = key(0, "record", k).normal(size=2)
        lines.append(
            {
                "step": 25.0 * (k + 1),
                "seen": 800.0 * (k + 1),
                "train/loss": (0.05 + 0.5 / (k + 1)) * (1 + 0.05 * wave),
                "train/gradient_norm": 0.3 * 2 ** (0.5 * jump),
                "time/data_wait_share": 0.03,
            }
        )
        if k % 20 == 19:
            sides = {"loss/train": 0.05, "loss/heldout": 0.0525}
            lines.append({"step": 25.0 * (k + 1), **sides, **{f"{side}/half_width": 0.003 for side in sides}})
    return lines


def ill(lines: Lines, *, endless: bool = False) -> set[str]:
    return {symptom.name for symptom in of_record(lines, 1.0, endless) if symptom.is_ill}


Plant = Callable[[dict[str, float | None], int, float], dict[str, float]]
PLANTS: dict[str, tuple[Plant, tuple[float, float, float]]] = {
    "starving": (lambda line, k, s: {"time/data_wait_share": s}, (0.3, 0.5, 0.9)),
    "jumping gradients": (lambda line, k, s: {"train/gradient_norm": s} if k % 15 == 0 else {}, (8, 30, 1000)),
    "vanishing gradients": (lambda line, k, s: {"train/gradient_norm": s}, (1e-7, 1e-9, 0.0)),
    "gradients always clipped": (
        lambda line, k, s: {"train/gradient_norm": s * (line["train/gradient_norm"] or 0)},
        (20, 50, 1000),
    ),
    "diverging": (lambda line, k, s: {"train/loss": s} if k > 70 else {}, (0.12, 0.5, 100)),
    "updates left out": (lambda line, k, s: {"train/skipped": s}, (1, 5, 25)),
}


@pytest.mark.parametrize("strength", range(3))
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found_and_no_other(name: str, strength: int) -> None:
    plant, strengths = PLANTS[name]
    training = [line for line in healthy() if "train/loss" in line]
    assert ill([line | plant(line, k, strengths[strength]) for k, line in enumerate(training)]) == {name}


@pytest.mark.parametrize("gap", [0.012, 0.05, 1.0])
def test_what_is_learned_by_heart_is_found_beyond_chance(gap: float) -> None:
    lines = healthy()
    lines[-1] |= {"loss/heldout": 0.05 + gap}
    assert ill(lines) == {"learning by heart"}
    assert ill(lines, endless=True) == set()
    lines[-1] |= {"loss/train/half_width": 2 * gap}
    assert ill(lines) == set()


@pytest.mark.parametrize("num", [0, 1, 2, 5, 20, 80, 1000])
def test_a_run_in_order_has_no_finding_however_long_it_is(num: int) -> None:
    assert ill(healthy(num)) == set()


def test_the_published_record_has_no_finding() -> None:
    text = (ROOT / "runs" / "reference" / "shapes" / "metrics.jsonl").read_text()
    symptoms = of_record([json.loads(line) for line in text.splitlines()], 1.0, endless=True)
    assert len(symptoms) == 6
    assert not any(symptom.is_ill for symptom in symptoms)


def test_figures_that_were_not_finite_are_passed_over() -> None:
    lines = healthy()
    lines.append({"step": 3000.0, "loss/train": None, "loss/heldout": 0.1, "train/loss": None})
    assert ill(lines) == set()


def test_a_loss_below_zero_that_stays_is_in_order() -> None:
    """A critic's voice has any sign; where there is one, the part of the loss without it is looked at."""
    lines = [line | {"train/loss": -1.0 + 0.01 * (k % 5)} for k, line in enumerate(healthy())]
    assert ill(lines) == set()
    voiced = [line | {"train/pixel": 0.05, "train/loss": 0.05 if k < 70 else 5.0} for k, line in enumerate(healthy())]
    assert ill(voiced) == set()


def test_every_symptom_says_what_was_measured_and_its_limit() -> None:
    for symptom in of_record(healthy(), 1.0, endless=False):
        assert isinstance(symptom, Symptom)
        assert "limit" in symptom.told

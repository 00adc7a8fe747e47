"""Snapshots of the averages: when, what, and what becomes of them."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lab.errors import Refused
from lab.training import checkpoint
from lab.training.ema import Average
from lab.training.history import History, is_due
from lab.training.posthoc import Profile, solve
from lab.training.snapshot import average_name
from tests.lab.training.test_checkpoint import flip

LENGTHS = (0.05, 0.1)


class Counting(nn.Module):
    """A weight, and a buffer that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0.0))


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Four snapshots of 8 steps."""
    history, module = History(tmp_path / "snapshots"), Counting()
    averages = [Average(module, length) for length in LENGTHS]
    for step in range(1, 9):
        module.weight.data.add_(torch.tensor([1.0, math.sin(step), 0.1]))
        module.steps.add_(1)
        for average in averages:
            average.update(module, step)
        states = {average_name(average.length): average.module.state_dict() for average in averages}
        if is_due(step, 8, 4):
            history.keep(step, 6 * step, states, {"run_id": "x"})
    return history


def steps(history: History) -> list[int]:
    return sorted({profile.step for profile in history.profiles(LENGTHS)})


@pytest.mark.parametrize(("total", "num"), [(9, 4), (100, 32), (5, 5), (7, 1), (1, 1), (2800, 32)])
def test_as_many_as_asked_for_evenly_spaced_to_the_last_step(total: int, num: int) -> None:
    due = [step for step in range(1, total + 1) if is_due(step, total, num)]
    assert due == [math.ceil(k * total / num) for k in range(1, num + 1)]


def test_none_are_due_when_none_are_asked_for() -> None:
    assert not any(is_due(step, 9, 0) for step in range(1, 10))


def test_what_is_kept_is_the_averages_in_float32(history: History) -> None:
    assert steps(history) == [2, 4, 6, 8]
    saved = checkpoint.load(history.root / "step-00000008")
    assert set(saved.tensors) == {"ema_0.050", "ema_0.100"}
    assert saved.tensors["ema_0.050"]["weight"].dtype == torch.float32
    assert dict(saved.state) == {"step": 8, "seen": 48}


@pytest.mark.parametrize("step", [4, 5])
def test_a_resume_forgets_what_lies_ahead_and_what_was_left_half_written(history: History, step: int) -> None:
    (history.root / ".tmp-step-00000004-1").mkdir()
    history.rewind(step)
    assert steps(history) == [2, 4]
    assert not list(history.root.glob(".tmp-*"))


@pytest.mark.parametrize(("length", "step"), [(0.05, 8), (0.1, 8), (0.1, 6)])
def test_a_stored_average_comes_back_bit_for_bit(history: History, length: float, step: int) -> None:
    stored = history.profiles(LENGTHS, step)
    fit = solve(stored, Profile(step, length))
    found = history.total(stored, fit.coefficients, ["weight"])
    saved = checkpoint.load(history.root / f"step-{step:08d}").tensors[f"ema_{length:.3f}"]
    assert found["weight"].dtype == torch.float32
    torch.testing.assert_close(found, dict(saved), rtol=0, atol=0)


def test_what_is_not_a_parameter_is_the_newest(history: History) -> None:
    stored = history.profiles(LENGTHS, 6)
    found = history.total(stored, solve(stored, Profile(6, 0.2)).coefficients, ["weight"])
    assert found["steps"] == 6


def test_sums_are_those_of_the_coefficients(history: History) -> None:
    stored, coefficients = history.profiles(LENGTHS, 4), [1.0, -2.0, 3.0, -1.0]
    parts = [
        checkpoint.load(history.root / f"step-{profile.step:08d}").tensors[f"ema_{profile.length:.3f}"]["weight"]
        for profile in stored
    ]
    expected = sum(c * part for c, part in zip(coefficients, parts, strict=True))
    torch.testing.assert_close(history.total(stored, coefficients, ["weight"])["weight"], expected)


def test_a_broken_snapshot_is_refused_until_it_is_deleted(history: History) -> None:
    broken = history.root / "step-00000004"
    flip(broken / "ema_0.100.safetensors")
    stored = history.profiles(LENGTHS)
    with pytest.raises(
        Refused, match=r"step-00000004 cannot be used: ema_0.100.safetensors is not .*; delete the folder"
    ):
        history.total(stored, [0.125] * 8, ["weight"])


@pytest.mark.parametrize(("step", "message"), [(5, r"no snapshot at step 5 \(found: 2, 4, 6, 8\)")])
def test_a_step_without_a_snapshot_is_refused(history: History, step: int, message: str) -> None:
    with pytest.raises(Refused, match=message):
        history.profiles(LENGTHS, step)


def test_a_run_without_snapshots_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no snapshots there; .* with train.snapshots=32 and two lengths"):
        History(tmp_path).profiles(LENGTHS)

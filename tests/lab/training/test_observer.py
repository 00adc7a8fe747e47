"""Previews and evaluations: when they come, that they leave no trace, and what a signal in one of them means."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lab.training.test_trainer import finish, previews, trainer, weights


class Curious:
    """An evaluator that draws random numbers."""

    every_steps = 2

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        torch.manual_seed(99)
        return {"accuracy/drawn": torch.rand(()).item()}


def test_previews_and_evaluators_come_on_their_periods_and_leave_no_trace(tmp_path: Path) -> None:
    plain, random_state = finish(trainer(tmp_path / "plain")), torch.get_rng_state()
    made = finish(trainer(tmp_path / "run", evaluators=[Curious()], preview_every=4))
    assert torch.equal(weights(made), weights(plain))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [line["step"] for line in made.rundir.metrics() if "accuracy/drawn" in line] == [2, 4, 6]
    assert previews(made) == ["line-00000000.png", "samples-00000004.png", "samples-00000006.png"]


class Long:
    """An evaluator in which a signal arrives the first time."""

    every_steps = 2

    def __init__(self, process_signal: int = signal.SIGTERM) -> None:
        self.signal, self.calls = process_signal, 0

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        self.calls += 1
        if self.calls == 1:
            os.kill(os.getpid(), self.signal)
            raise AssertionError("the signal cuts it short")
        return {"accuracy/drawn": 1.0}


@pytest.mark.parametrize("steps", [6, 2], ids=["on the way", "at the end"])
def test_a_signal_in_an_evaluation_saves_at_once_and_the_evaluation_is_made_up_for(tmp_path: Path, steps: int) -> None:
    long = Long()
    made = trainer(tmp_path / "run", evaluators=[long], steps=steps, preview_every=2)
    with made.rundir:
        assert made.fit() == 128 + signal.SIGTERM
    assert made.step == 2
    status = made.rundir.status()
    assert status is not None
    assert (status.state, status.checkpoint) == ("preempted", "step-00000002")
    again = finish(trainer(tmp_path / "run", evaluators=[long], steps=steps, preview_every=2))
    measured = [line["step"] for line in again.rundir.metrics() if "accuracy/drawn" in line]
    assert measured == list(range(2, steps + 1, 2))
    assert torch.equal(weights(again), weights(finish(trainer(tmp_path / "whole", steps=steps))))

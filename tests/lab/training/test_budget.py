"""A run of a given time: when it ends, at any speed, and that it stays decided."""

from itertools import count
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from lab.training import checkpoint
from lab.training import trainer as module
from lab.training.budget import AIM, Budget, Ending, seconds_of
from lab.training.config import TrainConfig
from lab.training.optimizer import OptimizerConfig
from tests.faults import TINY, Done, Scripts, even_clock, signal_at
from tests.lab.training.test_resume import differences
from tests.lab.training.test_trainer import finish, trainer

WSD = OptimizerConfig(rate=0.05, warm_up=3, decay_share=0.25, clip=0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0), ("90s", 90), ("5m", 300), ("6h", 21600), ("1h30m", 5400), ("0.5d", 43200)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert TrainConfig(budget=text, optimizer=WSD).budget == text


@pytest.mark.parametrize("text", ["6", "h", "6 h", "-1h", "6x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(budget=text)


@pytest.mark.parametrize("optimizer", [{"decay": "cosine"}, {"decay": "none"}, {"decay_share": 1.0}])
def test_a_rate_that_falls_from_the_start_needs_to_know_the_end(optimizer: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"set optimizer\.decay to wsd"):
        TrainConfig(budget="1h", optimizer=OptimizerConfig.model_validate(optimizer))


def run(budget: Budget, step_seconds) -> tuple[Ending, float]:
    """The ending, and the time after its last step, of a run whose step i takes step_seconds(i)."""
    seconds, ending = 0.0, None
    for step in count(1):
        seconds += step_seconds(step)
        ending = ending or budget.decide(step, seconds)
        if ending and step >= ending.last:
            return ending, seconds
    raise AssertionError


@pytest.mark.parametrize(
    "step_seconds",
    [
        lambda step: 0.5,
        lambda step: 0.5 + 3 * (step % 100 == 0),  # previews
        lambda step: 20.0 if step == 1 else 0.5,  # compilation
        lambda step: 0.5 if step < 900 else 0.8,  # another job arrives before the decision
        lambda step: 0.5 * (1 + 0.04 * (step > 1300)),  # and a little after it
    ],
)
def test_it_ends_within_3_percent_before_the_budget(step_seconds) -> None:
    ending, seconds = run(Budget(1000, 0.25, 10**9), step_seconds)
    assert 970 <= seconds <= 1000
    assert 0.2 * 1000 < seconds - sum(step_seconds(step) for step in range(1, int(ending.decay_from) + 1)) < 0.26 * 1000


def test_it_makes_no_more_steps_than_were_asked_for() -> None:
    ending, _ = run(Budget(1000, 0.25, 1600), lambda step: 0.5)
    assert ending == Ending(1200, 1600)  # the rate falls over its whole share also where time is left
    ending, _ = run(Budget(1000, 0.25, 100), lambda step: 0.5)
    assert ending == Ending(75, 100)
    ending, _ = run(Budget(1000, 0.25, 2000), lambda step: 0.64)
    assert ending == Ending(1149, 1539)  # time decides, though steps are left


def test_a_budget_smaller_than_a_step_ends_after_it() -> None:
    assert run(Budget(1, 0.25, 10), lambda step: 5.0) == (Ending(1, 1), 5.0)


def test_the_trainer_decides_saves_and_lets_the_rate_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock on which every step takes a second."""
    ticks = count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    settings = {"budget": "100s", "steps": 10**6, "optimizer": WSD, "checkpoint_every": 1000, "keep_last": 5}
    made = finish(trainer(tmp_path / "run", **settings))
    decided = int(AIM * 100 - 25) + 1
    assert made.ending == Ending(decided, decided + int(AIM * 100 - decided))
    assert made.step == made.ending.last == 98
    assert [f.name for f in sorted(made.rundir.checkpoints.iterdir())] == [f"step-{decided:08d}", "step-00000098"]
    rates = [line["train/learning_rate"] for line in made.rundir.metrics()]
    assert rates[3 : decided + 1] == pytest.approx([0.05] * (decided - 2))
    assert rates[decided:] == pytest.approx([0.05 * (98 - step) / (98 - decided) for step in range(decided, 98)])


def test_what_is_decided_stays_on_a_slower_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"budget": "100s", "steps": 10**6, "optimizer": WSD, "checkpoint_every": 1000, "keep_last": 5}
    for pace in (1, 3):
        ticks = count(0, pace)
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda ticks=ticks: next(ticks)))
        made = trainer(tmp_path / "run", **settings)
        with made.rundir:
            made.fit()
        assert made.step == 98
        for folder in made.rundir.checkpoints.glob("step-00000098"):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()  # as if killed after the decision
    assert made.seconds > 120


@pytest.mark.slow
def test_a_killed_run_with_a_budget_continues_bit_for_bit(script: Scripts, tmp_path: Path) -> None:
    """On a clock on which every step takes a second; killed before the decision, in its save, and after it."""

    def train(run: str, *faults: tuple[Any, ...]) -> Done:
        words = ("train.budget=12s", "train.steps=1000", "train.checkpoint_every=1000", "--run", tmp_path / run)
        return script.together("train", TINY, *words, faults=[[(even_clock,), *faults]])[0]

    assert train("whole").code == 0
    first, end = sorted((tmp_path / "whole" / "ckpt").iterdir())
    assert (first.name, end.name) == ("step-00000009", "step-00000011")
    assert checkpoint.load(first).state["ending"] == {"decay_from": 9.0, "last": 11}
    for place, nth in (("loss", 5), ("after_tensors", 1), ("loss", 20)):
        assert train("cut", (signal_at, place, nth, SIGKILL)).code == -SIGKILL
    assert train("cut").code == 0
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    done = train("whole")
    assert "is finished at step 11; to extend it" in done.out
    assert "train.budget= train.steps=22" in done.out

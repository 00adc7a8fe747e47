"""What an update does when it cannot be made as it was planned: no memory, no finite number, no range."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lab.data.loader import Batch, Loader
from lab.errors import NonFinite, Refused, WordbrushError
from lab.runtime import Runtime
from lab.training import checkpoint
from lab.training import update as module
from lab.training.config import TrainConfig
from lab.training.optimizer import OptimizerConfig
from lab.training.trainer import Trainer
from lab.training.update import Updater
from lab.world import World
from tests.lab.training.test_trainer import Line, Points, finish, trainer, weights

CPU = torch.device("cpu")


def newest(made: Trainer) -> checkpoint.Snapshot:
    folder = checkpoint.latest(made.rundir.checkpoints)
    assert folder is not None
    return checkpoint.load(folder)


def test_when_memory_runs_out_the_same_step_is_made_in_smaller_passes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = finish(trainer(tmp_path / "small", micro_batch=2))
    made = finish(trainer(tmp_path / "run", Line(most=3)))
    assert torch.equal(weights(made), weights(small))
    assert [line["train/loss"] for line in made.rundir.metrics()] == [
        line["train/loss"] for line in small.rundir.metrics()
    ]
    assert [record.getMessage().split("train.")[1] for record in caplog.records if "memory" in record.msg] == [
        "micro_batch=4, and so do those to come",
        "micro_batch=2, and so do those to come",
    ]
    assert "tried to allocate 1 GiB" in caplog.text


def test_a_run_goes_on_with_the_passes_that_fitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finish(trainer(tmp_path / "run", Line(most=3), steps=2))
    caplog.clear()
    more = finish(trainer(tmp_path / "run", Line(most=3), steps=4))
    assert more.updater.micro_batch == 2
    assert "memory" not in caplog.text


def test_a_sample_that_does_not_fit_alone_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", Line(most=0))
    with made.rundir, pytest.raises(WordbrushError, match=r"a single sample.*1 GiB.*runtime.recompute=true"):
        made.fit()


class Detached(Line):
    """A stage that has lost its gradient on the way."""

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses, metrics = super().loss(player, batch)
        return losses.detach(), metrics


def test_a_model_whose_loss_has_no_gradient_is_a_mistake(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", Detached())
    with made.rundir, pytest.raises(RuntimeError, match="does not require grad"):
        made.fit()


STEADY = OptimizerConfig(rate=0.05, warm_up=0, decay="none", weight_decay=0.0, clip=0)


def test_an_update_that_is_left_out_leaves_no_trace_but_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Line(spoilt=[19, 21])
    made = finish(trainer(tmp_path / "run", stage, on_nonfinite="skip", optimizer=STEADY, log_every=3))
    assert "step 3: the loss of 'model' is not finite for 19, 21" in caplog.text
    assert "left out (1 in a row)" in caplog.text
    assert [samples["slot"][0].item() for samples in stage.steps] == [0, 8, 24, 32, 40]
    first, second = made.rundir.metrics()
    assert (first["train/skipped"], "train/skipped" in second) == (1, False)
    assert first["train/slot"] == pytest.approx(sum(range(16)) / 16)
    assert (made.step, made.seen, made.updater.skipped) == (6, 48, 0)
    moments = made.updater.optimizers["model"][0].state[made.stage.players["model"].weight]
    assert moments["step"] == 5
    before = finish(trainer(tmp_path / "before", steps=2, optimizer=STEADY))
    at_three = trainer(tmp_path / "three", Line(spoilt=[19]), steps=3, on_nonfinite="skip", optimizer=STEADY)
    assert torch.equal(weights(finish(at_three)), weights(before))
    assert torch.equal(at_three.averages[0].module.weight, before.averages[0].module.weight)


def test_too_many_in_a_row_end_the_run_also_across_a_resume(tmp_path: Path) -> None:
    settings = {"on_nonfinite": "skip", "max_skipped": 2, "optimizer": STEADY}
    finish(trainer(tmp_path / "apart", Line(spoilt=[1, 17, 33]), **settings))
    finish(trainer(tmp_path / "run", Line(spoilt=[8, 16, 24]), steps=3, **settings))
    made = trainer(tmp_path / "run", Line(spoilt=[8, 16, 24]), **settings)
    with made.rundir, pytest.raises(NonFinite, match="step 4"):
        made.fit()


class Deep(Line):
    """A model of two layers, of which the first overflows on large points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.players = {"model": nn.Sequential(nn.Linear(3, 3), Overflowing(), nn.Linear(3, 1))}

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        said = self.players[player](batch.images.flatten(1) + torch.tensor(batch.slots)[:, None])[:, 0]
        return said.square(), {"slot": torch.tensor(batch.slots).float()}


class Overflowing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(dim=1, keepdim=True) > 10, math.inf, x)


def test_the_first_module_that_is_not_finite_is_named(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", Deep())
    with made.rundir, pytest.raises(NonFinite, match=r"of 'model' is not finite for .*\(first in 1\)"):
        made.fit()


class Steep(Line):
    """A loss of 0 with a slope that is not finite."""

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses, metrics = super().loss(player, batch)
        return (0 * losses).sqrt(), metrics


def test_a_gradient_that_alone_is_not_finite_is_named_by_its_parameter(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", Steep())
    message = r"step 1: the gradient of 'model' is not finite \(first in weight\), though the loss of every sample is"
    with made.rundir, pytest.raises(NonFinite, match=message):
        made.fit()


@pytest.fixture
def modest_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with a scale that points of size 1 do not overflow at."""
    monkeypatch.setattr(module, "SCALE", 2.0**8)


def updater(stage: Line, precision: str = "fp16", **settings: object) -> Updater:
    config = TrainConfig(**{"steps": 100, "batch": 8, "optimizer": STEADY} | settings)
    return Updater(stage, Loader(Points(), seed=1), Runtime(CPU, precision), config)


def batches(number: int) -> list[Batch]:
    return [Loader(Points(), seed=1).batch(range(8 * number, 8 * number + 8))]


@pytest.mark.usefixtures("modest_scale")
def test_the_losses_of_fp16_are_scaled_and_their_gradients_are_not() -> None:
    plain, scaled = Line(), Line()
    one, other = updater(plain, "fp32"), updater(scaled)
    assert (one.loss_scale, other.loss_scale) == (1, 2**8)
    for number in range(3):
        norms = [each("model", batches(number), number, 1.0).gradient_norm.item() for each in (one, other)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)  # fp16 rounds to 0.05 %
    assert torch.allclose(plain.players["model"].weight, scaled.players["model"].weight, atol=2e-3)


class Resting(Line):
    """A stage whose second player does not learn yet, as a critic before its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.players = {**self.players, "critic": nn.Linear(3, 1)}

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        losses, metrics = super().loss("model", batch)
        return losses.detach() if player == "critic" else losses, metrics


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_player_may_rest(precision: str) -> None:
    stage = Resting()
    before = stage.players["critic"].weight.clone()
    made = updater(stage, precision)("critic", batches(0), 0, 1.0)
    assert (made.made, made.gradient_norm.item()) == (True, 0.0)
    assert torch.equal(stage.players["critic"].weight, before)


@pytest.mark.usefixtures("modest_scale")
def test_an_overflow_of_fp16_halves_the_scale_and_changes_no_weight() -> None:
    stage = Line(spoilt=[3], spoilt_by=1e35)
    made = updater(stage)
    before = stage.players["model"].weight.clone()
    assert made("model", batches(0), 0, 1.0).made is False
    assert (made.loss_scale, made.skipped) == (2**7, 1)
    assert torch.equal(stage.players["model"].weight, before)
    assert not made.optimizers["model"][0].state
    fresh = updater(Line())
    fresh.load_state(made.state())
    assert (fresh.loss_scale, fresh.skipped) == (2**7, 1)
    assert made("model", batches(1), 1, 1.0).made is True
    assert made.skipped == 0


def test_fp16_that_overflows_for_ever_ends_the_run() -> None:
    made = updater(Line(spoilt=range(100), spoilt_by=1e37), max_skipped=3)
    for number in range(3):
        assert made("model", batches(number), number, 1.0).made is False
    with pytest.raises(NonFinite, match="step 4: the gradient"):
        made("model", batches(3), 3, 1.0)


@pytest.mark.usefixtures("modest_scale")
def test_the_scale_grows_after_many_good_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCALE_GROWS_AFTER", 2)
    made = updater(Line())
    for number in range(4):
        made("model", batches(number), number, 1.0)
    assert made.loss_scale == 2**10


class Counting(World):
    """A world that counts its exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[int] = []

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self.sums.append(len(tensors))


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_gradients_are_exchanged_once_per_update_whatever_the_micro_batches(micro_batch: int) -> None:
    world = Counting()
    config = TrainConfig(batch=8, micro_batch=micro_batch, optimizer=STEADY)
    made = Updater(Line(), Loader(Points(), seed=1), Runtime(CPU, world=world), config)
    for number in range(3):
        made("model", batches(number), number, 1.0)
    assert world.sums == [2, 2, 2]  # weight and bias


def test_every_process_needs_a_sample() -> None:
    runtime = Runtime(CPU, world=World(rank=0, size=9))
    with pytest.raises(Refused, match=r"train.batch=8 gives some of 9 processes no sample"):
        Updater(Line(), Loader(Points(), seed=1), runtime, TrainConfig(batch=8))


def test_a_run_whose_first_updates_were_left_out_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    settings = {"on_nonfinite": "skip", "optimizer": STEADY}
    whole = finish(trainer(tmp_path / "whole", Line(spoilt=[1, 9]), **settings))
    finish(trainer(tmp_path / "cut", Line(spoilt=[1, 9]), steps=2, **settings))
    assert torch.equal(weights(finish(trainer(tmp_path / "cut", Line(spoilt=[1, 9]), **settings))), weights(whole))

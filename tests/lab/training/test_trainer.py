"""The one loop, on the smallest stage there is: a line through points, and a second player that follows it."""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from lab.config import Config
from lab.data.loader import Batch, Loader
from lab.data.source import Sample
from lab.errors import NonFinite, Refused, StorageFailed
from lab.randomness import normal
from lab.rundir import RunDir
from lab.runtime import Runtime
from lab.training import checkpoint
from lab.training.config import TrainConfig
from lab.training.ema import Average
from lab.training.observer import Evaluator
from lab.training.optimizer import OptimizerConfig
from lab.training.trainer import Trainer

CPU = Runtime(torch.device("cpu"))
OPTIMIZER = OptimizerConfig(rate=0.05, warm_up=3, weight_decay=0.1, clip=0)
STEADY = OPTIMIZER.model_copy(update={"decay": "none"})  # whose rates do not depend on the length of the run


class Points:
    """Endless points."""

    fingerprint = "points"

    def sample(self, seed: int, slot: int) -> Sample:
        return Sample(normal(seed, "point", [slot], (3, 1, 1))[0], f"point {slot}", str(slot))

    def captions(self) -> Iterable[str]:
        return ["point"]


class Line:
    """A model that learns the mean of a point's coordinates and a critic, maybe, that learns to say the same.

    The loss of the spoilt slots is multiplied by ``spoilt_by``, and passes of more than ``most`` samples need more
    memory than there is.
    """

    def __init__(
        self, *, critic: bool = False, spoilt: Sequence[int] = (), spoilt_by: float = math.inf, most: int = 99
    ) -> None:
        torch.manual_seed(0)
        self.players: MutableMapping[str, nn.Module] = {"model": nn.Linear(3, 1)}
        if critic:
            self.players["critic"] = nn.Linear(3, 1)
        self.spoilt, self.spoilt_by, self.most = spoilt, spoilt_by, most
        self.memory: Mapping[str, Tensor] = {"slots": torch.zeros(6, dtype=torch.int64)}
        self.needs_whole_batch = False
        self.steps: list[Mapping[str, Tensor]] = []
        self.order: list[str] = []

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        self.order.append(player)
        points = batch.images.flatten(1)
        said = self.players[player](points)[:, 0]
        aim = points.mean(dim=1) if player == "model" else self.players["model"](points)[:, 0].detach()
        losses = (said - aim).square()
        if len(batch) > self.most:
            losses.sum().backward()  # half of the way back was made
            raise torch.OutOfMemoryError("tried to allocate 1 GiB\nand so on")
        losses = losses * torch.tensor([self.spoilt_by if slot in self.spoilt else 1.0 for slot in batch.slots])
        return losses, {"slot": torch.tensor([float(slot) for slot in batch.slots])}

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        self.steps.append(samples)
        self.memory["slots"].add_(samples["slot"][-6:].long())

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        torch.randn(5)  # a preview may draw random numbers
        assert not model.training
        return torch.zeros(len(captions), 3, 8, 8)

    def findings(self) -> Mapping[str, float]:
        return {}

    def charts(self) -> Mapping[str, Image.Image]:
        return {"line": Image.new("RGB", (4, 4))}


def trainer(
    path: Path,
    stage: Line | None = None,
    evaluators: Sequence[Evaluator] = (),
    runtime: Runtime = CPU,
    **settings: object,
) -> Trainer:
    """A trainer in a run directory, made or opened."""
    config = TrainConfig(
        **{"steps": 6, "batch": 8, "log_every": 1, "preview_every": 0, "checkpoint_every": 2, "optimizer": OPTIMIZER}
        | settings
    )
    rundir = RunDir.open(path) if RunDir.is_run(path) else RunDir.create(path, Config())
    return Trainer(stage or Line(), Loader(Points(), seed=1), runtime, rundir, config, evaluators=evaluators)


def previews(made: Trainer) -> list[str]:
    return sorted(path.name for path in (made.rundir.path / "previews").iterdir())


def weights(made: Trainer, player: str = "model") -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in made.stage.players[player].parameters()])


def finish(made: Trainer) -> Trainer:
    with made.rundir:
        assert made.fit() == 0
    return made


@pytest.mark.parametrize("micro_batch", [0, 8, 3])
def test_a_fit_is_adamw_on_the_mean_loss_at_the_rate_of_the_step(tmp_path: Path, micro_batch: int) -> None:
    made = finish(trainer(tmp_path / "run", micro_batch=micro_batch))
    line, loader = Line().players["model"], Loader(Points(), seed=1)
    decayed = [{"params": [line.weight], "weight_decay": 0.1}, {"params": [line.bias], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(decayed, betas=OPTIMIZER.betas)
    average = Average(line, 0.05)
    for step in range(6):
        points = loader.batch(range(8 * step, 8 * step + 8)).images.flatten(1)
        for group in adamw.param_groups:
            group["lr"] = OPTIMIZER.rate * OPTIMIZER.factor_at(step, OPTIMIZER.ending(6))
        adamw.zero_grad()
        (line(points)[:, 0] - points.mean(dim=1)).square().mean().backward()
        adamw.step()
        average.update(line, step + 1)
    torch.testing.assert_close(weights(made), torch.cat([line.weight.flatten(), line.bias]))
    torch.testing.assert_close(made.averages[0].module.state_dict(), average.module.state_dict())


def test_it_writes_means_over_samples_and_steps(tmp_path: Path) -> None:
    made = finish(trainer(tmp_path / "run", micro_batch=3, log_every=4))
    first, second = made.rundir.metrics()
    assert [(line["step"], line["seen"]) for line in (first, second)] == [(4, 32), (6, 48)]
    assert first["train/slot"] == pytest.approx(sum(range(32)) / 32)
    assert second["train/slot"] == pytest.approx(sum(range(32, 48)) / 16)
    assert first["train/learning_rate"] == pytest.approx(
        sum(OPTIMIZER.rate * OPTIMIZER.factor_at(step, OPTIMIZER.ending(6)) for step in range(4)) / 4
    )
    assert {"train/loss", "train/gradient_norm", "time/images_per_second", "time/data_wait_share"} <= first.keys()


def test_players_are_updated_in_turn_and_only_the_model_is_averaged(tmp_path: Path) -> None:
    stage = Line(critic=True)
    before = stage.players["critic"].weight.clone()
    made = finish(trainer(tmp_path / "run", stage, steps=2, micro_batch=4))
    assert stage.order == ["model", "model", "critic", "critic"] * 2
    assert not torch.equal(before, stage.players["critic"].weight)
    assert made.averages[0].module.weight.shape == stage.players["model"].weight.shape
    lines = list(made.rundir.metrics())
    assert {"train/loss", "train/critic/loss", "train/critic/gradient_norm"} <= lines[0].keys()
    newest = checkpoint.latest(made.rundir.checkpoints)
    assert newest is not None
    names = checkpoint.load(newest).tensors
    assert sorted(names["model"]) == ["critic.bias", "critic.weight", "model.bias", "model.weight"]
    assert {"model.weight.exp_avg", "critic.bias.exp_avg_sq"} <= names["optim"].keys()


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_the_stage_hears_of_each_step_once_with_all_its_samples_in_order(tmp_path: Path, micro_batch: int) -> None:
    stage = Line(critic=True)
    finish(trainer(tmp_path / "run", stage, steps=3, micro_batch=micro_batch))
    for step, samples in enumerate(stage.steps):
        assert list(samples) == ["loss", "slot", "critic/loss", "critic/slot"]
        assert samples["slot"].tolist() == samples["critic/slot"].tolist() == list(range(8 * step, 8 * step + 8))
        assert {values.shape for values in samples.values()} == {(8,)}
        assert not any(values.requires_grad for values in samples.values())
    assert len(stage.steps) == 3
    line = Line(critic=True).players["model"]  # as it was at the first step
    points = Loader(Points(), seed=1).batch(range(8)).images.flatten(1)
    torch.testing.assert_close(stage.steps[0]["loss"], (line(points)[:, 0] - points.mean(dim=1)).square().detach())


def test_what_a_stage_remembers_is_saved_and_restored(tmp_path: Path) -> None:
    whole = finish(trainer(tmp_path / "whole"))
    finish(trainer(tmp_path / "cut", steps=2))
    assert torch.equal(finish(trainer(tmp_path / "cut")).stage.memory["slots"], whole.stage.memory["slots"])
    newest = checkpoint.latest(whole.rundir.checkpoints)
    assert newest is not None
    assert torch.equal(checkpoint.load(newest).tensors["memory"]["slots"], whole.stage.memory["slots"])
    assert whole.stage.memory["slots"][0] == sum(8 * step + 2 for step in range(6))


class Wavering:
    """An evaluator whose figures go up and down, and one of which is not always a number."""

    every_steps = 2

    def __init__(self) -> None:
        self.accuracies = iter([0.2, 0.7, 0.1, 0.6])

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        accuracy = next(self.accuracies)
        return {"accuracy": accuracy, "distance": accuracy if accuracy > 0.1 else math.nan}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [8, 9]),
        ({"keep_every": 3}, [3, 6, 8, 9]),
        ({"keep_best": "accuracy"}, [4, 8, 9]),
        ({"keep_best": "-accuracy"}, [6, 8, 9]),
        ({"keep_best": "-distance"}, [2, 8, 9]),
        ({"keep_best": "accuracy", "keep_last": 3, "keep_every": 5}, [4, 5, 7, 8, 9]),
    ],
)
def test_the_checkpoints_that_were_asked_for_stay(
    tmp_path: Path, settings: dict[str, object], kept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    made = finish(trainer(tmp_path / "run", steps=9, checkpoint_every=1, evaluators=[Wavering()], **settings))
    assert sorted(folder.name for folder in made.rundir.checkpoints.iterdir()) == [f"step-{n:08d}" for n in kept]
    manifest = json.loads((made.rundir.checkpoints / "step-00000008" / "MANIFEST.json").read_text())
    assert (manifest["run_id"], manifest["figures"]) == (made.rundir.run_id, {"accuracy": 0.6, "distance": 0.6})
    assert "keep_best" not in caplog.text


def test_a_figure_that_nobody_measures_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finish(trainer(tmp_path / "run", steps=3, checkpoint_every=1, evaluators=[Wavering()], keep_best="-acuracy"))
    assert caplog.messages == ["train.keep_best=-acuracy is not among what was measured: accuracy, distance"]


def test_a_run_goes_on_from_its_own_checkpoints_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = finish(trainer(tmp_path / "other", steps=4))
    made = finish(trainer(tmp_path / "run", steps=2))
    name = "step-00000004"
    foreign = Path(shutil.copytree(other.rundir.checkpoints / name, made.rundir.checkpoints / name))
    before = {path: path.read_bytes() for path in foreign.iterdir()}
    again = trainer(tmp_path / "run", steps=3)
    finish(again)
    assert f"{name} is skipped: it is of run {other.rundir.run_id}" in caplog.text
    assert {path: path.read_bytes() for path in foreign.iterdir()} == before
    status = again.rundir.status()
    assert status is not None
    assert (status.step, status.checkpoint) == (3, "step-00000003")


def test_a_run_that_cannot_save_does_not_begin(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    made.rundir.checkpoints.touch()
    with made.rundir, pytest.raises(StorageFailed, match="no checkpoint can be written"):
        made.fit()
    assert made.step == 0


def test_charts_are_drawn_when_a_run_begins_and_not_when_it_goes_on(tmp_path: Path) -> None:
    made = finish(trainer(tmp_path / "run", steps=2))
    assert previews(made) == ["line-00000000.png"]
    (tmp_path / "run" / "previews" / "line-00000000.png").unlink()
    assert previews(finish(trainer(tmp_path / "run", steps=4))) == []


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    good = finish(trainer(tmp_path / "good", steps=2, optimizer=STEADY))
    made = trainer(tmp_path / "run", Line(spoilt=[19]), optimizer=STEADY, checkpoint_every=100)
    message = r"step 3: the loss of 'model' is not finite for 19 \(first in the loss itself\).*rate.* from step 2$"
    with made.rundir, pytest.raises(NonFinite, match=message):
        made.fit()
    assert made.step == 2
    assert torch.equal(weights(made), weights(good))
    newest = checkpoint.latest(made.rundir.checkpoints)
    assert newest is not None
    assert newest.name == "step-00000002"  # the last good state, though no checkpoint was due
    assert checkpoint.identity(newest) == checkpoint.identity(good.rundir.checkpoints / newest.name)


def test_what_was_measured_reaches_the_disk_before_the_checkpoint_that_promises_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts: list[str] = []
    log, flush, save = RunDir.log, RunDir.flush, checkpoint.save
    monkeypatch.setattr(RunDir, "log", lambda run, *given: (acts.append("log"), log(run, *given))[1])
    monkeypatch.setattr(RunDir, "flush", lambda run: (acts.append("flush"), flush(run))[1])
    monkeypatch.setattr(checkpoint, "save", lambda *given: (acts.append("save"), save(*given))[1])
    finish(trainer(tmp_path / "run", steps=2))
    assert [act for act in acts if act != "flush"] == ["log", "log", "save"]
    assert acts[acts.index("save") - 1] == "flush"


def broken_saves(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> list[int]:
    """Let the saves of some steps fail; gives the steps of all that were tried."""
    save, tried = checkpoint.save, []

    def sometimes(root: Path, snapshot: checkpoint.Snapshot, *more: object) -> Path:
        tried.append(snapshot.state["step"])
        if tried[-1] in broken:
            raise StorageFailed("the disk is full")
        return save(root, snapshot, *more)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    return tried


def test_a_failed_save_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = broken_saves(monkeypatch, {2, 4, 8, 10})
    finish(trainer(tmp_path / "run", steps=12))
    assert tried == [2, 4, 6, 8, 10, 12]
    assert caplog.text.count("the next try is in 2 steps") == 4


@pytest.mark.parametrize(("broken", "reached"), [({2, 4, 6}, 6), ({12}, 12)], ids=["three in a row", "the last"])
def test_failed_saves_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: set[int], reached: int
) -> None:
    broken_saves(monkeypatch, broken)
    made = trainer(tmp_path / "run", steps=12)
    with made.rundir, pytest.raises(StorageFailed, match="the disk is full"):
        made.fit()
    status = made.rundir.status()
    assert status is not None
    assert (made.step, status.state, status.reason) == (reached, "failed", "StorageFailed: the disk is full")


def test_a_state_is_taken_over_whole_or_not_at_all(tmp_path: Path) -> None:
    saved = finish(trainer(tmp_path / "run")).state()
    fresh = trainer(tmp_path / "fresh")
    with fresh.rundir:
        for stem in ("model", "optim"):
            for name in saved.tensors[stem]:
                lacking = {**saved.tensors, stem: {k: v for k, v in saved.tensors[stem].items() if k != name}}
                with pytest.raises(Refused, match="does not fit this configuration"):
                    fresh.load_state(checkpoint.Snapshot(lacking, saved.state))
        without_average = {stem: tensors for stem, tensors in saved.tensors.items() if not stem.startswith("ema")}
        with pytest.raises(Refused, match=r"ema_0\.050"):
            fresh.load_state(checkpoint.Snapshot(without_average, saved.state))
        for memory in ({}, {"slots": torch.zeros(1).long()}, {**saved.tensors["memory"], "more": torch.zeros(1)}):
            with pytest.raises(Refused, match="the stage remembers"):
                fresh.load_state(checkpoint.Snapshot({**saved.tensors, "memory": memory}, saved.state))
        left_over = {**saved.tensors, "optim": {**saved.tensors["optim"], "model.more.exp_avg": torch.zeros(1)}}
        with pytest.raises(Refused, match=r"model\.more\.exp_avg belongs to nothing"):
            fresh.load_state(checkpoint.Snapshot(left_over, saved.state))
        fresh.load_state(saved)
        assert (fresh.step, fresh.seen) == (6, 48)
        assert checkpoint.Snapshot(fresh.state().tensors, {}).tensors.keys() == saved.tensors.keys()


def test_a_run_keeps_its_batch_size(tmp_path: Path) -> None:
    saved = finish(trainer(tmp_path / "run")).state()
    other = trainer(tmp_path / "other", batch=16)
    with (
        other.rundir,
        pytest.raises(
            Refused, match=r"train.batch=16, but the checkpoint was trained with 8: keep the batch \(train.micro_batch"
        ),
    ):
        other.load_state(saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 4, "micro_batch": 5}, "micro_batch 5 is larger than batch 4"),
        ({"ema": (0.05, 0.0501)}, "different lengths"),
        ({"ema": ()}, "one or more"),
        ({"ema": (0.3,)}, "from 0.001 to 0.28"),
        ({"keep_last": 1}, "greater than or equal to 2"),
        ({"keep_every": 750, "checkpoint_every": 500}, "keep_every 750 is no multiple of checkpoint_every 500"),
        ({"snapshots": 3}, r"snapshots need averages of two lengths, got ema \[0.05\]: set ema to \[0.05, 0.1\]"),
        ({"snapshots": 3, "steps": 2, "ema": (0.05, 0.1)}, "snapshots 3 is more than steps 2"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "sizes"), [(8, 0, [8]), (8, 4, [4, 4]), (8, 3, [3, 3, 2]), (8, 8, [8]), (1, 1, [1])]
)
def test_windows(batch: int, micro_batch: int, sizes: list[int]) -> None:
    assert TrainConfig(batch=batch, micro_batch=micro_batch).windows() == sizes


@pytest.mark.slow
def test_compiling_changes_no_key_of_a_checkpoint(tmp_path: Path) -> None:
    """A compiled run goes on with what a plain one saved, and the other way round."""
    plain, compiled = (Runtime(torch.device("cpu"), compile=each) for each in (False, True))
    whole = finish(trainer(tmp_path / "whole"))
    for name, runtimes in (("to", (plain, compiled)), ("fro", (compiled, plain))):
        for steps, runtime in zip((2, 6), runtimes, strict=True):
            made = finish(trainer(tmp_path / name, steps=steps, runtime=runtime, optimizer=STEADY))
        assert made.state().tensors["model"].keys() == whole.state().tensors["model"].keys()
        reference = finish(trainer(tmp_path / f"{name}-reference", optimizer=STEADY))
        torch.testing.assert_close(weights(made), weights(reference))


def test_the_last_good_state_keeps_the_figures_that_it_was_saved_with(tmp_path: Path) -> None:
    """The step after a checkpoint cannot be made: writing that checkpoint again would lose what was measured."""
    made = trainer(tmp_path / "run", Line(spoilt=[17]), evaluators=[Wavering()], checkpoint_every=2)
    with made.rundir, pytest.raises(NonFinite, match=r"from step 2$"):
        made.fit()
    manifest = json.loads((made.rundir.checkpoints / "step-00000002" / "MANIFEST.json").read_text())
    assert manifest["figures"].keys() == {"accuracy", "distance"}

"""The loss of a scorer against open_clip's, and what needs the whole step."""

import math
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor

from lab.data.loader import Batch, Loader
from lab.data.shapes import Shapes
from lab.errors import OutOfMemory, Refused
from lab.runtime import CPU, Runtime
from lab.scorer.stage import Contrast, ScorerStage, Step, contrast
from lab.training.config import TrainConfig
from lab.training.update import Updater
from lab.world import World
from scripts.assembly import assemble, experiments
from tests.faults import TINY_SCORER, Scripts

MEANINGS = torch.tensor([4, 9, 2, 9, 7])  # the second and the fourth say the same


def directions(seed: int, n: int = 5, width: int = 6) -> Tensor:
    made = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(made, dim=1).requires_grad_()


SCALE = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)


def compared(
    images: Tensor, texts: Tensor, meanings: Tensor, own: range | None = None, near: Tensor | None = None
) -> Contrast:
    own = own or range(len(images))
    near = images.new_zeros(len(own), 0, images.shape[1]) if near is None else near
    return contrast(Step(images, texts, meanings, own, near), SCALE)


def test_without_twins_it_is_the_loss_of_open_clip() -> None:
    images, texts = directions(0), directions(1)
    found = compared(images, texts, torch.arange(5)).losses.mean()
    theirs = ClipLoss()(images, texts, SCALE)
    torch.testing.assert_close(found, theirs)
    gradients = torch.autograd.grad(found, (images, texts, SCALE))
    for own, other in zip(gradients, torch.autograd.grad(theirs, (images, texts, SCALE)), strict=True):
        torch.testing.assert_close(own, other)


def test_texts_that_say_the_same_are_not_held_against_each_other() -> None:
    images, texts = directions(0), directions(1)
    losses = compared(images, texts, MEANINGS).losses
    without = [0, 1, 2, 4]
    expected = compared(images[without], texts[without], torch.arange(4)).losses
    torch.testing.assert_close(losses[1], expected[1])
    (to_twin,) = torch.autograd.grad(losses[1], texts, retain_graph=True)
    assert not to_twin[3].any()
    assert to_twin[2].any()
    assert all(each.isfinite() for each in torch.autograd.grad(losses.sum(), SCALE, retain_graph=True))
    assert (losses[[0, 2, 4]] > expected[[0, 2, 3]]).all()  # two that say the same are two wrong answers to the others


def test_a_near_miss_is_one_more_wrong_text_for_its_own_picture() -> None:
    images, texts, near = directions(0), directions(1), directions(2, 10)
    losses = compared(images, texts, torch.arange(5), near=near.unflatten(0, (5, 2))).losses
    plain = compared(images, texts, torch.arange(5)).losses
    scores = 9.0 * torch.cat([images @ texts.T, (images[:, None] * near.unflatten(0, (5, 2))).sum(-1)], dim=1)
    to_text = scores.logsumexp(dim=1) - scores.diagonal()
    torch.testing.assert_close(losses, plain + to_text / 2 - (scores[:, :5].logsumexp(1) - scores.diagonal()) / 2)
    (to_near,) = torch.autograd.grad(losses[3], near)
    assert to_near.any(dim=1).tolist() == [False] * 6 + [True] * 2 + [False] * 2


def test_the_shares_of_a_step_are_the_step() -> None:
    images, texts = directions(0), directions(1)
    whole = compared(images, texts, MEANINGS)
    parts = [compared(images, texts, MEANINGS, own) for own in (range(2), range(2, 5))]
    for name in ("losses", "finds_text", "finds_image"):
        torch.testing.assert_close(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_what_is_found_is_what_scores_highest() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    swapped = compared(eye, eye[[1, 0, 2, 3]], torch.arange(4))
    assert swapped.finds_text.tolist() == swapped.finds_image.tolist() == [0, 0, 1, 1]
    assert swapped.losses[0] > swapped.losses[2]
    near = torch.stack([eye, eye], dim=1) * 2.0
    assert compared(eye, eye, torch.arange(4), near=near).finds_text.tolist() == [0] * 4


@pytest.fixture
def stage() -> ScorerStage:
    experiment = assemble.complete(experiments.load(TINY_SCORER, []))
    made = assemble.stage(experiment, CPU)
    assert isinstance(made, ScorerStage)
    return made


@pytest.fixture
def batch() -> Batch:
    return Loader(Shapes(experiments.load(TINY_SCORER, []).data), 7).batch(range(6))  # type: ignore[arg-type]


def test_the_stage_compares_every_sample_with_every_other(stage: ScorerStage, batch: Batch) -> None:
    stage.config = stage.config.model_copy(update={"near_misses": 0})
    losses, told = stage.loss("model", batch)
    assert losses.shape == (6,)
    assert told["scale"].tolist() == pytest.approx([1 / 0.07] * 6)
    model = stage.players["model"]
    *directions, scale = model(batch.images, stage._prepare(batch.captions))
    expected = ClipLoss()(*directions, scale)
    torch.testing.assert_close(losses.mean(), expected)  # six captions, six meanings
    torch.testing.assert_close(directions[0].norm(dim=1), torch.ones(6))
    alone, _ = stage.loss("model", batch.split(1)[0])
    assert alone.item() == 0  # nothing to be told from: passes of the step would not add up to it


def test_near_misses_are_drawn_by_slot(stage: ScorerStage, batch: Batch) -> None:
    stage.config = stage.config.model_copy(update={"near_misses": 3})
    near = stage._near(batch)
    assert len(near) == 18
    assert not set(near) & set(batch.captions)
    assert stage._near(batch.split(4)[1]) == near[12:]
    assert stage.loss("model", batch)[0].shape == (6,)
    alone, _ = stage.loss("model", batch.split(1)[0])
    assert alone.item() > 0


def test_the_scale_of_the_cosines_is_limited_as_in_clip(stage: ScorerStage) -> None:
    scale = stage.players["model"].get_parameter("log_scale")
    with torch.no_grad():
        scale.fill_(9.0)
    stage.after_step({})
    assert scale.item() == pytest.approx(math.log(100))


def test_a_preview_shows_the_picture_that_fits_best(stage: ScorerStage, batch: Batch, monkeypatch) -> None:
    order = [3, 0, 5, 1, 2, 4]
    model = stage.players["model"]
    monkeypatch.setattr(stage, "originals", lambda num: batch.images[:num])
    monkeypatch.setattr(type(model), "of_images", lambda *_: torch.eye(6))
    monkeypatch.setattr(type(model), "of_texts", lambda *_: torch.eye(6)[order])
    assert torch.equal(stage.preview(model, batch.captions), batch.images[order])


def updater(stage: ScorerStage, **settings: int) -> Updater:
    world = World(0, settings.pop("processes", 1))
    loader = Loader(Shapes(experiments.load(TINY_SCORER, []).data), 7)  # type: ignore[arg-type]
    return Updater(stage, loader, Runtime(torch.device("cpu"), world=world), TrainConfig(**settings))


def test_a_step_in_several_passes_is_refused_by_name(stage: ScorerStage) -> None:
    with pytest.raises(Refused, match=r"train.micro_batch=4 makes a step in 2 passes.*set train.micro_batch=0"):
        updater(stage, batch=6, micro_batch=4)
    updater(stage, batch=6, micro_batch=6)
    updater(stage, batch=7, micro_batch=4, processes=2)  # 3 and 4: one pass each
    with pytest.raises(Refused, match=r"train.micro_batch=3 makes a step in 2 passes"):
        updater(stage, batch=7, micro_batch=3, processes=2)


def test_when_memory_runs_out_no_step_is_made_in_smaller_passes(stage: ScorerStage, batch: Batch, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 1 GiB")

    made = updater(stage, batch=6)
    monkeypatch.setattr(stage, "loss", full)
    with pytest.raises(OutOfMemory, match=r"tried to allocate 1 GiB.*lower train.batch"):
        made("model", [batch], 0, 1.0)


def test_a_run_that_was_refused_begins_as_the_line_says(script: Scripts, tmp_path: Path) -> None:
    done = script("train", TINY_SCORER, "train.micro_batch=2", "--run", tmp_path / "run")
    assert (done.code, done.out) == (2, "")
    assert "train.micro_batch=2 makes a step in 4 passes" in done.err.splitlines()[-1]
    words = ("train.micro_batch=0", "train.steps=1")
    assert script("train", TINY_SCORER, *words, "--run", tmp_path / "run").code == 0

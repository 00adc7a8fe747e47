"""The cascade as a stage: what a sample's loss is made of, and that a step does not depend on how it is divided."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.parameterization import X0
from diffusion.times import LossSecondMomentTimes
from lab.config import Config
from lab.data.loader import Batch, Loader
from lab.data.shapes import Shapes, ShapesConfig
from lab.randomness import key, normal, uniform
from lab.resampling import bicubic
from lab.rundir import RunDir
from lab.runtime import CPU
from lab.text.clip import ClipConfig, vocabulary
from lab.training.config import TrainConfig
from lab.training.optimizer import OptimizerConfig
from lab.training.trainer import Trainer
from superres.cascade import Cascade
from superres.cascade_stage import CascadeConfig, CascadeStage, build
from superres.degrade import Bicubic, Blind, degrade
from tests.stages import InDouble, trained
from tests.superres.conftest import wake
from tests.superres.test_cascade import NETWORK, QUICK, exact

SHAPES = Shapes(ShapesConfig(size=32))
TEXT = ClipConfig(width=16, heads=2, layers=1, context=24, vocabulary=vocabulary(SHAPES.captions()))


def stage(**changes: object) -> CascadeStage:
    """A small stage in float64."""
    told = {"factor": 2, "unet": NETWORK, "degradation": Blind(), "crop": 16, "sampling": QUICK, **changes}
    config = CascadeConfig.model_validate(told)
    loader = InDouble(SHAPES, seed=3)
    return CascadeStage(config, build(config, TEXT, 5).double(), 5, lambda num: loader.batch(range(num)).images, CPU)


@pytest.mark.parametrize("changes", [{}, {"times": LossSecondMomentTimes()}], ids=["plain", "table"])
def test_every_division_of_a_step_makes_the_same_step(tmp_path: Path, changes: dict[str, object]) -> None:
    ends = []
    for micro_batch in (8, 4, 3):
        made = stage(**changes)
        trained(tmp_path / str(micro_batch), made, SHAPES, micro_batch)
        ends.append((made.players["model"].state_dict(), dict(made.memory)))
    name = "denoiser.network.unet.stem.weight"
    assert not torch.equal(ends[0][0][name], stage().players["model"].state_dict()[name])
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-10)


def test_a_loss_is_that_of_part_small_picture_grain_time_and_noise_of_a_slot() -> None:
    made, batch = stage(grain=0.2, caption_drop=0.5), InDouble(SHAPES, seed=3).batch([5, 9, 12])
    model = made.players["model"]
    assert isinstance(model, Cascade)
    wake(model)
    losses, metrics = made.loss("model", batch)
    for k, slot in enumerate(batch.slots):
        down, right = key(3, "crop", slot).random(2)
        top, left = int(down * 17), int(right * 17)
        large = batch.images[k : k + 1, :, top : top + 16, left : left + 16]
        small = degrade(large, 2, Blind(), 3, [slot])
        grain = 0.2 * uniform(3, "grain strength", [slot]).double()
        shown = model.scale.show(small, normal(3, "grain", [slot], (3, 8, 8)).double(), grain)
        x0, noise = model.scale.details(large, shown), normal(3, "noise", [slot], (3, 16, 16)).double()
        t = 1 - uniform(3, "t", [slot]).double()
        alpha, sigma = made.config.schedule(t)
        caption = "" if uniform(3, "caption_drop", [slot]) < 0.5 else batch.captions[k]
        x0_hat = model.of(shown)(alpha * x0 + sigma * noise, t, model.encode([caption]))
        torch.testing.assert_close(losses[k], (x0_hat - x0).square().mean() / sigma[0] ** 2)
        missing = large - bicubic(small, (16, 16))
        torch.testing.assert_close(metrics["detail"][k], missing.square().mean().sqrt())


def test_the_loss_of_an_exact_network_is_what_a_small_picture_leaves_open() -> None:
    """On normal pictures: v is off by tr(C (alpha^2 C + sigma^2)^-1) per pixel, C the covariance of details left."""
    world, model = exact()
    config = CascadeConfig(factor=2, unet=NETWORK, detail=world.scale.detail, grain=0.2, caption_drop=1.0)
    num = 1500
    slots = tuple(range(num))
    batch = Batch(world.draw(num), ("",) * num, slots, ("",) * num, seed=0)
    made = CascadeStage(config, model, 0, torch.zeros, CPU)
    losses, _ = made.loss("model", batch)
    grain = 0.2 * uniform(0, "grain strength", slots).double()
    alpha, sigma = (level[:, None, None] for level in config.schedule(1 - uniform(0, "t", slots).double()))
    _, left = world.posterior(grain)
    left = left / (world.scale.detail**2 + grain[:, None, None] ** 2)
    expected = torch.linalg.solve(alpha**2 * left + sigma**2 * torch.eye(16), left).diagonal(dim1=1, dim2=2).mean(dim=1)
    off = losses - expected
    assert off.mean().abs() < 4 * off.std() / num**0.5
    assert off.std() / num**0.5 < 0.01 * expected.mean()


def test_a_network_that_ignores_the_grain_does_worse() -> None:
    """The negative control of the one above: its loss is far from what is possible."""
    world, model = exact()
    config = CascadeConfig(factor=2, unet=NETWORK, detail=world.scale.detail, grain=0.2, caption_drop=1.0)
    batch = Batch(world.draw(500), ("",) * 500, tuple(range(500)), ("",) * 500, seed=0)
    best = CascadeStage(config, model, 0, torch.zeros, CPU).loss("model", batch)[0].mean()
    honest = world.posterior
    world.posterior = lambda grain: honest(torch.zeros_like(grain))  # type: ignore[method-assign]
    assert CascadeStage(config, model, 0, torch.zeros, CPU).loss("model", batch)[0].mean() > 1.2 * best


def test_a_preview_is_bicubic_result_and_original() -> None:
    made = stage(crop=0, degradation=Bicubic())
    images = Loader(SHAPES, seed=3).batch(range(2)).images
    made.originals = lambda num: images[:num]
    model = made.players["model"].float().eval()
    shown = made.preview(model, ["a red circle", "a blue ring"])
    enlarged, result, original = shown.chunk(3, dim=-1)
    assert torch.equal(original, images)
    small = degrade(images, 2, Bicubic(), 5, range(2))
    torch.testing.assert_close(enlarged, bicubic(small, (32, 32)))
    assert 0.05 < (result - enlarged).std() < 0.2  # at birth noise of the details' size
    assert torch.equal(made.preview(model, ["a red circle", "a blue ring"]), shown)
    assert made.findings() == {"alpha_at_1": pytest.approx(0, abs=1e-4), "caption_drop": 0.1, "factor": 2.0}


def test_charts_say_what_the_loss_weighs() -> None:
    assert stage().charts().keys() == {"effective_weight"}


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """More than that most details are nothing: 0.54 of the loss at birth is left; without a rate all of it."""
    config = CascadeConfig(factor=2, unet=NETWORK, detail=0.1, crop=16, caption_drop=1.0, parameterization=X0())
    made = CascadeStage(config, build(config, TEXT, 0), 0, torch.zeros, CPU)
    told = TrainConfig(
        steps=240, batch=8, preview_every=0, checkpoint_every=999, log_every=240, ema=(0.05,),
        optimizer=OptimizerConfig(matrices="muon", matrix_rate=0.01, rate=0.01, warm_up=5),
    )  # fmt: skip
    batch = Loader(SHAPES, seed=0).batch(range(4000, 4064))
    before = made.loss("model", batch)[0].mean()
    with RunDir.create(tmp_path / "run", Config()) as rundir:
        assert Trainer(made, Loader(SHAPES, seed=0), CPU, rundir, told).fit() == 0
    after: Tensor = made.loss("model", batch)[0].mean()
    assert after < 0.7 * before

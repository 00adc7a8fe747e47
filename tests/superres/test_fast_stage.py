"""The fast decoder and its critic as a stage: who changes what; a step does not depend on how it is divided."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from lab.config import Config
from lab.data.loader import Loader
from lab.data.shapes import Shapes, ShapesConfig
from lab.evaluation import perceptual
from lab.evaluation.perceptual import Lite0
from lab.randomness import key
from lab.resampling import bicubic
from lab.rundir import RunDir
from lab.runtime import CPU
from lab.training.config import TrainConfig
from lab.training.optimizer import OptimizerConfig
from lab.training.trainer import Trainer
from superres.degrade import Blind, degrade
from superres.fast import FastConfig
from superres.fast_stage import FastStage, FastStageConfig
from tests.stages import InDouble, trained
from vae.codec import Pixels
from vae.critic import CriticConfig
from vae.loss import LossConfig

SHAPES = Shapes(ShapesConfig(size=32))
CRITIC = CriticConfig(width=8, depth=1, start_step=1, lecam=0.1, r1=0.1)


def stage(critic: CriticConfig | None = CRITIC, **changes: object) -> FastStage:
    """A small stage in float64."""
    config = FastStageConfig(
        **{"decoder": FastConfig(factor=2, width=8, depth=1), "degradation": Blind(), "crop": 16, **changes},
        critic=critic,
    )
    network = perceptual.build(config.loss.perceptual).double() if config.loss.perceptual else None
    loader = InDouble(SHAPES, seed=3)
    made = FastStage(config, 5, network, lambda num: loader.batch(range(num)).images, CPU, Pixels())
    for player in made.players.values():
        player.double()
    return made


def test_every_division_of_a_step_makes_the_same_step(tmp_path: Path) -> None:
    ends = []
    for micro_batch in (8, 4, 3):
        made = stage(loss=LossConfig(perceptual=Lite0(weight=0.5)))
        trained(tmp_path / str(micro_batch), made, SHAPES, micro_batch)
        assert made.contest.weight > 0
        ends.append(({name: player.state_dict() for name, player in made.players.items()}, dict(made.memory)))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-10)


def test_each_player_s_update_changes_its_own_parameters_alone(tmp_path: Path) -> None:
    made = stage(critic=CRITIC.model_copy(update={"start_step": 0}))
    trainer = trained(tmp_path, made, SHAPES, steps=2)
    batch = InDouble(SHAPES, seed=3).batch(range(16, 24))
    for name, other in (("model", "critic"), ("critic", "model")):
        before = {name: [p.detach().clone() for p in player.parameters()] for name, player in made.players.items()}
        trainer.updater(name, [batch], step=2, factor=1.0)
        after = {name: list(player.parameters()) for name, player in made.players.items()}
        assert all(torch.equal(*pair) for pair in zip(before[other], after[other], strict=True))
        assert not any(torch.equal(*pair) for pair in zip(before[name], after[name], strict=True))
    assert trainer.updater.optimizers.keys() == {"model", "critic"}


def test_before_its_first_step_the_critic_rests_and_is_not_heard(tmp_path: Path) -> None:
    made, alone = stage(critic=CRITIC.model_copy(update={"start_step": 2})), stage(critic=None)
    at_birth = [p.detach().clone() for p in made.players["critic"].parameters()]
    trained(tmp_path / "late", made, SHAPES, steps=2)
    trained(tmp_path / "alone", alone, SHAPES, steps=2)
    assert all(torch.equal(*pair) for pair in zip(at_birth, made.players["critic"].parameters(), strict=True))
    torch.testing.assert_close(made.players["model"].state_dict(), alone.players["model"].state_dict(), rtol=0, atol=0)
    trained(tmp_path / "on", made, SHAPES, steps=2)
    assert made.memory["step"].item() == 4
    assert not torch.equal(at_birth[0], next(made.players["critic"].parameters()))


def test_the_loss_is_of_the_part_and_the_small_picture_of_a_slot() -> None:
    made, batch = stage(critic=None), InDouble(SHAPES, seed=3).batch([5, 9])
    losses, metrics = made.loss("model", batch)
    for k, slot in enumerate(batch.slots):
        down, right = key(3, "crop", slot).random(2)
        top, left = int(down * 17), int(right * 17)
        large = batch.images[k : k + 1, :, top : top + 16, left : left + 16]
        small = degrade(large, 2, made.config.degradation, 3, [slot])
        expected = (made.players["model"](small) - large).abs().mean()
        torch.testing.assert_close(losses[k], expected)
        torch.testing.assert_close(metrics["above_bicubic"][k], torch.zeros(()).double(), rtol=0, atol=1e-9)  # at birth


def test_the_model_s_loss_is_the_sum_of_its_parts() -> None:
    made = stage(loss=LossConfig(perceptual=Lite0(weight=0.3)))
    made.memory["step"].fill_(1)
    made.memory["weight"].fill_(2.0)
    losses, parts = made.loss("model", InDouble(SHAPES, seed=3).batch(range(4)))
    torch.testing.assert_close(losses, parts["pixel"] + 0.3 * parts["perceptual"] + 0.5 * 2.0 * parts["voice"])


def test_the_critic_tells_what_the_decoder_makes_from_the_originals() -> None:
    made, batch = stage(), InDouble(SHAPES, seed=3).batch(range(4))
    made.memory["step"].fill_(1)
    large, small = made._pairs(batch)
    _, said = made.loss("critic", batch)
    judge, decoder = made.players["critic"], made.players["model"]
    torch.testing.assert_close(said["real"], judge(large).mean(dim=1))
    torch.testing.assert_close(said["fake"], judge(decoder(small)).mean(dim=1))
    assert not torch.allclose(said["real"], said["fake"], rtol=0.01)


def test_a_preview_is_bicubic_result_and_original() -> None:
    made = stage(critic=None)
    model = made.players["model"].eval()
    with torch.no_grad():
        shown = made.preview(model, ["a", "b"])
    enlarged, result, original = shown.chunk(3, dim=-1)
    images = InDouble(SHAPES, seed=3).batch(range(2)).images
    assert torch.equal(original, images)
    small = degrade(images, 2, made.config.degradation, 5, range(2))
    torch.testing.assert_close(enlarged, bicubic(small, (32, 32)))
    torch.testing.assert_close(result, enlarged)  # at birth
    assert made.findings() == {"factor": 2.0, "reach": 4.0}
    assert made.charts() == {}


def test_it_learns_more_than_the_bicubic_filter(tmp_path: Path) -> None:
    made = FastStage(
        FastStageConfig(decoder=FastConfig(factor=2, width=16, depth=1)), 0, None, torch.zeros, CPU, Pixels()
    )
    config = TrainConfig(
        steps=120, batch=8, preview_every=0, checkpoint_every=999, log_every=120,
        optimizer=OptimizerConfig(matrices="muon", matrix_rate=0.01, rate=0.01, warm_up=5), ema=(0.05,),
    )  # fmt: skip
    with RunDir.create(tmp_path / "run", Config()) as rundir:
        trainer = Trainer(made, Loader(SHAPES, seed=0), CPU, rundir, config)
        assert trainer.fit() == 0
        last = made.loss("model", Loader(SHAPES, seed=0).batch(range(4000, 4064)))[1]["above_bicubic"].mean()
    assert last > 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"crop": 15}, "crop=15 is no multiple"), ({"loss": LossConfig(equivariance=0.1)}, "is a property of latents")],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        stage(**changes)

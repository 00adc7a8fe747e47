"""The autoencoder and its critic as a stage: who changes what, and that a step does not depend on how it is divided."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lab.data.shapes import Shapes, ShapesConfig
from lab.errors import NonFinite
from lab.evaluation import perceptual
from lab.evaluation.perceptual import Lite0
from lab.randomness import key, normal
from lab.runtime import Runtime
from tests.stages import InDouble, trained
from vae.autoencoder import AutoencoderConfig
from vae.critic import CriticConfig
from vae.loss import LossConfig
from vae.posterior import Gaussian
from vae.quantizer import Codebook, FiniteScalar, VectorQuantized
from vae.stage import AutoencoderStage, VaeConfig

CPU = Runtime(torch.device("cpu"))
SHAPES = Shapes(ShapesConfig(size=16))
CODES = VectorQuantized(channels=3, codes=16, decay=0.8, dead_below=0.2)
CRITIC = CriticConfig(width=8, depth=1, start_step=1, lecam=0.1, r1=0.1)


def stage(latent: object = CODES, critic: CriticConfig | None = CRITIC, **loss: object) -> AutoencoderStage:
    """A small stage in float64."""
    config = VaeConfig(
        autoencoder=AutoencoderConfig(latent=latent, patch=2, widths=(8, 12)), loss=LossConfig(**loss), critic=critic
    )
    network = perceptual.build(config.loss.perceptual).double() if config.loss.perceptual else None
    loader = InDouble(SHAPES, seed=3)
    made = AutoencoderStage(config, 5, network, lambda num: loader.batch(range(num)).images, CPU)
    for player in made.players.values():
        player.double()
    return made


@pytest.mark.parametrize(
    "make",
    [
        lambda: stage(CODES, equivariance=0.5),
        lambda: stage(Gaussian(channels=3), perceptual=Lite0(weight=0.5)),
        lambda: stage(FiniteScalar(levels=(5, 5)), CRITIC.model_copy(update={"adaptive": False}), pixel="l2"),
    ],
    ids=["codebook", "gaussian", "finite scalars"],
)
def test_every_division_of_a_step_makes_the_same_step(tmp_path: Path, make: Callable[[], AutoencoderStage]) -> None:
    """Adaptive weight, LeCam's means, codebook and revival included: 1 x 8, 2 x 4 and 3 + 3 + 2."""
    ends = []
    for micro_batch in (8, 4, 3):
        made = make()
        trained(tmp_path / str(micro_batch), made, SHAPES, micro_batch, steps=5)
        assert made.contest.weight > 0
        weights = {name: player.state_dict() for name, player in made.players.items()}
        ends.append((weights, dict(made.memory)))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-10)


def test_the_loss_is_of_the_part_of_a_slot() -> None:
    made, batch = stage(Gaussian(channels=3), critic=None), InDouble(SHAPES, seed=3).batch([5, 9])
    made.config = made.config.model_copy(update={"crop": 8})
    losses, _ = made.loss("model", batch)
    parts = []
    for image, slot in zip(batch.images, batch.slots, strict=True):
        top, left = (int(9 * share) for share in key(3, "crop", slot).random(2))
        parts.append(image[:, top : top + 8, left : left + 8])
    made.config = made.config.model_copy(update={"crop": 0})
    torch.testing.assert_close(losses, made.loss("model", batch.with_images(torch.stack(parts)))[0])


def test_each_player_s_update_changes_its_own_parameters_alone(tmp_path: Path) -> None:
    made = stage(critic=CRITIC.model_copy(update={"start_step": 0}))
    trainer = trained(tmp_path, made, SHAPES, steps=2)
    batch = InDouble(SHAPES, seed=3).batch(range(16, 24))
    before = {name: [p.detach().clone() for p in player.parameters()] for name, player in made.players.items()}
    codes = made.players["model"].state_dict()["latent.codes"].clone()
    made.players["model"].zero_grad()
    made.loss("critic", batch)[0].sum().backward()
    assert all(p.grad is None for p in made.players["model"].parameters())
    for name, other in (("model", "critic"), ("critic", "model")):
        trainer.updater(name, [batch], step=2, factor=1.0)
        after = {name: list(player.parameters()) for name, player in made.players.items()}
        assert all(torch.equal(*pair) for pair in zip(before[other], after[other], strict=True))
        assert not any(torch.equal(*pair) for pair in zip(before[name], after[name], strict=True))
        before = {name: [p.detach().clone() for p in player.parameters()] for name, player in made.players.items()}
    assert torch.equal(made.players["model"].state_dict()["latent.codes"], codes)


def test_before_its_first_step_the_critic_rests_and_is_not_heard(tmp_path: Path) -> None:
    made, alone = stage(critic=CRITIC.model_copy(update={"start_step": 2})), stage(critic=None)
    at_birth = [p.detach().clone() for p in made.players["critic"].parameters()]
    trainer = trained(tmp_path / "late", made, SHAPES, steps=2)
    trained(tmp_path / "alone", alone, SHAPES, steps=2)
    assert all(torch.equal(*pair) for pair in zip(at_birth, made.players["critic"].parameters(), strict=True))
    assert not any(optimizer.state for optimizer in trainer.updater.optimizers["critic"])
    assert [float(each) for name, each in made.memory.items() if name != "step"] == [0.0, 0.0, 0.0]
    first, second = ({**each.players["model"].state_dict()} for each in (made, alone))
    assert all(torch.equal(first[name], second[name]) for name in first)
    trained(tmp_path / "on", made, SHAPES, steps=2)
    assert made.memory["step"].item() == 4
    assert all(each != 0 for each in made.memory.values())
    assert not torch.equal(at_birth[0], next(made.players["critic"].parameters()))


def test_the_model_s_loss_is_the_sum_of_its_parts() -> None:
    made = stage(equivariance=0.5, perceptual=Lite0(weight=0.3))
    made.memory["step"].fill_(1)
    made.memory["weight"].fill_(2.0)
    batch = InDouble(SHAPES, seed=3).batch(range(4))
    losses, parts = made.loss("model", batch)
    expected = parts["pixel"] + 0.3 * parts["perceptual"] + 0.5 * parts["equivariance"] + 0.25 * parts["commitment"]
    torch.testing.assert_close(losses, expected + 0.5 * 2.0 * parts["voice"])
    assert (parts["voice"] != 0).all()


def test_latents_are_drawn_by_slot() -> None:
    made, batch = stage(Gaussian(channels=3), critic=None), InDouble(SHAPES, seed=3).batch([5, 9])
    posterior = made.players["model"].encode(batch.images)
    noise = normal(batch.seed, "posterior", [5, 9], (3, 4, 4)).double()
    expected = made.players["model"].decode(posterior.mean + posterior.std * noise)
    losses, parts = made.loss("model", batch)
    torch.testing.assert_close(parts["pixel"], (expected - batch.images).abs().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(losses, parts["pixel"] + 1e-4 * parts["kl"])


def test_the_codes_learn_from_all_samples_of_a_step() -> None:
    made, twin = stage(critic=None), stage(critic=None)
    made.memory["step"].fill_(3)
    vectors = torch.randn(8, 16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made.after_step({"vectors": vectors})
    twin.players["model"].latent.learn(vectors.flatten(0, 1), key(5, "revival", 3))
    assert torch.equal(made.players["model"].latent.codes, twin.players["model"].latent.codes)
    assert made.memory["step"].item() == 4


def test_only_the_codes_of_a_codebook_stage_learn_from_a_step(tmp_path: Path) -> None:
    made = stage(critic=None)
    codebook = made.players["model"].latent
    assert isinstance(codebook, Codebook)
    codes = codebook.codes.clone()
    made.loss("model", InDouble(SHAPES, seed=3).batch(range(4)))
    assert torch.equal(codebook.codes, codes)
    trainer = trained(tmp_path, made, SHAPES, steps=1)
    assert not torch.equal(codebook.codes, codes)
    (line,) = trainer.rundir.metrics()
    assert {"train/psnr", "train/perplexity", "train/commitment"} <= line.keys()
    assert "train/vectors" not in line


def test_a_loss_that_is_not_finite_is_explained_though_the_critic_speaks(tmp_path: Path) -> None:
    made = stage()
    trained(tmp_path / "fine", made, SHAPES, steps=2)
    with torch.no_grad():
        made.players["model"].decoder.stem.bias[0] = torch.nan
    with pytest.raises(NonFinite, match=r"the loss of 'model' is not finite for .* \(first in decoder.stem\)"):
        trained(tmp_path / "spoilt", made, SHAPES)


def test_a_preview_is_original_reconstruction_and_difference() -> None:
    made = stage(Gaussian(channels=3), critic=None)
    model = made.players["model"].eval()
    with torch.no_grad():
        shown = made.preview(model, ["a", "b"])
    original, reconstruction, difference = shown.chunk(3, dim=-1)
    images = InDouble(SHAPES, seed=3).batch(range(2)).images
    assert torch.equal(original, images)
    with torch.no_grad():
        expected: Tensor = model.decode(model.encode(images).mean)
    torch.testing.assert_close(reconstruction, expected)
    torch.testing.assert_close(difference, reconstruction - original)


def test_the_findings_say_how_much_is_compressed() -> None:
    assert stage().findings() == {"factor": 4.0, "latent_channels": 3.0, "compression": 16.0}
    assert stage().charts() == {}

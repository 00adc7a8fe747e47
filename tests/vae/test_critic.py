"""The critic, and what the autoencoder hears of it, written out."""

import pytest
import torch
from torch import Tensor, nn

from vae.critic import LARGEST_WEIGHT, Contest, Critic, CriticConfig, build, pull


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """A critic with two patches, each a product of the whole image with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(2, 48, seed=9))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


IMAGES, RECONSTRUCTIONS = drawn(3, 3, 4, 4), drawn(3, 3, 4, 4, seed=1)


def contest(**settings: object) -> Contest:
    made = Contest(CriticConfig(**settings), seed=0)
    made.memory["real"].fill_(0.4)
    made.memory["fake"].fill_(-0.3)
    return made


def test_the_hinge_loss_is_written_out() -> None:
    critic = Linear()
    losses, metrics = contest(lecam=0.0).critic_loss({"critic": critic}, IMAGES, lambda: RECONSTRUCTIONS)
    for i in range(3):
        real, fake = critic(IMAGES[i : i + 1])[0].tolist(), critic(RECONSTRUCTIONS[i : i + 1])[0].tolist()
        hinge = sum(max(0, 1 - r) + max(0, 1 + f) for r, f in zip(real, fake, strict=True)) / 4
        assert losses[i].item() == pytest.approx(hinge)
        assert metrics["real"][i].item() == pytest.approx(sum(real) / 2)
        assert metrics["fake"][i].item() == pytest.approx(sum(fake) / 2)


def test_lecam_pulls_towards_the_other_side_s_running_mean() -> None:
    critic = Linear()
    plain, _ = contest(lecam=0.0).critic_loss({"critic": critic}, IMAGES, lambda: RECONSTRUCTIONS)
    losses, _ = contest(lecam=0.2).critic_loss({"critic": critic}, IMAGES, lambda: RECONSTRUCTIONS)
    anchors = (critic(IMAGES) + 0.3).square().mean(dim=1) + (critic(RECONSTRUCTIONS) - 0.4).square().mean(dim=1)
    torch.testing.assert_close(losses - plain, 0.2 * anchors)


def test_r1_is_half_the_squared_gradient_at_the_images_and_has_a_gradient_itself() -> None:
    critic = Linear()
    plain, _ = contest(lecam=0.0).critic_loss({"critic": critic}, IMAGES, lambda: RECONSTRUCTIONS)
    losses, metrics = contest(lecam=0.0, r1=3.0).critic_loss({"critic": critic}, IMAGES, lambda: RECONSTRUCTIONS)
    slope = critic.weight.mean(dim=0)
    torch.testing.assert_close(losses - plain, (1.5 * slope.square().sum()).expand(3))
    (found,) = torch.autograd.grad(metrics["r1"].sum(), critic.weight)
    torch.testing.assert_close(found, (3 * slope).expand(2, -1).detach())
    with torch.no_grad():  # as when a loss that is not finite is explained
        torch.testing.assert_close(
            contest(lecam=0.0, r1=3.0).critic_loss({"critic": critic}, IMAGES, lambda: RECONSTRUCTIONS)[0], losses
        )


def test_the_pull_is_the_squared_gradient_at_the_reconstruction() -> None:
    reconstructions = RECONSTRUCTIONS.clone().requires_grad_()
    losses = (reconstructions - IMAGES).square().flatten(1).mean(dim=1)
    expected = (2 * (RECONSTRUCTIONS - IMAGES) / 48).square().flatten(1).sum(dim=1)
    torch.testing.assert_close(pull(losses, reconstructions), expected)
    assert not pull(torch.ones(3), RECONSTRUCTIONS).any()


def test_the_voice_weighs_what_makes_both_pulls_equal_in_the_step_before() -> None:
    critic, made = Linear(), Contest(CriticConfig(weight=0.7), seed=0)
    reconstructions = RECONSTRUCTIONS.clone().requires_grad_()
    losses = (reconstructions - IMAGES).abs().flatten(1).mean(dim=1)
    heard, metrics = made.heard({"critic": critic}, losses, reconstructions)
    torch.testing.assert_close(heard, losses)  # nothing is known yet
    made.learn({**metrics, "critic/real": torch.ones(3), "critic/fake": -torch.ones(3)})
    heard, _ = made.heard({"critic": critic}, losses, reconstructions)
    voice = heard - losses
    pulls = [torch.autograd.grad(x.sum(), reconstructions, retain_graph=True)[0].norm() for x in (losses, voice)]
    torch.testing.assert_close(pulls[1], 0.7 * pulls[0])
    torch.testing.assert_close(made.memory["real"].item(), 0.01)
    torch.testing.assert_close(made.memory["fake"].item(), -0.01)


def test_a_weight_that_is_not_adaptive_stays() -> None:
    critic, made = Linear(), Contest(CriticConfig(weight=0.7, adaptive=False), seed=0)
    voice, metrics = made.heard({"critic": critic}, torch.zeros(3), RECONSTRUCTIONS)
    torch.testing.assert_close(voice, -0.7 * critic(RECONSTRUCTIONS).mean(dim=1))
    assert "pull_critic" not in metrics
    made.learn({"critic/real": torch.ones(3), "critic/fake": torch.zeros(3)})
    assert made.weight == 0.7


def test_before_its_first_step_the_critic_rests_and_is_not_heard() -> None:
    critic, made = Linear(), Contest(CriticConfig(start_step=1, adaptive=False), seed=0)

    def reconstruct() -> Tensor:
        raise AssertionError("nothing is to be reconstructed for a critic that rests")

    losses, metrics = made.critic_loss({"critic": critic}, IMAGES, reconstruct)
    assert not losses.any()
    assert not metrics["real"].any()
    heard, _ = made.heard({"critic": critic}, torch.ones(3), RECONSTRUCTIONS)
    torch.testing.assert_close(heard, torch.ones(3))
    made.learn({"critic/real": torch.ones(3), "critic/fake": torch.ones(3)})
    assert made.memory["real"] == 0  # what a resting critic says is not taken in
    assert made.speaks
    heard, _ = made.heard({"critic": critic}, torch.ones(3), RECONSTRUCTIONS)
    assert not torch.equal(heard, torch.ones(3))


def test_without_a_critic_nothing_is_added_and_steps_are_counted() -> None:
    made = Contest(None, seed=0)
    losses, metrics = made.heard({}, torch.ones(3), RECONSTRUCTIONS)
    torch.testing.assert_close(losses, torch.ones(3))
    assert metrics == {}
    made.learn({})
    assert {name: value.item() for name, value in made.memory.items()} == {"step": 1}
    assert not made.players


def test_the_weight_has_a_limit() -> None:
    made = Contest(CriticConfig(weight=1.0), seed=0)
    silent = torch.zeros(3)
    made.learn({"pull_pixels": silent + 1, "pull_critic": silent, "critic/real": silent, "critic/fake": silent})
    assert made.weight == LARGEST_WEIGHT


@pytest.mark.parametrize(("depth", "patches"), [(1, 14), (2, 6), (3, 2)])
def test_the_critic_judges_patches_each_image_on_its_own(depth: int, patches: int) -> None:
    critic = build(CriticConfig(width=8, depth=depth), seed=0).double()
    images = drawn(3, 3, 32, 32)
    said = critic(images)
    assert said.shape == (3, patches**2)
    torch.testing.assert_close(critic(images[1:2]), said[1:2])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_patch_is_as_wide_as_told(depth: int) -> None:
    width = 9 * 2**depth - 2
    critic = Critic(CriticConfig(width=4, depth=depth)).double()
    layers = [layer for layer in critic.layers if not isinstance(layer, nn.GroupNorm)]  # which hear of all places
    images = drawn(1, 3, 2 * width, 2 * width).requires_grad_()
    said = nn.Sequential(*layers)(images)
    (slope,) = torch.autograd.grad(said[0, 0, said.shape[2] // 2, said.shape[3] // 2], images)
    rows = slope[0].abs().sum(dim=(0, 2)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == width


def test_it_hears_how_much_detail_a_picture_has() -> None:
    """A norm over the picture would give half the detail the same answer."""
    critic = build(CriticConfig(width=16), seed=0)
    detail = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grey, half, full = (critic(share * detail) for share in (0.0, 0.5, 1.0))
    assert (half - grey).square().mean() < 0.5 * (full - grey).square().mean()

"""Diffusion as a stage: what a sample's loss depends on, and how often its caption is dropped."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffusion.denoiser import per_image
from diffusion.loss import LossConfig, add_noise, level_of, square_error
from diffusion.parameterization import X0, Edm, Eps, V
from diffusion.schedule import Cosine, Flow, Karras, Linear, Quadratic, Schedule
from diffusion.stage import DiffusionConfig, DiffusionStage, build
from diffusion.text_to_image import TextToImage
from diffusion.times import LogitNormalTimes, LogNormalTimes
from lab.config import parse
from lab.data.loader import Batch
from lab.errors import Refused
from lab.randomness import normal, uniform
from lab.runtime import Runtime
from lab.text.clip import ClipConfig
from lab.text.encoder import Prepared
from vae.codec import Pixels

Tiny = Callable[..., TextToImage]
RUNTIME = Runtime(torch.device("cpu"))
CAPTIONS = ("a red circle", "two white crosses", "", "a blue ring", "a green square")


def batch(slots: list[int], seed: int = 0) -> Batch:
    """What slot i holds depends on i alone."""
    images = normal(7, "image", slots, (3, 8, 8)).double().clamp(-1, 1)
    return Batch(
        images, tuple(CAPTIONS[slot % len(CAPTIONS)] for slot in slots), tuple(slots), tuple(map(str, slots)), seed
    )


def stage(model: nn.Module, **settings: object) -> DiffusionStage:
    return DiffusionStage(DiffusionConfig.model_validate(settings), model, Pixels(), 8, RUNTIME)


class Recorder(nn.Module):
    """Stands in for the model: keeps what it was given and answers with a constant."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer, self.heard = answer, []

    def forward(self, x_t: Tensor, t: Tensor, prepared: Prepared, frames: Tensor) -> tuple[Tensor, None]:
        self.heard.append((x_t, t, prepared))
        return torch.full_like(x_t, self.answer), None


def test_the_loss_of_a_slot_does_not_depend_on_its_batch(tiny: Tiny) -> None:
    made = stage(tiny().double(), caption_drop=0.4)
    slots = [3, 11, 4, 29, 8]
    losses, _ = made.loss("model", batch(slots))
    assert losses.shape == (5,)
    turned, _ = made.loss("model", batch(slots[::-1]))
    torch.testing.assert_close(turned.flip(0), losses, rtol=1e-10, atol=0)
    for slot, loss in zip(slots, losses, strict=True):
        torch.testing.assert_close(made.loss("model", batch([slot]))[0][0], loss, rtol=1e-10, atol=0)
    assert not torch.isclose(losses, made.loss("model", batch(slots, seed=1))[0]).any()


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Quadratic()], ids=lambda schedule: schedule.kind)
def test_the_loss_is_the_mean_square_over_the_networks_own_target(
    parameterization: Eps | X0 | V, schedule: Schedule, tiny: Tiny
) -> None:
    """And so it is 0 for the network that says its target, and the error in x0 over out^2 for any other."""
    given, slots = batch([1, 2, 3]), [1, 2, 3]
    made = stage(tiny(), schedule=schedule, parameterization=parameterization, times=LogitNormalTimes())
    made.players["model"] = recorder = Recorder(0.25)
    losses, _ = made.loss("model", given)
    noised = add_noise(given.images, slots, 0, schedule, LogitNormalTimes())
    torch.testing.assert_close(recorder.heard[0][:2], (noised.x_t, noised.t))
    for k in range(3):
        skip, out, _ = parameterization(noised.alpha[k], noised.sigma[k])
        error = skip * noised.x_t[k] + out * 0.25 - given.images[k]
        torch.testing.assert_close(losses[k], error.square().mean() / out**2)


def test_the_fixed_grid_has_the_loss_of_each_level_and_its_mean_is_what_training_minimises(tiny: Tiny) -> None:
    made, given, schedule = stage(tiny().double(), times=LogitNormalTimes(), caption_drop=0.0), batch([0, 1]), Cosine()
    model = made.players["model"]
    assert isinstance(model, TextToImage)
    with torch.no_grad():
        grid = made.losses_by_level(model, given, 4)
        assert grid.shape == (2, 4)
        torch.testing.assert_close(made.losses_by_level(model, batch([1]), 4), grid[1:], rtol=1e-10, atol=0)
        t = LogitNormalTimes()(torch.tensor([0.375, 0.375]), schedule).double()
        alpha, sigma = schedule(t)
        state = per_image(alpha) * given.images + per_image(sigma) * normal(0, "noise", [0, 1], (3, 8, 8))
        output, scales = model(state, t, model.text.prepare(given.captions))
        error = per_image(scales.skip) * state + per_image(scales.out) * output - given.images
        torch.testing.assert_close(grid[:, 1], error.square().mean(dim=(1, 2, 3)) / scales.out**2)
        level = 2 * (alpha[0] / sigma[0]).log().item()
        assert made.logsnr_of_levels(4)[1] == pytest.approx(level, abs=0.01)
        drawn = [made.loss("model", replace(given, seed=seed))[0].mean().item() for seed in range(200)]
        assert made.losses_by_level(model, given, 64).mean().item() == pytest.approx(sum(drawn) / 200, rel=0.08)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_captions_are_dropped_one_by_one_with_the_stated_share(share: float, tiny: Tiny) -> None:
    model, slots = tiny(), list(range(2000))
    made = stage(model, caption_drop=share)
    made.players["model"] = recorder = Recorder()
    made.loss("model", Batch(torch.zeros(2000, 3, 1, 1), ("a red circle",) * 2000, tuple(slots), ("",) * 2000, 5))
    (ids, _), ((null, told), _) = recorder.heard[0][2], model.text.prepare(["", "a red circle"])
    dropped = (ids == null).all(dim=1)
    assert (ids[~dropped] == told).all()
    assert dropped.double().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)
    assert torch.equal(dropped, uniform(5, "caption_drop", slots) < share)


def test_latents_are_drawn_from_the_posterior_by_slot(tiny: Tiny) -> None:
    class Fuzzy(Pixels):
        def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images, torch.full_like(images, 0.1)

    made, given = stage(tiny(), parameterization=X0()), batch([5, 6])
    made.codec = Fuzzy()
    made.players["model"] = Recorder()
    latents = given.images + 0.1 * normal(0, "posterior", [5, 6], (3, 8, 8))
    torch.testing.assert_close(made.loss("model", given)[0], latents.square().mean(dim=(1, 2, 3)))


def test_previews_show_the_weights_given_with_the_same_noise_every_time(tiny: Tiny) -> None:
    model, other = tiny(), tiny()
    with torch.no_grad():
        other.denoiser.network.head[2].weight.mul_(2)
    made = stage(model, sampling={"steps": 2, "chunk": 2})
    images = made.preview(model, CAPTIONS[:3])
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(images, made.preview(model, CAPTIONS[:3]))
    assert not torch.allclose(images, made.preview(other, CAPTIONS[:3]))


def test_findings_tell_what_signal_is_left_at_the_end(tiny: Tiny) -> None:
    found = stage(tiny(), schedule=Quadratic(first=0.00085, last=0.012), caption_drop=0.2).findings()
    assert found["alpha_at_1"] == pytest.approx(4.7e-3**0.5, rel=0.01)
    assert found["caption_drop"] == 0.2


def test_weights_are_a_function_of_the_seed() -> None:
    def weights(seed: int) -> list[Tensor]:
        text = ClipConfig(width=16, heads=2, layers=1, context=12, vocabulary=(49406, 49407))
        unet = {"patch": 2, "widths": (16,), "depth": 1, "attention": (0,), "head_width": 16}
        return list(build(DiffusionConfig.model_validate({"unet": unet}), text, Pixels(), seed).parameters())

    before = torch.get_rng_state()
    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_a_variance_that_needs_a_trained_model_is_refused_for_training() -> None:
    with pytest.raises(Refused, match=r"take upper or lower here, and ask sample.py"):
        parse({"sampling": {"sampler": "ddpm", "variance": "optimal"}}, DiffusionConfig)


def test_eps_on_a_schedule_that_ends_without_signal_is_refused() -> None:
    with pytest.raises(Refused, match="predict v or x0"):
        parse({"parameterization": {"kind": "eps"}, "schedule": {"kind": "flow"}}, DiffusionConfig)
    with pytest.raises(ValidationError, match="predict v or x0"):
        DiffusionConfig(parameterization=Eps(), schedule=Flow())
    DiffusionConfig(parameterization=Eps(), schedule=Linear())


@pytest.mark.parametrize(
    ("schedule", "remedy"),
    [
        ({"kind": "linear", "steps": 500}, "multiply the betas by 1000 / 500"),
        ({"kind": "quadratic", "last": 0.01}, "zero_terminal=true and predict v or x0"),
        ({"kind": "cosine", "shift": 5e-4}, "raise schedule.shift"),
        ({"kind": "log_linear", "low": -5}, "lower schedule.low"),
        ({"kind": "karras", "sigma_max": 10}, "raise schedule.sigma_max"),
    ],
)
def test_a_schedule_that_never_reaches_noise_is_refused_with_the_remedy(
    schedule: dict[str, object], remedy: str
) -> None:
    with pytest.raises(Refused, match=f"of the signal at t = 1.*{remedy}"):
        parse({"schedule": schedule}, DiffusionConfig)


def test_the_remedies_work() -> None:
    DiffusionConfig(schedule=Linear(steps=500, first=2e-4, last=0.04))
    DiffusionConfig(schedule=Quadratic(last=0.01, zero_terminal=True))
    with pytest.raises(ValidationError, match="predict v or x0"):
        DiffusionConfig(schedule=Quadratic(last=0.01, zero_terminal=True), parameterization=Eps())


def test_a_little_signal_at_the_end_is_remarked_upon(caplog: pytest.LogCaptureFixture) -> None:
    DiffusionConfig(schedule=Linear())
    assert not caplog.records
    config = DiffusionConfig(schedule=Quadratic(first=0.00085, last=0.012))
    assert len(caplog.records) == 1
    assert "keeps 0.068 of the signal" in caplog.text
    assert config.remarks()[0] in caplog.text


@pytest.mark.parametrize("kind", ["min_snr", "soft_min_snr", "sigmoid"])
def test_a_weight_that_vanishes_where_there_is_no_signal_is_remarked_upon(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    flow = {"schedule": {"kind": "flow"}}
    parse({**flow, "loss": {"weight": {"kind": kind, "floor": 1}}}, DiffusionConfig)
    parse({"loss": {"weight": {"kind": kind}}}, DiffusionConfig)
    assert not caplog.records
    parse({**flow, "loss": {"weight": {"kind": kind}}}, DiffusionConfig)
    assert "set loss.weight.floor=1" in caplog.text


def test_noise_levels_beyond_the_schedule_are_refused() -> None:
    with pytest.raises(Refused, match="mostly beyond the noise levels of schedule karras"):
        parse({"schedule": {"kind": "karras"}, "times": {"kind": "log_normal", "mean": 9}}, DiffusionConfig)


@pytest.mark.parametrize(
    "loss", [{"weight": {"kind": "min_snr"}}, {"huber": 0.1}, {"offset_noise": 0.3}, {"perturbation": 0.2}], ids=str
)
def test_the_loss_is_the_configured_one(loss: dict[str, object], tiny: Tiny) -> None:
    config = LossConfig.model_validate(loss)
    made = stage(tiny(), loss=config, parameterization=Edm(), schedule=Karras(), times=LogNormalTimes())
    made.players["model"] = recorder = Recorder(0.25)
    given = batch([1, 2, 3])
    losses, _ = made.loss("model", given)
    noised = add_noise(given.images, [1, 2, 3], 0, Karras(), LogNormalTimes(), config)
    for k in range(3):
        target = Edm().target(given.images[k], noised.noise[k], noised.alpha[k], noised.sigma[k])
        at = level_of(noised.t[k], Karras(), LogNormalTimes(), Edm())
        torch.testing.assert_close(losses[k], config((0.25 - target).square().mean(), at))
    assert torch.equal(recorder.heard[0][0], noised.x_t)
    plain = add_noise(given.images, [1, 2, 3], 0, Karras(), LogNormalTimes())
    unweighted = square_error(
        torch.full_like(given.images, 0.25),
        Edm().target(given.images, plain.noise, *(per_image(level) for level in (plain.alpha, plain.sigma))),
    )
    changed = not torch.isclose(losses, unweighted).any() or not torch.isclose(plain.x_t, noised.x_t).any()
    assert changed


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "cosine"},
        {"kind": "cosine", "zero_terminal": True},
        {"kind": "linear", "zero_terminal": True},
        {"kind": "quadratic"},
        {"kind": "sigmoid"},
        {"kind": "log_linear"},
        {"kind": "flow", "shift": 2.0},
        {"kind": "karras"},
    ],
    ids=str,
)
def test_whatever_is_possible_trains_and_draws(schedule: dict[str, object], parameterization: str, tiny: Tiny) -> None:
    ends_in_noise = schedule["kind"] == "flow" or schedule.get("zero_terminal")
    if parameterization == "eps" and ends_in_noise:
        return  # refused, see below
    settings = {"schedule": schedule, "parameterization": {"kind": parameterization}}
    model = tiny(**settings).train()
    made = stage(model, **settings, sampling={"steps": 3, "chunk": 1, "sampler": "ddpm"})
    losses, _ = made.loss("model", replace(batch([1, 2]), images=batch([1, 2]).images.float()))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert made.preview(model.eval(), CAPTIONS[:1]).isfinite().all()


def test_pictures_start_from_the_noise_of_training(tiny: Tiny) -> None:
    assert stage(tiny(), loss={"offset_noise": 0.3}).pipeline(tiny()).offset_noise == 0.3


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_of_captions_lies_between_0_and_1(share: float) -> None:
    with pytest.raises(ValidationError):
        DiffusionConfig(caption_drop=share)

"""What is grown on a trained denoiser: what the trunk is shown, what is said at birth, what is trained."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion import samplers
from diffusion.condition import Cond
from diffusion.denoiser import Denoiser, Features, per_image
from diffusion.parameterization import X0, Edm, Eps, Parameterization, V, Velocity
from diffusion.schedule import Cosine, Flow, Karras, Linear, LogLinear, Schedule, angle, logsnr
from diffusion.text_to_image import TextToImage
from lab.errors import Refused
from lab.frozen import Frozen
from lab.training.ema import Average
from superres import decoder
from superres.decoder import UpLevelsConfig, ask, doubled, pooled
from superres.stage import GrownConfig, build

Make = Callable[..., TextToImage]
PROMPTS = ["a red circle", "two white crosses", ""]
TIMES = torch.tensor([0.04, 0.5, 0.97], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Listener(nn.Module):
    """Stands in for a trunk's network: keeps what it is told and repeats its input."""

    factor, last = 1, Features(16, 1)

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, angle: Tensor, cond: Cond, tap: Callable[[str, Tensor], None]) -> Tensor:
        self.heard.append((x, angle))
        tap("last", x)
        return x


NOBODY = Cond(torch.zeros(5, 1, 1), torch.ones(5, 1, dtype=torch.bool), torch.zeros(5, 1))


@pytest.fixture(scope="module")
def large() -> tuple[Tensor, Tensor]:
    """Data and noise of large images whose 160,000 means know their variance to 0.4 %."""
    return doubled(0.6 * drawn(1, 1, 400, 400)), drawn(1, 1, 800, 800, seed=1)


@pytest.mark.parametrize("own", [Cosine(shift=1.4), Linear(), Flow(), Karras(), LogLinear()], ids=lambda s: s.kind)
@pytest.mark.parametrize("schedule", [Cosine(shift=2.8), Flow(), Karras()], ids=lambda s: s.kind)
def test_the_trunk_hears_states_as_it_was_trained_on(
    own: Schedule, schedule: Schedule, large: tuple[Tensor, Tensor]
) -> None:
    """At five levels it hears the spread of its own Gaussian data with its own noise, and is told that level."""
    network = Listener()
    t = schedule.t_of(torch.tensor([8.0, 3.0, 0.0, -3.0, -7.0], dtype=torch.float64))
    alpha, sigma = schedule(t)
    own_alpha, own_sigma = own(own.t_of(logsnr(alpha, sigma) + 2 * math.log(2)))
    x_t = per_image(alpha) * large[0] + per_image(sigma) * large[1]
    ask(Denoiser(network, own, V()), pooled(x_t), alpha, sigma / 2, NOBODY)
    ((heard, told),) = network.heard
    torch.testing.assert_close(told, angle(own_alpha, own_sigma), rtol=1e-6, atol=1e-7)
    spread = (own_alpha * 0.6) ** 2 + own_sigma**2
    torch.testing.assert_close(
        heard.var(dim=(1, 2, 3)), spread * V()(own_alpha, own_sigma).into ** 2, rtol=0.01, atol=0
    )


def test_a_schedule_of_twice_the_shift_tells_the_trunk_its_own_times() -> None:
    network, t = Listener(), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    alpha, sigma = Cosine(shift=2.8)(t)
    ask(Denoiser(network, Cosine(shift=1.4), V()), drawn(5, 3, 2, 2), alpha, sigma / 2, NOBODY)
    torch.testing.assert_close(network.heard[0][1], angle(*Cosine(shift=1.4)(t)))


def test_levels_beyond_the_trunks_are_held_at_its_first_and_last() -> None:
    """Signal keeps its strength at little noise, noise at much; a level jumps to pure data nowhere."""
    network, own = Listener(), LogLinear(high=4.0, low=-4.0)
    alpha, sigma = Cosine()(Cosine().t_of(torch.tensor([15.0, 4.5, 0.0, -6.0, -15.0], dtype=torch.float64)))
    x = drawn(5, 3, 2, 2)
    ask(Denoiser(network, own, V()), x, alpha, sigma / 2, NOBODY)
    ((heard, told),) = network.heard
    ends = torch.tensor([1e-9, 1.0], dtype=torch.float64)
    first, last = angle(*own(ends))
    assert torch.equal(told[:2], first.expand(2))
    torch.testing.assert_close(told[3:], last.expand(2))
    own_alpha, own_sigma = own(ends)
    torch.testing.assert_close(heard[:2], x[:2] * per_image(own_alpha[0] / alpha[:2]))
    torch.testing.assert_close(heard[3:], x[3:] * per_image(2 * own_sigma[1] / sigma[3:]))


@pytest.mark.parametrize("theirs", [V(), X0()], ids=lambda p: p.kind)
@pytest.mark.parametrize("own", [Eps(), X0(), V(), Velocity(), Edm()], ids=lambda p: p.kind)
def test_at_birth_the_means_are_the_trunks(
    own: Parameterization, theirs: Parameterization, source: Make, grow: Make
) -> None:
    trunk = source(parameterization=theirs, schedule=Cosine(shift=1.4))
    model = grow(trunk, parameterization=own, schedule=Cosine(shift=2.8))
    cond, x_t = trunk.encode(PROMPTS), drawn(3, 3, 16, 24)
    x0_hat = model.denoiser(x_t, TIMES, cond)
    alpha, sigma = Cosine(shift=2.8)(TIMES)
    own_alpha, _ = Cosine(shift=1.4)(TIMES)
    expected = trunk.denoiser(per_image(own_alpha / alpha) * pooled(x_t), TIMES, cond)
    torch.testing.assert_close(pooled(x0_hat), expected, rtol=1e-6, atol=1e-6)
    gain = Edm(sigma_data=math.sqrt(4 / 3) * 0.1)(alpha, sigma).skip
    detail = x0_hat - doubled(expected)
    torch.testing.assert_close(detail, per_image(gain) * (x_t - doubled(pooled(x_t))), rtol=1e-6, atol=1e-6)
    assert detail[2].abs().max() < 1e-3 < detail[0].abs().max()  # at much noise nearest neighbour, at little it is not


def test_the_gain_of_details_is_the_best_linear_one() -> None:
    """Of Gaussian details the birth's estimate has the least square error among all multiples of d."""
    alpha, sigma, std = torch.tensor([0.8]).double(), torch.tensor([0.6]).double(), 0.3
    x0 = drawn(1, 1, 400, 400)
    x0 = x0 - doubled(pooled(x0))
    x0 = std * x0 / x0.std()
    d = alpha * x0 + sigma * drawn(1, 1, 400, 400, seed=1)
    d = d - doubled(pooled(d))
    best = (d * x0).sum() / d.square().sum()
    gain = Edm(sigma_data=math.sqrt(4 / 3) * std)(alpha, sigma).skip
    torch.testing.assert_close(gain.squeeze(), best, rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", [X0(), V(), Velocity(), Edm()], ids=lambda p: p.kind)
def test_pure_data_stays_and_pure_noise_is_finite(kind: Parameterization, source: Make, grow: Make) -> None:
    model = grow(source(), awake=True, parameterization=kind, schedule=Flow())
    cond, x = model.encode(PROMPTS[:2]), drawn(2, 3, 8, 8)
    x0_hat = model.denoiser(x, torch.tensor([0.0, 1.0], dtype=torch.float64), cond)
    torch.testing.assert_close(x0_hat[0], x[0], rtol=0, atol=1e-4)
    assert x0_hat.isfinite().all()


def test_the_levels_hear_the_state_the_level_the_text_and_the_features(source: Make, grow: Make) -> None:
    trunk = source()
    model = grow(trunk, awake=True)
    cond, x_t = model.encode(PROMPTS), drawn(3, 3, 16, 16)
    network = model.denoiser.network
    told: list[Tensor] = []
    network.head.register_forward_hook(lambda module, inputs, output: told.append(output))

    def said(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        model.denoiser(x_t, t, cond)
        return told[-1]

    before = said(x_t, TIMES, cond)
    checker = torch.ones(2, 2, dtype=torch.float64).fill_diagonal_(-1).repeat(8, 8)  # its means are 0
    assert not torch.isclose(said(x_t + checker, TIMES, cond), before).all()
    assert not torch.isclose(said(x_t, TIMES + 0.01, cond), before).all()
    assert not torch.isclose(said(x_t, TIMES, cond._replace(pooled=cond.pooled.flip(0))), before)[0].all()


def test_only_what_is_new_is_trained_averaged_and_moved(source: Make, grow: Make) -> None:
    trunk = source()
    model = grow(trunk, awake=True)
    weights = {id(parameter) for parameter in trunk.parameters()}
    assert not weights & {id(parameter) for parameter in model.parameters()}
    assert all(name.startswith("denoiser.network.") for name in model.state_dict())
    assert not any("trunk" in name for name in model.state_dict())
    assert copy.deepcopy(model).denoiser.network.trunk is model.denoiser.network.trunk
    assert Average(model, 0.1).module.text is not None
    model.train()
    assert not any(module.training for module in trunk.modules())
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    output, _ = model(drawn(3, 3, 8, 8), TIMES, model.text.prepare(PROMPTS))
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in trunk.parameters())
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_what_is_grown_grows_again(source: Make, grow: Make) -> None:
    """And the means of the means are those of the first trunk."""
    trunk = source(schedule=Cosine(shift=1.0))
    half = grow(trunk, schedule=Cosine(shift=2.0))
    whole = grow(half, schedule=Cosine(shift=4.0))
    cond, x_t = whole.encode(PROMPTS), drawn(3, 3, 16, 32)
    alpha, _ = Cosine(shift=4.0)(TIMES)
    own_alpha, _ = Cosine(shift=1.0)(TIMES)
    expected = trunk.denoiser(per_image(own_alpha / alpha) * pooled(pooled(x_t)), TIMES, cond)
    torch.testing.assert_close(pooled(pooled(whole.denoiser(x_t, TIMES, cond))), expected, rtol=1e-6, atol=1e-6)
    assert whole.denoiser.network.factor == 16
    assert not {id(p) for p in half.parameters()} & {id(p) for p in whole.parameters()}


def test_what_is_frozen_keeps_no_graph_for_a_backward_pass(
    source: Make, grow: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where new levels stand on new levels of before."""
    model = grow(grow(source(schedule=Cosine(shift=1.0)), schedule=Cosine(shift=2.0)), schedule=Cosine(shift=4.0))
    heard: list[bool] = []

    def asked(*words: Any) -> tuple[Tensor, Tensor]:
        x0_hat, features = ask(*words)
        heard.extend((x0_hat.requires_grad, features.requires_grad))
        return x0_hat, features

    monkeypatch.setattr(decoder, "ask", asked)
    output, _ = model(drawn(3, 3, 16, 16), TIMES, model.text.prepare(PROMPTS))
    assert output.requires_grad
    assert heard == 4 * [False]


def test_two_levels_reach_single_pixels_and_a_third_is_refused(source: Make, grow: Make) -> None:
    network = grow(source(), levels=UpLevelsConfig(widths=(32, 16))).denoiser.network
    assert (network.last.width, network.last.patch) == (16, 1)
    seen: dict[str, tuple[int, ...]] = {}
    cond = Cond(drawn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool), drawn(1, 16))
    network(drawn(1, 3, 8, 8), TIMES[:1], cond, lambda name, feature: seen.update({name: tuple(feature.shape)}))
    assert seen == {"up0": (1, 32, 4, 4), "up1": (1, 16, 8, 8), "last": (1, 16, 8, 8)}
    with pytest.raises(Refused, match=r"stage.levels.widths=\[16, 16, 16\]: .* which are 2 .* name fewer levels"):
        grow(source(), levels=UpLevelsConfig(widths=(16, 16, 16)))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (6, 8)])
def test_another_size_is_refused(height: int, width: int, source: Make, grow: Make) -> None:
    model = grow(source())
    with pytest.raises(ValueError, match=f"{height} x {width} is not divisible by the network's factor 8"):
        model.denoiser(drawn(1, 3, height, width), TIMES[:1], model.encode([""]))


def test_gradients_with_respect_to_the_state_pass_through_the_trunk(source: Make, grow: Make) -> None:
    model = grow(source(), schedule=Cosine(shift=2.0))
    x_t = drawn(1, 3, 8, 8).requires_grad_()
    cond = model.encode(["a red circle"])

    def means(x_t: Tensor) -> Tensor:
        return pooled(model.denoiser(x_t, TIMES[1:2], cond)).square().sum()

    (slope,) = torch.autograd.grad(means(x_t), x_t)
    with torch.no_grad():
        step = 1e-5 * drawn(1, 3, 8, 8, seed=1)
        change = means(x_t + step) - means(x_t - step)
    torch.testing.assert_close((slope * step).sum() * 2, change, rtol=1e-4, atol=0)


def test_every_sampler_takes_it(source: Make, grow: Make) -> None:
    model = grow(source(), awake=True)
    cond, schedule = model.encode(PROMPTS[:1]), model.denoiser.schedule
    times = samplers.uniform_times(4)
    for walk in (samplers.ddim, samplers.heun, samplers.dpmpp_2m, samplers.dpmpp_3m, samplers.unipc, samplers.plms):
        with torch.no_grad():
            x0 = walk(lambda x_t, t: model.denoiser(x_t, t, cond), drawn(1, 3, 8, 8), times, schedule)
        assert x0.isfinite().all()


def test_frozen_is_shared_by_copies_and_needs_no_gradient() -> None:
    held = Frozen(nn.Linear(2, 2).train())
    assert not held.module.training
    assert not held.module.weight.requires_grad
    assert copy.deepcopy([held])[0] is held


def test_the_seed_decides_the_new_weights_alone(source: Make) -> None:
    config = GrownConfig(source="somewhere", levels=UpLevelsConfig(widths=(16,)))
    one, same, other = (build(config, source(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)

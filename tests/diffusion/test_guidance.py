"""Guidance: what a scale means, and what it costs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffusion.combination import Combine, adaptive_projected, linear, plus_plus, rescaled, zero_star
from diffusion.condition import Cond
from diffusion.denoiser import Denoise, Denoiser, per_image
from diffusion.guidance import (
    GuidanceConfig,
    autoguidance,
    classifier_free,
    conditional,
    guide,
    paired,
    within,
)
from diffusion.parameterization import X0, Edm, Parameterization, V, Velocity
from diffusion.pipeline import SamplingConfig
from diffusion.samplers import ddim, uniform_times
from diffusion.schedule import AnySchedule, Cosine, Flow, Karras, Linear, Schedule
from lab.config import parse
from lab.errors import Refused


class Network(nn.Module):
    """Says a different thing for each condition and remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor, angle: Tensor, cond: Cond) -> Tensor:
        self.batches.append(len(x))
        return (
            x * (1 + angle).view(-1, 1, 1, 1)
            + cond.pooled.view(-1, 1, 1, 1)
            + cond.tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        )


def said(value: float) -> Cond:
    each = torch.arange(3, dtype=torch.float64) + value
    return Cond(each.view(3, 1, 1).expand(3, 4, 5), torch.ones(3, 4, dtype=torch.bool), each.view(3, 1))


def unasked() -> Cond:
    raise AssertionError("the null condition was encoded where guidance is off")


X, T = (
    torch.randn(3, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64),
)


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(Network(), Cosine(), X0())


def test_scale_1_is_the_conditional_itself_in_one_pass(denoiser: Denoiser) -> None:
    guided = classifier_free(denoiser, said(0.5), said(-1), 1)
    assert torch.equal(guided(X, T), denoiser(X, T, said(0.5)))
    assert denoiser.network.batches == [3, 3]


def test_scale_0_is_the_null(denoiser: Denoiser) -> None:
    torch.testing.assert_close(
        classifier_free(denoiser, said(0.5), said(-1), 0)(X, T), denoiser(X, T, said(-1)), rtol=0, atol=0
    )


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_any_scale_lies_on_the_line_through_both(denoiser: Denoiser, scale: float) -> None:
    wanted, unwanted = denoiser(X, T, said(0.5)), denoiser(X, T, said(-1))
    guided: Denoise = classifier_free(denoiser, said(0.5), said(-1), scale)
    torch.testing.assert_close(guided(X, T), (1 - scale) * unwanted + scale * wanted)
    assert denoiser.network.batches[-1] == 6  # both in one batch


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_null_equal_to_the_condition_guides_nowhere(denoiser: Denoiser, scale: float) -> None:
    torch.testing.assert_close(
        classifier_free(denoiser, said(0.5), said(0.5), scale)(X, T), conditional(denoiser, said(0.5))(X, T)
    )


def test_every_prompt_may_have_its_own_scale(denoiser: Denoiser) -> None:
    scales = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    guided = classifier_free(denoiser, said(0.5), said(-1), scales)(X, T)
    for k, scale in enumerate(scales.tolist()):
        alone = classifier_free(denoiser, said(0.5), said(-1), scale)(X, T)
        torch.testing.assert_close(guided[k], alone[k], rtol=1e-14, atol=0)
    ones = linear(torch.ones(3))(X, T, WANTED, 1e5 * UNWANTED)
    assert torch.equal(ones, WANTED)  # a sum of both would have rounded
    denoiser.network.batches.clear()
    classifier_free(denoiser, said(0.5), said(-1), torch.ones(3))(X, T)
    assert denoiser.network.batches == [3]


# Rules at scale 1 and 0.

RULES: dict[str, Callable[[float], Combine]] = {
    "linear": linear,
    "apg": adaptive_projected,
    "apg-all": lambda scale: adaptive_projected(scale, parallel=0.3, radius=0.1, momentum=-0.5),
    "zero-star": lambda scale: zero_star(scale, Cosine()),
    "rescaled": lambda scale: rescaled(linear(scale), Cosine(), 0.7),
}


@pytest.mark.parametrize("rule", RULES)
def test_at_scale_1_every_rule_gives_the_conditional(rule: str, denoiser: Denoiser) -> None:
    guided = paired(denoiser, said(0.5), said(-1), RULES[rule](1.0))(X, T)
    exact = rule in ("linear", "apg", "apg-all")
    torch.testing.assert_close(
        guided, denoiser(X, T, said(0.5)), rtol=0 if exact else 1e-12, atol=0 if exact else 1e-12
    )


@pytest.mark.parametrize("kind", ["classifier_free", "apg"])
@pytest.mark.parametrize("interval", [None, [-3.0, 3.0]])
def test_at_scale_1_a_walk_is_conditional_in_one_pass(kind: str, interval: Any, denoiser: Denoiser) -> None:
    config = parse({"rule": {"kind": kind}, "interval": interval, "rescale": 0.7}, GuidanceConfig)
    guided = guide(denoiser, said(0.5), unasked, 1.0, uniform_times(4), config)
    assert torch.equal(guided(X, T), denoiser(X, T, said(0.5)))
    assert denoiser.network.batches == [3, 3]


def test_autoguidance_goes_from_the_bad_model_through_the_good_one(denoiser: Denoiser) -> None:
    class Bad(Network):
        def forward(self, x: Tensor, angle: Tensor, cond: Cond) -> Tensor:
            return 0.3 * super().forward(x, angle, cond)

    bad = Denoiser(Bad(), Flow(), V())  # of another schedule: it is asked at the same levels
    good, worse = denoiser(X, T, said(0.5)), Denoiser(bad.network, Cosine(), V())(X, T, said(2))
    for scale in (0.0, 1.0, 2.5):
        guided = autoguidance(denoiser, said(0.5), bad, said(2), scale)(X, T)
        torch.testing.assert_close(guided, (1 - scale) * worse + scale * good, rtol=1e-12, atol=1e-12)
    assert torch.equal(autoguidance(denoiser, said(0.5), bad, said(2), 0.0)(X, T), worse)
    calls = len(bad.network.batches)
    assert torch.equal(autoguidance(denoiser, said(0.5), bad, said(2), 1.0)(X, T), good)
    assert len(bad.network.batches) == calls


# The interval.


def test_outside_of_the_interval_there_is_no_second_pass(denoiser: Denoiser) -> None:
    """Cosine has log-SNR -2.8, 0 and 3.5 or so at these times."""
    plain, guided = (classifier_free(denoiser, said(0.5), said(-1), scale) for scale in (1.0, 3.0))
    limited = within(guided, plain, Cosine(), (-1.0, 1.0))
    for t, batch in ((0.2, 3), (0.5, 6), (0.8, 3)):
        denoiser.network.batches.clear()
        times = torch.full((3,), t, dtype=torch.float64)
        expected = (guided if batch == 6 else plain)(X, times)
        assert torch.equal(limited(X, times), expected)
        assert denoiser.network.batches == [batch, batch]
    mixed = limited(X, T)
    inside = torch.tensor([False, True, False])
    torch.testing.assert_close(mixed, torch.where(per_image(inside), guided(X, T), plain(X, T)), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", [Cosine(zero_terminal=True), Flow(), Karras()], ids=repr)
def test_an_interval_down_to_minus_20_holds_pure_noise(schedule: Schedule) -> None:
    limited = within(lambda x, t: x + 1, lambda x, t: x, schedule, (-20.0, 0.0))
    start, end = (torch.full((3,), value, dtype=torch.float64) for value in (1.0, 0.01))
    assert torch.equal(limited(X, start), X + 1)
    assert torch.equal(limited(X, end), X)


# What each paper promises. The predictions are arbitrary.

WANTED, UNWANTED = torch.randn(2, 3, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def test_apg_guides_across_the_conditional_prediction() -> None:
    change = adaptive_projected(4.0)(X, T, WANTED, UNWANTED) - WANTED
    torch.testing.assert_close(inner(change, WANTED), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    difference = WANTED - UNWANTED
    along = per_image(inner(difference, WANTED) / inner(WANTED, WANTED)) * WANTED
    torch.testing.assert_close(change, 3 * (difference - along))
    everything = adaptive_projected(4.0, parallel=1.0)(X, T, WANTED, UNWANTED)
    torch.testing.assert_close(everything, linear(4.0)(X, T, WANTED, UNWANTED))


def test_apg_shortens_a_difference_beyond_its_radius_and_no_other() -> None:
    difference = WANTED - UNWANTED
    lengths = inner(difference, difference).sqrt()
    radius = lengths.sort().values[1].item() + 1e-6
    change = (adaptive_projected(2.0, parallel=1.0, radius=radius)(X, T, WANTED, UNWANTED) - WANTED) / difference
    factors = change.flatten(1).mean(dim=1)
    torch.testing.assert_close(change, per_image(factors).expand_as(change))
    torch.testing.assert_close(factors, (radius / lengths).clamp_max(1))
    assert (factors < 1).sum() == 1


def test_apg_adds_a_share_of_the_former_differences() -> None:
    combine = adaptive_projected(2.0, parallel=1.0, momentum=-0.5)
    changes = [combine(X, T, k * WANTED, k * UNWANTED) - k * WANTED for k in (1, 2, 5)]
    shares = [1, 2 - 0.5 * 1, 5 - 0.5 * (2 - 0.5 * 1)]
    for change, share in zip(changes, shares, strict=True):
        torch.testing.assert_close(change, share * (WANTED - UNWANTED))


LEVELS: list[tuple[AnySchedule, float]] = [(Cosine(), 0.6), (Flow(), 0.3), (Flow(), 1.0), (Karras(), 0.5)]


def velocity(x0_hat: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """noise_hat - x0_hat, from x_t = alpha x0_hat + sigma noise_hat."""
    alpha, sigma = map(per_image, schedule(t))
    return (X - alpha * x0_hat) / sigma - x0_hat


@pytest.mark.parametrize(("schedule", "time"), LEVELS, ids=repr)
def test_cfg_zero_star_is_the_published_formula_of_velocities(schedule: Schedule, time: float) -> None:
    t = torch.full((3,), time, dtype=torch.float64)
    towards, away = velocity(WANTED, schedule, t), velocity(UNWANTED, schedule, t)
    best = per_image(inner(towards, away) / inner(away, away))
    for scale in (0.0, 1.0, 3.5):
        guided = zero_star(scale, schedule)(X, t, WANTED, UNWANTED)
        torch.testing.assert_close(velocity(guided, schedule, t), (1 - scale) * best * away + scale * towards)


def test_cfg_zero_star_stands_still_at_first() -> None:
    combine = zero_star(3.0, Flow(), zero_init=0.3)
    t = torch.tensor([0.9, 0.75, 0.69], dtype=torch.float64)
    guided, free = combine(X, t, WANTED, UNWANTED), zero_star(3.0, Flow())(X, t, WANTED, UNWANTED)
    torch.testing.assert_close(guided[:2], X[:2])  # on flow, x0_hat with velocity 0 is the state itself
    assert torch.equal(guided[2], free[2])
    walk = ddim(lambda x, t: combine(x, t, x, -x), X, torch.tensor([1.0, 0.9, 0.8], dtype=torch.float64), Flow())
    torch.testing.assert_close(walk, X)


@pytest.mark.parametrize(("schedule", "time"), LEVELS, ids=repr)
def test_rescaling_gives_the_guided_v_the_spread_of_the_conditional_one(schedule: Schedule, time: float) -> None:
    t = torch.full((3,), time, dtype=torch.float64)
    alpha, sigma = map(per_image, schedule(t))

    def v(x0_hat: Tensor) -> Tensor:
        return V().target(x0_hat, (X - alpha * x0_hat) / sigma, alpha, sigma)

    free = v(linear(7.0)(X, t, WANTED, UNWANTED))
    spread, wanted = (value.flatten(1).std(dim=1) for value in (free, v(WANTED)))
    for share in (0.0, 0.7, 1.0):
        guided = v(rescaled(linear(7.0), schedule, share)(X, t, WANTED, UNWANTED))
        torch.testing.assert_close(guided, per_image(share * wanted / spread + 1 - share) * free)


@pytest.mark.parametrize("parameterization", [X0(), V(), Velocity(), Edm()], ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(), Linear(zero_terminal=True), Flow(shift=2.0), Karras()], ids=repr)
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_is_ddim_with_the_noise_of_the_null(
    strength: float, schedule: AnySchedule, parameterization: Parameterization
) -> None:
    """The published algorithm, step by step, against plain DDIM under the rule."""
    model, times = Denoiser(Network(), schedule, parameterization), uniform_times(7)
    alphas, sigmas = (level.tolist() for level in schedule(times))
    x = sigmas[0] * X
    for k in range(7):
        t = times[k].expand(3)
        null, wanted = model(x, t, said(-1)), model(x, t, said(0.5))
        noise = (x - alphas[k] * null) / sigmas[k]
        x = alphas[k + 1] * (null + strength * (wanted - null)) + sigmas[k + 1] * noise
    config = GuidanceConfig.model_validate({"rule": {"kind": "cfg_plus_plus", "strength": strength}})
    guided = guide(model, said(0.5), partial(said, -1), 3.0, times, config)
    torch.testing.assert_close(ddim(guided, sigmas[0] * X, times, schedule), x, rtol=1e-12, atol=1e-12)


def test_cfg_plus_plus_holds_for_its_own_steps_only() -> None:
    combine = plus_plus(0.6, uniform_times(4), Cosine())
    with pytest.raises(ValueError, match=r"made for other times than t = 0\.6"):
        combine(X, torch.full((3,), 0.6), WANTED, UNWANTED)
    for other in ({"sampler": "ddpm"}, {"eta": 0.5}):
        with pytest.raises(Refused, match=r"set sampler=ddim and eta=0, or guide\.rule\.kind"):
            parse({"guide": {"rule": {"kind": "cfg_plus_plus"}}, **other}, SamplingConfig)
    parse({"guide": {"rule": {"kind": "cfg_plus_plus"}}}, SamplingConfig)


# Configuration.


def test_rules_interval_and_rescale_go_together(denoiser: Denoiser) -> None:
    """What the configuration makes is what the functions make."""
    config = parse(
        {"rule": {"kind": "apg", "parallel": 0.2, "radius": 3.0}, "interval": [-1, 1], "rescale": 0.5}, GuidanceConfig
    )
    combine = rescaled(adaptive_projected(3.0, parallel=0.2, radius=3.0), Cosine(), 0.5)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    guided = guide(denoiser, said(0.5), partial(said, -1), 3.0, uniform_times(4), config)
    assert torch.equal(guided(X, t), paired(denoiser, said(0.5), said(-1), combine)(X, t))
    assert torch.equal(guided(X, t / 4), denoiser(X, t / 4, said(0.5)))


def test_zero_init_also_without_guidance(denoiser: Denoiser) -> None:
    still = GuidanceConfig.model_validate({"rule": {"kind": "cfg_zero_star", "zero_init": 0.3}})
    plain = GuidanceConfig.model_validate({"rule": {"kind": "cfg_zero_star", "zero_init": 0.0}})
    expected = denoiser(X, T, said(0.5))
    guided = [
        guide(denoiser, said(0.5), partial(said, -1), 1.0, uniform_times(4), config)(X, T) for config in (still, plain)
    ]
    torch.testing.assert_close(guided[0][:2], expected[:2])
    assert not torch.isclose(guided[0][2], expected[2]).any()
    assert torch.equal(guided[1], expected)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"interval": [2.0, -2.0]}, "lowest, highest"),
        ({"rescale": 1.5}, "rescale"),
        ({"rule": {"kind": "apg", "momentum": -1.0}}, "momentum"),
        ({"rule": {"kind": "cfg_plus_plus"}, "rescale": 0.5}, "set one of the two only"),
        ({"rule": {"kind": "cfg_plus_plus", "strength": 1.5}}, "strength"),
    ],
)
def test_impossible_guidance_is_refused(wrong: dict[str, object], remedy: str) -> None:
    with pytest.raises(ValidationError, match=remedy):
        GuidanceConfig.model_validate(wrong, strict=False)

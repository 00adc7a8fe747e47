"""The loss: what a sample's state, target and weight are."""

import math

import pytest
import torch
from pydantic import ValidationError

from diffusion.denoiser import per_image
from diffusion.loss import LossConfig, add_noise, level_of, square_error
from diffusion.parameterization import X0, AnyParameterization, Edm, Eps, V, Velocity
from diffusion.schedule import Cosine, Flow, Karras, Linear, Schedule, logsnr
from diffusion.times import AnyTimes, LogitNormalTimes, LogNormalTimes, UniformTimes
from diffusion.weight import (
    AnyWeight,
    EdmWeight,
    Level,
    MinSnr,
    SigmoidWeight,
    SoftMinSnr,
    TargetWeight,
)
from lab.randomness import stratified

T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
WEIGHTS: list[AnyWeight] = [TargetWeight(), MinSnr(), SoftMinSnr(), EdmWeight(), SigmoidWeight()]


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=repr)
@pytest.mark.parametrize("times", [UniformTimes(), LogitNormalTimes(), LogNormalTimes()], ids=repr)
def test_a_state_is_alpha_x0_plus_sigma_noise(schedule: Schedule, times: AnyTimes) -> None:
    x0 = torch.full((4, 3, 2, 5), 0.5, dtype=torch.float64)
    noised = add_noise(x0, [9, 2, 5, 7], 0, schedule, times)
    alpha, sigma = schedule(noised.t)
    torch.testing.assert_close((noised.alpha, noised.sigma), (alpha, sigma))
    torch.testing.assert_close(noised.x_t, per_image(alpha) * x0 + per_image(sigma) * noised.noise)
    assert noised.x_t.dtype == torch.float64


def test_time_and_noise_belong_to_the_slot() -> None:
    def draw(slots: list[int], seed: int = 0) -> list[torch.Tensor]:
        return list(add_noise(torch.zeros(len(slots), 3, 2, 5), slots, seed, Cosine(), UniformTimes()))

    together = draw([4, 8, 15, 16])
    assert all(torch.equal(part[2:3], alone) for part, alone in zip(together, draw([15]), strict=True))
    assert all(torch.equal(part.flip(0), turned) for part, turned in zip(together, draw([16, 15, 8, 4]), strict=True))
    assert len(set(together[2].tolist())) == 4
    assert not any(torch.equal(part, other) for part, other in zip(together, draw([4, 8, 15, 16], seed=1), strict=True))


def test_square_error_is_one_mean_per_sample() -> None:
    output, target = torch.zeros(2, 3, 2, 5), torch.zeros(2, 3, 2, 5)
    output[1] = 2
    output[1, 0, 0, 0] = math.sqrt(34)  # 29 squares of 4, and one of 34
    torch.testing.assert_close(square_error(output, target), torch.tensor([0.0, 5.0]))


def level(schedule: Schedule, parameterization: AnyParameterization) -> Level:
    return level_of(T, schedule, UniformTimes(), parameterization)


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V(), Velocity(), Edm()], ids=repr)
@pytest.mark.parametrize("weight", WEIGHTS[1:], ids=repr)
def test_a_weight_is_the_same_on_the_error_of_x0_whatever_is_predicted(
    weight: AnyWeight, parameterization: AnyParameterization
) -> None:
    """The error of x0 is out times that of the target, so the weight on the target over out^2 is one function."""
    there = level(Flow(shift=2.0), parameterization)
    torch.testing.assert_close(weight(there) / there.out**2, weight(level(Flow(shift=2.0), X0())), rtol=1e-9, atol=0)


def test_the_targets_own_weight_changes_no_bit() -> None:
    error = torch.rand(49, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LossConfig()(error, level(Linear(), Eps())), error)


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
def test_min_snr_is_the_published_one_on_noise_and_on_v(schedule: Schedule) -> None:
    alpha, sigma = schedule(T)
    snr = alpha**2 / sigma**2
    capped = snr.clamp_max(5)
    torch.testing.assert_close(MinSnr()(level(schedule, Eps())), capped / snr)
    torch.testing.assert_close(MinSnr()(level(schedule, V())), capped / (snr + 1))
    torch.testing.assert_close(MinSnr(floor=1.0)(level(schedule, V())), (capped + 1) / (snr + 1))


def test_soft_min_snr_is_the_published_one_and_below_the_hard_one() -> None:
    """On EDM's target the published weight is (sigma sigma_data)^2 / (sigma^2 + sigma_data^2)^2."""
    there, sigma = level(Karras(), Edm()), Karras()(T)[1]
    expected = (sigma * 0.5) ** 2 / (sigma**2 + 0.25) ** 2
    torch.testing.assert_close(SoftMinSnr(gamma=4.0)(there), expected)
    assert (SoftMinSnr(gamma=4.0)(there) < MinSnr(gamma=4.0)(there)).all()
    raised = SoftMinSnr(floor=0.7)(level(Karras(), X0())) - SoftMinSnr()(level(Karras(), X0()))
    torch.testing.assert_close(raised, torch.full_like(T, 0.7))


@pytest.mark.parametrize("schedule", [Karras(), Cosine(), Flow(), Linear(zero_terminal=True)], ids=repr)
@pytest.mark.parametrize("d", [0.5, 1.0, 1.7])
def test_edms_weight_on_edms_target_is_constant(schedule: Schedule, d: float) -> None:
    there = level(schedule, Edm(sigma_data=d))
    torch.testing.assert_close(EdmWeight(sigma_data=d)(there), torch.ones_like(T), rtol=1e-10, atol=0)


def test_edms_weight_is_the_published_one() -> None:
    _, sigma = Karras()(T)
    torch.testing.assert_close(EdmWeight()(level(Karras(), X0())), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)


@pytest.mark.parametrize("times", [UniformTimes(), LogitNormalTimes(mean=-0.4), LogNormalTimes()], ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(), Flow(), Linear()], ids=repr)
def test_the_sigmoid_weight_is_effectively_the_same_whatever_is_drawn(schedule: Schedule, times: AnyTimes) -> None:
    """Averaged over what is drawn, it is the integral over log-SNR, here of sigmoid(bias - logsnr) between two levels.

    This is log(1 + e^(bias - low)) - log(1 + e^(bias - high)) for weights on the noise.
    """
    t = times((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000, schedule)
    there = level_of(t, schedule, times, X0())
    between = (there.logsnr > -3) & (there.logsnr < 4)
    drawn = (SigmoidWeight(bias=1.0)(there) * (-there.logsnr).exp() * between).mean()
    assert drawn.item() == pytest.approx(math.log1p(math.e**4) - math.log1p(math.e**-3), rel=1e-3)


@pytest.mark.parametrize("weight", [*WEIGHTS, SigmoidWeight(floor=1.0)], ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(), Linear(zero_terminal=True), Flow(), Karras()], ids=repr)
@pytest.mark.parametrize("parameterization", [X0(), V(), Velocity(), Edm()], ids=repr)
@pytest.mark.parametrize("times", [UniformTimes(), LogNormalTimes()], ids=repr)
def test_every_weight_is_finite_at_both_ends(
    weight: AnyWeight, schedule: Schedule, parameterization: AnyParameterization, times: AnyTimes
) -> None:
    ends = weight(level_of(torch.tensor([1.0, 1 - 2**-24, 2**-24]), schedule, times, parameterization))
    assert ends.isfinite().all()
    assert (ends >= 0).all()


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
def test_what_vanishes_without_signal_says_so(weight: AnyWeight) -> None:
    end = weight(level_of(torch.ones(1), Linear(zero_terminal=True), UniformTimes(), V()))
    assert weight.vanishes == (end.item() < 1e-5)
    if weight.vanishes:
        kept = weight.model_copy(update={"floor": 1.0})
        assert not kept.vanishes
        assert kept(level_of(torch.ones(1), Linear(zero_terminal=True), UniformTimes(), V())).item() > 0.9


def test_pseudo_huber_is_the_square_below_its_constant_and_the_root_above() -> None:
    error, there = torch.tensor([0.0, 1e-8, 0.09, 1e6], dtype=torch.float64), Level(*torch.zeros(3, 4))
    torch.testing.assert_close(LossConfig(huber=1e4)(error, there), error, rtol=1e-2, atol=0)
    exact = 2 * 0.1 * ((error[2:] + 0.01).sqrt() - 0.1)
    losses = LossConfig(huber=0.1)(error, there)
    torch.testing.assert_close(losses[2:], exact)
    torch.testing.assert_close(losses[:2], error[:2], rtol=1e-5, atol=0)
    assert losses[3].item() == pytest.approx(0.2 * 1000, rel=1e-3)


SLOTS = list(range(40))


def test_offset_noise_is_known_to_state_and_target_and_constant_over_a_channel() -> None:
    x0 = torch.zeros(40, 3, 2, 5)
    plain = add_noise(x0, SLOTS, 0, Cosine(), UniformTimes())
    moved = add_noise(x0, SLOTS, 0, Cosine(), UniformTimes(), LossConfig(offset_noise=0.5))
    offset = moved.noise - plain.noise
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset))
    assert offset[:, :, 0, 0].std().item() == pytest.approx(0.5, rel=0.2)
    torch.testing.assert_close(moved.x_t, per_image(moved.sigma) * moved.noise)


def test_input_perturbation_is_in_the_state_and_not_in_the_target() -> None:
    x0 = torch.zeros(40, 3, 2, 5)
    plain = add_noise(x0, SLOTS, 0, Flow(), UniformTimes())
    moved = add_noise(x0, SLOTS, 0, Flow(), UniformTimes(), LossConfig(perturbation=0.1))
    assert torch.equal(moved.noise, plain.noise)
    unknown = (moved.x_t - plain.x_t) / per_image(moved.sigma)
    assert unknown.std().item() == pytest.approx(0.1, rel=0.1)
    assert abs((unknown * plain.noise).mean().item()) < 0.01


def test_stratified_times_are_those_of_the_slot() -> None:
    config = LossConfig(stratified=True)
    drawn = add_noise(torch.zeros(40, 1, 1, 1), SLOTS, 3, Flow(), UniformTimes(), config).t
    assert torch.equal(drawn, 1 - stratified(3, "t", SLOTS))
    alone = add_noise(torch.zeros(1, 1, 1, 1), [17], 3, Flow(), UniformTimes(), config).t
    assert torch.equal(alone, drawn[17:18])
    assert (drawn[:32] * 32).ceil().sort().values.tolist() == list(range(1, 33))


@pytest.mark.parametrize(
    "wrong",
    [{"huber": -1.0}, {"offset_noise": -0.1}, {"perturbation": 2.0}, {"weight": {"kind": "min_snr", "gamma": 0}}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LossConfig.model_validate(wrong)


def test_the_level_is_that_of_the_schedule() -> None:
    there = level_of(T.float(), Cosine(), UniformTimes(), V())
    torch.testing.assert_close(there.logsnr, logsnr(*Cosine()(T.float().double())))
    assert there.logsnr.dtype == torch.float64

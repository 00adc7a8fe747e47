"""What the loss weighs: the curves against closed forms, and the picture of them."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.effective_weight import SHOWN, chart, curves, named
from diffusion.parameterization import X0, AnyParameterization, Edm, Eps, V, Velocity
from diffusion.schedule import AnySchedule, Cosine, Flow, Karras, Linear, LogLinear
from diffusion.stage import DiffusionConfig, DiffusionStage
from diffusion.text_to_image import TextToImage
from diffusion.times import AnyTimes, LogitNormalTimes, LogNormalTimes, LossSecondMomentTimes, UniformTimes
from diffusion.weight import AnyWeight, EdmWeight, MinSnr, SigmoidWeight, TargetWeight
from lab.runtime import Runtime
from vae.codec import Pixels

SCHEDULES: list[AnySchedule] = [Cosine(), Linear(zero_terminal=True), Flow(shift=2.0), Karras()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
each_times = pytest.mark.parametrize(
    "times", [UniformTimes(), LogitNormalTimes(mean=0.3), LogNormalTimes()], ids=lambda times: times.kind
)


def normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x).exp()


@each_schedule
@each_times
def test_what_is_shown_holds_almost_all_samples_and_is_finite(schedule: AnySchedule, times: AnyTimes) -> None:
    made = curves(schedule, V(), MinSnr(), times)
    assert all(curve.isfinite().all() for curve in made)
    assert (made.logsnr.diff() > 0).all()
    assert torch.trapezoid(made.density, made.logsnr).item() == pytest.approx(SHOWN, abs=5e-4)


@each_times
@pytest.mark.parametrize("parameterization", [X0(), V(), Edm()], ids=lambda each: each.kind)
def test_the_product_is_what_a_mean_over_samples_comes_to(
    times: AnyTimes, parameterization: AnyParameterization
) -> None:
    """For errors of x0 that depend on the level, here a bump: the mean of weight times error over drawn levels."""
    schedule, weight = Cosine(), MinSnr()
    made = curves(schedule, parameterization, weight, times, points=4001)
    bump = torch.exp(-((made.logsnr - 1) ** 2))
    integral = torch.trapezoid(made.on_x0 * bump, made.logsnr).item()
    alpha, sigma = schedule(times((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000, schedule))
    level = 2 * (alpha / sigma).log()
    drawn = ((alpha / sigma).square().clamp_max(5) * torch.exp(-((level - 1) ** 2))).mean().item()
    assert integral == pytest.approx(drawn, rel=1e-3)
    torch.testing.assert_close(made.on_x0, made.density * made.weight)


def test_the_targets_own_weight_counts_as_often_as_it_is_drawn() -> None:
    made = curves(Linear(), Eps(), TargetWeight(), UniformTimes())
    torch.testing.assert_close(made.on_target, made.density)
    torch.testing.assert_close(made.weight, made.logsnr.exp())  # the error of the noise is SNR times that of x0


def test_edm_is_normal_on_its_own_target() -> None:
    made = curves(Karras(), Edm(), EdmWeight(), LogNormalTimes())
    expected = normal(made.logsnr, 2.4, 2.4)
    torch.testing.assert_close(made.on_target, expected / LogNormalTimes().mass(Karras()))


@each_schedule
@each_times
def test_sigmoid_weighting_is_the_same_whatever_is_drawn(schedule: AnySchedule, times: AnyTimes) -> None:
    made = curves(schedule, Velocity(), SigmoidWeight(bias=1.0), times)
    expected = made.logsnr.exp() * torch.sigmoid(1 - made.logsnr)
    torch.testing.assert_close(made.on_x0, expected, rtol=1e-6, atol=0)


def test_flow_with_logit_normal_times_is_normal_and_the_weight_on_x0_is_that_of_the_velocity() -> None:
    """v = noise - x0 = (x_t - x0) / t, so its error is that of x0 over t^2, and t = 1 / (1 + e^(logsnr / 2))."""
    made = curves(Flow(), Velocity(), TargetWeight(), LogitNormalTimes(mean=0.5, std=0.8))
    torch.testing.assert_close(made.density, normal(made.logsnr, -1.0, 1.6))
    torch.testing.assert_close(made.weight, (1 + (made.logsnr / 2).exp()) ** 2)


def test_names_tell_the_kind_and_what_is_not_as_usual() -> None:
    assert named(Cosine()) == "cosine"
    assert named(Cosine(shift=2.0, zero_terminal=True)) == "cosine (shift 2.0, zero_terminal True)"
    assert named(LogitNormalTimes(std=0.5)) == "logit_normal (std 0.5)"
    learning = LossSecondMomentTimes(base=LogitNormalTimes(std=0.5), bins=8)
    assert named(learning) == "loss_second_moment (base logit_normal (std 0.5), bins 8)"


@pytest.fixture
def stage(tiny: Callable[..., TextToImage]) -> DiffusionStage:
    config = DiffusionConfig.model_validate({"loss": {"weight": {"kind": "min_snr", "gamma": 3}}})
    return DiffusionStage(config, tiny(), Pixels(), 8, Runtime(torch.device("cpu")))


def test_the_picture_changes_with_each_part_of_it() -> None:
    pytest.importorskip("matplotlib")
    plain: tuple[AnySchedule, AnyParameterization, AnyWeight, AnyTimes] = (Cosine(), V(), MinSnr(), UniformTimes())
    others = (LogLinear(), X0(), EdmWeight(), LogNormalTimes())
    pictures = [np.asarray(chart(*plain))]
    pictures += [np.asarray(chart(*plain[:k], others[k], *plain[k + 1 :])) for k in range(4)]
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert all(picture.shape == (704, 880, 3) for picture in pictures)
    inked = (pictures[0] < 250).any(axis=2)
    assert inked[:60].any()  # the title, and then both panels
    assert inked[100:300, 200:800].mean() > 0.05
    assert inked[400:600, 200:800].mean() > 0.005


def test_a_stage_draws_its_own_configuration(stage: DiffusionStage) -> None:
    pytest.importorskip("matplotlib")
    (picture,) = stage.charts().values()
    expected = chart(Cosine(), V(), MinSnr(gamma=3.0), UniformTimes())
    assert list(stage.charts()) == ["effective_weight"]
    assert picture.tobytes() == expected.tobytes()


def test_without_matplotlib_there_is_a_remedy_instead(
    stage: DiffusionStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    chart.cache_clear()
    assert stage.charts() == {}
    assert "pip install -e '.[plots]'" in caplog.text

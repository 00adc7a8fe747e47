"""Schedules against formulas written another way, in float64."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from diffusion.schedule import (
    LOGSNR_LIMIT,
    AnySchedule,
    Cosine,
    Flow,
    Karras,
    Linear,
    LogLinear,
    Quadratic,
    Schedule,
    Sigmoid,
    Table,
    angle,
    logsnr,
    terminal_signal,
)

SCHEDULES: list[AnySchedule] = [
    Cosine(),
    Cosine(shift=2.0),
    Cosine(zero_terminal=True),
    Linear(),
    Linear(shift=2.0),
    Linear(zero_terminal=True),
    Linear(steps=7, first=0.01, last=0.95),
    Quadratic(),
    Quadratic(first=0.00085, last=0.012),
    Quadratic(first=0.00085, last=0.012, zero_terminal=True),
    Sigmoid(),
    Sigmoid(start=0.0, end=3.0, tau=0.7, shift=2.0),
    Sigmoid(zero_terminal=True),
    LogLinear(),
    LogLinear(shift=2.0),
    Flow(),
    Flow(shift=3.0),
    Karras(),
    Karras(rho=1.0, sigma_max=20.0),
    Karras(shift=2.0),
]
PRESERVING = [schedule for schedule in SCHEDULES if not isinstance(schedule, Flow | Karras)]
TIMES = torch.linspace(0, 1, 257, dtype=torch.float64)

every = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@every
def test_time_runs_from_data_to_noise(schedule: Schedule) -> None:
    alpha, sigma = schedule(TIMES)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert terminal_signal(schedule) == pytest.approx(math.cos(angle(alpha, sigma)[-1]), abs=1e-12)
    assert terminal_signal(schedule) < 0.1
    assert sigma[-1] > 0.99
    assert (angle(alpha, sigma).diff() > 0).all()


@pytest.mark.parametrize("schedule", PRESERVING, ids=repr)
def test_variance_is_preserved(schedule: Schedule) -> None:
    alpha, sigma = schedule(TIMES)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(TIMES), rtol=1e-14, atol=0)


@every
def test_t_of_is_the_inverse(schedule: Schedule) -> None:
    t = TIMES[1:-1]
    torch.testing.assert_close(schedule.t_of(logsnr(*schedule(t))), t, rtol=0, atol=1e-9)
    beyond = torch.tensor([math.inf, 100.0, -100.0, -math.inf], dtype=torch.float64)
    torch.testing.assert_close(
        schedule.t_of(beyond), torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-4
    )


@every
@pytest.mark.parametrize("shape", [(), (3,)])
def test_type_and_shape_are_those_of_the_time(schedule: Schedule, shape: tuple[int, ...]) -> None:
    t = torch.full(shape, 0.3)
    for level in (*schedule(t), schedule.t_of(t)):
        assert level.dtype == torch.float32
        assert level.shape == shape
    exact = torch.cat([level.view(1) for level in schedule(torch.tensor(0.3, dtype=torch.float64))])
    torch.testing.assert_close(torch.stack(schedule(torch.tensor([0.3])))[:, 0], exact.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("schedule", "betas", "last_alpha_bar"),
    [
        (Linear(), np.linspace(1e-4, 0.02, 1000), 4.0e-5),
        (Linear(steps=500), np.linspace(1e-4, 0.02, 500), 6.4e-3),
        (Quadratic(), np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2, 7.3e-4),
        (Quadratic(first=0.00085, last=0.012), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 4.7e-3),
    ],
    ids=["linear", "linear-500", "quad", "scaled-linear"],
)
def test_tables_are_the_published_ones_at_their_knots(
    schedule: Schedule, betas: np.ndarray, last_alpha_bar: float
) -> None:
    alpha_bar = torch.from_numpy(np.cumprod(1 - betas))
    alpha, sigma = schedule(torch.arange(1, len(betas) + 1, dtype=torch.float64) / len(betas))
    torch.testing.assert_close(alpha**2, alpha_bar, rtol=1e-11, atol=0)
    torch.testing.assert_close(sigma**2, 1 - alpha_bar, rtol=1e-11, atol=0)
    assert alpha[-1] ** 2 == pytest.approx(last_alpha_bar, rel=0.02)


@pytest.mark.parametrize("schedule", [Linear(), Quadratic(), Quadratic(steps=7, first=0.3, last=0.9)], ids=repr)
def test_every_knot_of_a_table_but_data_has_noise(schedule: Table) -> None:
    """A step from a knot divides by its sigma."""
    knots = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    _, sigma = schedule(knots)
    assert sigma[0].item() == pytest.approx(schedule.first**0.5, rel=1e-12)
    assert (sigma >= sigma[0]).all()


def test_a_table_is_computed_once() -> None:
    """Once per configuration, however often it is asked and however often the configuration is made."""
    computed: list[int] = []

    class Counted(Table):
        kind: str = "counted"

        def betas(self) -> np.ndarray:
            computed.append(self.steps)
            return np.linspace(self.first, self.last, self.steps)

    for steps in (10, 20, 10, 20):
        schedule = Counted(steps=steps)
        for ask in (schedule, schedule.t_of, schedule.slope):
            ask(TIMES)
    assert computed == [10, 20]


@pytest.mark.parametrize("schedule", [Linear(steps=10), Quadratic(steps=10)], ids=repr)
def test_between_the_knots_the_angle_is_interpolated(schedule: Schedule) -> None:
    at = angle(*schedule(torch.tensor([0.0, 0.025, 0.1, 0.125, 0.2], dtype=torch.float64)))
    torch.testing.assert_close(at[1], at[2] / 4)
    torch.testing.assert_close(at[3], 0.75 * at[2] + 0.25 * at[4])


def test_cosine_is_nichol_and_dhariwals() -> None:
    def f(t: torch.Tensor) -> torch.Tensor:
        return ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2

    t = TIMES[1:-1]
    alpha, sigma = Cosine()(t)
    alpha_bar = f(t) / f(torch.zeros_like(t))
    torch.testing.assert_close(alpha**2, alpha_bar, rtol=1e-11, atol=0)
    torch.testing.assert_close(sigma**2, 1 - alpha_bar, rtol=1e-11, atol=0)


def test_cosine_keeps_its_log_snr_within_limits_until_it_is_data() -> None:
    t = torch.cat(
        [
            torch.logspace(-12, -1, 50, dtype=torch.float64),
            1 - torch.logspace(-1, -12, 50, dtype=torch.float64),
            torch.ones(1),
        ]
    )
    level = logsnr(*Cosine()(t))
    torch.testing.assert_close(level[[0, -1]], torch.tensor([LOGSNR_LIMIT, -LOGSNR_LIMIT], dtype=torch.float64))
    assert level.abs().max() <= LOGSNR_LIMIT + 1e-9
    assert logsnr(*Cosine()(torch.zeros(()))) == math.inf


def test_flow_is_a_straight_line() -> None:
    alpha, sigma = Flow()(TIMES)
    torch.testing.assert_close(alpha, 1 - TIMES)
    torch.testing.assert_close(sigma, TIMES)


@pytest.mark.parametrize("kind", [Cosine, Linear, Quadratic, Sigmoid, LogLinear, Flow, Karras])
def test_shift_lowers_log_snr_everywhere(kind: type[Cosine | Flow]) -> None:
    """The shift of flow, that of cosine and all others are one: 2 log s less at every time."""
    t = TIMES[1:-1]
    difference = logsnr(*kind()(t)) - logsnr(*kind(shift=3.0)(t))
    torch.testing.assert_close(difference, torch.full_like(t, 2 * math.log(3)), rtol=1e-9, atol=0)


def test_the_shift_of_flow_is_the_published_map_of_time() -> None:
    mapped = 3 * TIMES / (1 + 2 * TIMES)
    torch.testing.assert_close(Flow(shift=3.0)(TIMES), Flow()(mapped), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("schedule", [Linear(), Quadratic(first=0.00085, last=0.012), Linear(steps=10, last=0.9)])
def test_zero_terminal_is_the_published_rescaling(schedule: Table) -> None:
    root = np.sqrt(np.cumprod(1 - schedule.betas()))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    knots = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    alpha, sigma = schedule.model_copy(update={"zero_terminal": True})(knots)
    torch.testing.assert_close(alpha, torch.from_numpy(expected), rtol=1e-11, atol=1e-15)
    assert (alpha[-1], sigma[-1]) == (0, 1)
    torch.testing.assert_close(alpha[0], schedule(knots[:1])[0][0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [Cosine(), Sigmoid(), Linear(shift=0.5)], ids=repr)
def test_zero_terminal_is_exact_in_every_precision(schedule: Cosine | Sigmoid | Linear) -> None:
    ends = schedule.model_copy(update={"zero_terminal": True})
    for dtype in (torch.float32, torch.float64):
        alpha, sigma = ends(torch.ones(1, dtype=dtype))
        assert (alpha, sigma) == (0, 1)
    assert terminal_signal(schedule) > 0 == terminal_signal(ends)


@every
def test_the_slope_is_the_derivative_of_log_snr(schedule: AnySchedule) -> None:
    t, h = (torch.arange(40, dtype=torch.float64) + 0.5337) / 40, 1e-6  # away from the knots of the short table
    numeric = (logsnr(*schedule(t + h)) - logsnr(*schedule(t - h))) / (2 * h)
    torch.testing.assert_close(schedule.slope(t), numeric, rtol=1e-5, atol=0)
    assert schedule.slope(t.float()).dtype == torch.float32


@pytest.mark.parametrize("schedule", [Cosine(), Sigmoid()], ids=repr)
def test_the_slope_is_0_where_log_snr_is_held_at_its_limit(schedule: Cosine | Sigmoid) -> None:
    assert (schedule.slope(torch.tensor([1e-12, 1 - 1e-12], dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize(("start", "tau"), [(-3.0, 1.0), (0.0, 0.7)])
def test_sigmoid_is_jabris(start: float, tau: float) -> None:
    t = TIMES[1:-1]
    on_the_curve = torch.stack([torch.full_like(t, start), start + (3 - start) * t, torch.full_like(t, 3)])
    first, now, last = torch.sigmoid(on_the_curve / tau)
    alpha, _ = Sigmoid(start=start, tau=tau)(t)
    torch.testing.assert_close(alpha**2, (last - now) / (last - first), rtol=1e-6, atol=0)


def test_log_linear_is_a_straight_line_of_log_snr() -> None:
    torch.testing.assert_close(logsnr(*LogLinear()(TIMES[1:])), 13.3 - 23.3 * TIMES[1:])


def test_karras_has_the_levels_of_edm() -> None:
    """Equal steps of time between the first level and the last are EDM's table of noise levels."""
    k = np.arange(18)
    levels = (80 ** (1 / 7) + k / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    _, sigma = Karras()(torch.from_numpy(1 - k / 17).clamp_min(1e-15))
    torch.testing.assert_close(sigma, torch.from_numpy(levels), rtol=1e-9, atol=0)


def test_a_changed_copy_has_its_own_table() -> None:
    original = Linear()
    original(TIMES)
    copy = original.model_copy(update={"last": 0.03})
    assert torch.equal(copy(TIMES)[0], Linear(last=0.03)(TIMES)[0])
    assert not torch.equal(copy(TIMES)[0], original(TIMES)[0])
    assert not torch.equal(original(TIMES)[0], Quadratic()(TIMES)[0])  # nor does another kind with the same numbers


@pytest.mark.parametrize("steps", [2, 17, 100, 4000])
def test_betas_times_1000_over_the_length_keep_the_end(steps: int) -> None:
    """Tables of any length end where the one of 1,000 steps does, but for the size of a step."""
    if steps > 20:
        assert terminal_signal(Linear(steps=steps, first=0.1 / steps, last=20 / steps)) < 0.01
    assert terminal_signal(Linear(steps=steps)) == pytest.approx(
        np.sqrt(np.prod(1 - np.linspace(1e-4, 0.02, steps))), rel=1e-9
    )


@pytest.mark.parametrize(
    ("kind", "wrong", "remedy"),
    [
        (Sigmoid, {"start": 3.0, "end": 3.0}, "start must be below end"),
        (LogLinear, {"low": 14.0}, "low must be below high"),
        (LogLinear, {"high": 30.0}, "within 20"),
        (Karras, {"sigma_min": 90.0}, "sigma_min must be below sigma_max"),
        (Karras, {"rho": 0.5}, "rho"),
    ],
)
def test_a_schedule_that_does_not_fall_is_refused(
    kind: type[Sigmoid | LogLinear | Karras], wrong: dict[str, float], remedy: str
) -> None:
    with pytest.raises(ValidationError, match=remedy):
        kind.model_validate(wrong)


@pytest.mark.parametrize("wrong", [{"first": 0.0}, {"last": 1.0}, {"steps": 1}])
@pytest.mark.parametrize("kind", [Linear, Quadratic])
def test_a_table_without_noise_or_without_end_is_refused(
    kind: type[Linear | Quadratic], wrong: dict[str, float]
) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(wrong)

"""Schedules against formulas written another way, in float64."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from diffusion.schedule import LOGSNR_LIMIT, Cosine, Flow, Linear, Quadratic, Schedule, angle, logsnr

SCHEDULES = [
    Cosine(),
    Cosine(shift=2.0),
    Linear(),
    Quadratic(),
    Quadratic(first=0.00085, last=0.012),
    Flow(),
    Flow(shift=3.0),
]
PRESERVING = [schedule for schedule in SCHEDULES if not isinstance(schedule, Flow)]
TIMES = torch.linspace(0, 1, 257, dtype=torch.float64)

every = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@every
def test_time_runs_from_data_to_noise(schedule: Schedule) -> None:
    alpha, sigma = schedule(TIMES)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert alpha[-1] < 0.1
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


@pytest.mark.parametrize("kind", [Cosine, Flow])
def test_shift_lowers_log_snr_everywhere(kind: type[Cosine | Flow]) -> None:
    t = TIMES[1:-1]
    difference = logsnr(*kind()(t)) - logsnr(*kind(shift=3.0)(t))
    torch.testing.assert_close(difference, torch.full_like(t, 2 * math.log(3)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("wrong", [{"first": 0.0}, {"last": 1.0}, {"steps": 1}])
@pytest.mark.parametrize("kind", [Linear, Quadratic])
def test_a_table_without_noise_or_without_end_is_refused(
    kind: type[Linear | Quadratic], wrong: dict[str, float]
) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(wrong)

"""The power-function average against its definition."""

import math

import pytest
import torch
from torch import nn

from lab.training.ema import Average, gamma_of

LENGTHS = [0.03, 0.05, 0.1, 0.25]


class Number(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("counter", torch.zeros(1))


def averaged(values: list[float], length: float) -> float:
    module = Number(100.0)
    average = Average(module, length)
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            module.value.fill_(value)
        average.update(module, step)
    return average.module.value.item()


@pytest.mark.parametrize("length", LENGTHS)
def test_gamma_is_the_root_of_the_length(length: float) -> None:
    gamma = gamma_of(length)
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(length**2, rel=1e-9)
    assert gamma > 0


def test_published_pairs() -> None:
    """Karras et al. 2023, sec. 3.1: 5 % is gamma 16.97, 10 % is gamma 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_average_is_the_weighted_sum(length: float) -> None:
    """Step k of n weighs (k/n)^(gamma + 1) - ((k - 1)/n)^(gamma + 1), the integral of the power profile over it."""
    values = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edges = (torch.arange(61, dtype=torch.float64) / 60) ** (gamma_of(length) + 1)
    assert averaged(values.tolist(), length) == pytest.approx((edges.diff() @ values).item(), rel=1e-9)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_length_is_the_spread_of_the_profile_over_the_run(length: float) -> None:
    """From the averages of two ramps, t and t^2: the standard deviation of where in the run the weights come from."""
    n = 2000
    first = averaged([k / n for k in range(1, n + 1)], length)
    second = averaged([(k / n) ** 2 for k in range(1, n + 1)], length)
    assert math.sqrt(second - first**2) == pytest.approx(length, rel=0.01)


def test_the_first_step_is_taken_whole() -> None:
    assert averaged([0.25], 0.05) == 0.25


def test_what_does_not_change_is_its_own_average() -> None:
    assert averaged([0.3] * 50, 0.1) == 0.3


def test_the_average_is_a_frozen_copy_in_eval_mode_with_the_newest_buffers() -> None:
    module = Number(1.0).train()
    average = Average(module, 0.1)
    module.counter.fill_(5)
    average.update(module, 3)
    assert average.module.counter.item() == 5
    assert not average.module.training
    assert not average.module.value.requires_grad
    assert module.training
    assert module.value.requires_grad
    assert module.value.item() == 1.0


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(AssertionError, match="fp32"):
        Average(nn.Linear(2, 2).bfloat16(), 0.1)

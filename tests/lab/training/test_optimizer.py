"""The learning rate at its corners, steps by hand, what is decayed, and clipping."""

import math
from collections.abc import Sequence
from itertools import chain, pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lab.layers import edge
from lab.runtime import Runtime
from lab.training.optimizer import Muon, OptimizerConfig, build, clip, norm_of_gradients, orthogonalise, set_rates

STEPS = 1000


def rates(**settings: object) -> list[float]:
    config = OptimizerConfig.model_validate({"rate": 2.0, "warm_up": 99, "decay_share": 0.25, **settings})
    return [config.rate * config.factor_at(step, config.ending(STEPS)) for step in range(STEPS)]


@pytest.mark.parametrize("decay", ["wsd", "cosine", "none"])
def test_warm_up_is_a_line_from_one_share_to_the_peak(decay: str) -> None:
    rate = rates(decay=decay)
    assert rate[0] == pytest.approx(0.02)
    assert rate[49] == pytest.approx(1.0)
    assert rate[99] == max(rate) == pytest.approx(2.0)


def test_wsd_stays_and_falls_on_a_line_over_its_last_share() -> None:
    rate = rates(decay="wsd")
    assert set(rate[99:751]) == {2.0}
    assert rate[751] < 2.0
    assert rate[875] == pytest.approx(1.0)
    assert rate[999] == pytest.approx(2.0 / 250)


def test_cosine_is_half_way_in_the_middle_and_never_quite_ends() -> None:
    rate = rates(decay="cosine")
    assert rate[99 + 901 // 3] == pytest.approx(1 + math.cos(math.pi * 300 / 901))
    assert 0 < rate[999] < 2e-5
    assert all(later < now for now, later in pairwise(rate[99:]))


def test_no_decay_stays_for_ever() -> None:
    assert set(rates(decay="none")[99:]) == {2.0}


@pytest.mark.parametrize("decay", ["wsd", "cosine", "none"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_runs_have_rates_too(decay: str, steps: int) -> None:
    config = OptimizerConfig.model_validate({"decay": decay, "warm_up": 10})
    assert all(0 < config.factor_at(step, config.ending(steps)) <= 1 for step in range(steps))
    without = OptimizerConfig.model_validate({"decay": decay, "warm_up": 0})
    assert without.factor_at(0, config.ending(steps)) == 1


class Small(nn.Module):
    """One of each kind: an edge, an embedding, a kernel, a matrix, vectors, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = edge(nn.Conv2d(3, 4, 3))
        self.words = nn.Embedding(7, 4)
        self.position_embedding = nn.Parameter(torch.ones(5, 4))
        self.kernel = nn.Conv2d(4, 6, 3)
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(5)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def holders(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, list[str]]:
    """Which optimizers hold each parameter."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    held: dict[str, list[str]] = {name: [] for name in names.values()}
    for optimizer in optimizers:
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            held[names[id(parameter)]].append(type(optimizer).__name__)
    return held


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_every_trainable_parameter_is_held_once_and_muon_holds_the_hidden_matrices(matrices: str) -> None:
    module = Runtime(torch.device("cpu"), channels_last=True).place(Small())
    held = holders(module, build(module, OptimizerConfig.model_validate({"matrices": matrices})))
    assert {name for name, by in held.items() if by == []} == {"frozen.weight", "frozen.bias"}
    assert all(len(by) <= 1 for by in held.values())
    hidden = {"kernel.weight", "linear.weight"} if matrices == "muon" else set()
    assert {name for name, by in held.items() if by == ["Muon"]} == hidden


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_matrices_are_decayed_vectors_are_not_and_the_frozen_is_left_alone(matrices: str) -> None:
    module = Small()
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    config = OptimizerConfig.model_validate(
        {"rate": 0.1, "matrix_rate": 0.1, "weight_decay": 0.5, "matrices": matrices}
    )
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what still moves is decay
    for optimizer in build(module, config):
        optimizer.step()
    for name, parameter in module.named_parameters():
        decayed = parameter.requires_grad and parameter.ndim > 1
        torch.testing.assert_close(parameter, before[name] * (1 - 0.1 * 0.5 if decayed else 1))


def test_two_steps_of_adamw_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    (optimizer,) = build(module, OptimizerConfig(rate=0.1, weight_decay=0.0, betas=(0.8, 0.9)))
    first, second, weight = 0.0, 0.0, 1.0
    for step, gradient in enumerate((0.5, -2.0), start=1):
        module.weight.grad = torch.full_like(module.weight, gradient)
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        weight -= 0.1 * (first / (1 - 0.8**step)) / (math.sqrt(second / (1 - 0.9**step)) + 1e-8)
        assert module.weight.item() == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 16), (16, 5)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize(("arithmetic", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)], ids=str)
def test_orthogonalise_brings_singular_values_near_1_and_keeps_directions(
    rows: int, columns: int, size: float, arithmetic: torch.dtype, rounding: float
) -> None:
    """Whatever the size of the gradient."""
    generator = torch.Generator().manual_seed(0)
    rank = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(3, n, rank, generator=generator)).Q for n in (rows, columns))
    made = orthogonalise(
        size * left @ torch.diag_embed(torch.linspace(0.1, 1, rank).expand(3, -1)) @ right.mT, arithmetic
    )
    assert made.shape == (3, rows, columns)
    assert made.dtype == torch.float32
    inside = left.mT @ made @ right  # diagonal where the directions are kept
    values = inside.diagonal(dim1=1, dim2=2)
    assert 0.65 < values.min() < values.max() < 1.25
    torch.testing.assert_close(inside, torch.diag_embed(values), rtol=0, atol=rounding)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (6, 2, 3, 3)], ids=str)
def test_two_steps_of_muon_by_hand(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = Muon([parameter], rate=0.1, momentum=0.9, weight_decay=0.5)
    average, expected = torch.zeros(shape), parameter.detach().clone()
    for _ in range(2):
        parameter.grad = torch.randn(shape, generator=generator)
        average = 0.9 * average + 0.1 * parameter.grad
        direction = orthogonalise((0.1 * parameter.grad + 0.9 * average).flatten(1)[None])[0].view(shape)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * max(1, shape[0] / average[0].numel()) ** 0.5 * direction
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-5)


def test_set_rates_gives_every_group_its_share_of_its_own_peak() -> None:
    optimizers = build(Small(), OptimizerConfig(matrices="muon", rate=2e-3, matrix_rate=3e-2))
    set_rates(optimizers, 0.5)
    assert [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers] == [[1e-3, 1e-3], [1.5e-2]]


@pytest.mark.parametrize(("limit", "left"), [(0.0, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_clip_leaves_at_most_the_limit_of_the_norm_there_was(limit: float, left: float) -> None:
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
    one.grad, two.grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
    norm = norm_of_gradients([one, two, nn.Parameter(torch.zeros(1))])
    assert norm.item() == pytest.approx(5.0)
    clip([one, two], limit, norm)
    assert math.hypot(one.grad.norm(), two.grad.norm()) == pytest.approx(left, rel=1e-4)
    assert (two.grad[1] / one.grad[0]).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"warm_up": -1},
        {"decay": "linear"},
        {"decay_share": 0.0},
        {"clip": -1.0},
        {"matrix_rate": 0.0},
        {"momentum": 1.0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        OptimizerConfig.model_validate(wrong)

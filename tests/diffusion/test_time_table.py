"""Importance sampling of times: what the table draws, what it learns, and that the expected loss stays what it was."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion.loss import add_noise
from diffusion.parameterization import V
from diffusion.schedule import Cosine, Flow
from diffusion.stage import DiffusionConfig, DiffusionStage
from diffusion.text_to_image import TextToImage
from diffusion.times import AnyBase, LogitNormalTimes, LogNormalTimes, LossSecondMomentTimes, TimeTable, UniformTimes
from lab.config import parse
from lab.data.loader import Batch
from lab.errors import Refused
from lab.runtime import Runtime
from vae.codec import Pixels

Tiny = Callable[..., TextToImage]

U = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
SIZES = torch.tensor([3.0, 0.0, 1.0, 12.0], dtype=torch.float64)  # of the losses of four bins
MIDDLES = torch.tensor([1 / 8, 3 / 8, 5 / 8, 7 / 8])


def learned(sizes: Tensor = SIZES, floor: float = 0.1) -> TimeTable:
    """A table that has seen a loss of one size in each bin."""
    table = TimeTable(LossSecondMomentTimes(bins=len(sizes), history=2, floor=floor))
    quantile = (torch.arange(len(sizes)) + 0.5) / len(sizes)
    for _ in range(2):
        table.learn(quantile, sizes)
    return table


def test_until_every_bin_has_its_history_the_base_is_drawn() -> None:
    table = TimeTable(LossSecondMomentTimes(bins=4, history=3))
    for _ in range(5):
        table.learn(MIDDLES[:3], SIZES[:3])
    for _ in range(2):
        table.learn(MIDDLES[3:], SIZES[3:])
    assert table.rates().tolist() == [1, 1, 1, 1]
    assert torch.equal(table.quantile(U.float()), U.float())
    table.learn(MIDDLES[3:], SIZES[3:])
    assert (table.rates() != 1).all()


def test_rates_are_root_mean_squares_over_their_mean_and_a_floor() -> None:
    table = TimeTable(LossSecondMomentTimes(bins=2, history=2, floor=0.2))
    table.learn(torch.tensor([0.1, 0.6, 0.4, 0.9]), torch.tensor([0.0, 1.0, 2.0, 1.0]))
    size = torch.tensor([2**0.5, 1.0], dtype=torch.float64)  # of the losses 0 and 2, and of 1 and 1
    torch.testing.assert_close(table.rates(), 0.8 * size / size.mean() + 0.2)
    assert table.rates().mean().item() == pytest.approx(1)
    torch.testing.assert_close(learned().rates(), 0.9 * SIZES / 4 + 0.1)


def test_the_latest_losses_count_in_the_order_they_came() -> None:
    table = TimeTable(LossSecondMomentTimes(bins=2, history=3))
    table.learn(torch.tensor([0.2, 0.7, 0.3, 0.2, 0.2, 0.2]), torch.tensor([9.0, 5.0, 1.0, 2.0, 3.0, 4.0]))
    assert table.memory["losses"].tolist() == [[3, 4, 2], [5, 0, 0]]
    assert table.memory["counts"].tolist() == [5, 1]


def test_what_is_learned_is_the_loss_before_its_division() -> None:
    table = learned()
    rate = table.rate(MIDDLES)
    table.learn(MIDDLES, SIZES / rate)
    torch.testing.assert_close(table.memory["losses"], SIZES[:, None].expand(4, 2))


def test_losses_of_zero_everywhere_leave_the_base() -> None:
    assert learned(torch.zeros(4)).rates().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_bin_is_drawn_at_its_rate_and_evenly_within(dtype: torch.dtype) -> None:
    table = learned()
    quantile = table.quantile(U.to(dtype))
    assert quantile.dtype == dtype
    assert (quantile.diff() >= 0).all()
    counts = torch.histc(quantile.double(), 32, 0, 1) / len(U) * 32
    torch.testing.assert_close(counts, table.rates().repeat_interleave(8), rtol=0, atol=1e-3)
    ends = table.quantile(torch.tensor([0.0, 1 - 2**-24]))
    assert ends[0] == 0
    assert 0.99 < ends[1] < 1


def test_divided_by_its_rate_the_mean_of_a_loss_is_that_of_the_base_and_undivided_it_is_not() -> None:
    table, exact = learned(), 1 / 3  # the mean of q^2
    quantile = table.quantile(U)
    loss = quantile**2
    assert (loss / table.rate(quantile)).mean().item() == pytest.approx(exact, rel=1e-4)
    assert loss.mean().item() > 1.5 * exact


def test_a_loss_that_hangs_on_the_level_alone_loses_all_its_noise() -> None:
    """The optimum of importance sampling, with hardly a floor: every divided loss is the mean."""
    table = learned(floor=1e-9)
    quantile = table.quantile(U)
    divided = SIZES[(quantile * 4).long()] / table.rate(quantile)
    torch.testing.assert_close(divided, torch.full_like(divided, 4.0))


@pytest.mark.parametrize("base", [UniformTimes(), LogitNormalTimes(mean=0.4), LogNormalTimes()], ids=lambda b: b.kind)
def test_as_a_distribution_it_is_its_base(base: AnyBase) -> None:
    times, t = LossSecondMomentTimes(base=base), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert torch.equal(times(U, Cosine()), base(U, Cosine()))
    assert torch.equal(times.density(t, Cosine()), base.density(t, Cosine()))


# --- in the stage


class Silent(nn.Module):
    """Says 0, so that the loss is the mean square of the target."""

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor, frames: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(x_t), None


def grey(slots: range, side: int = 4) -> Batch:
    """Images of x0 = 0."""
    images = torch.zeros(len(slots), 3, side, side, dtype=torch.float64)
    return Batch(images, ("",) * len(slots), tuple(slots), ("",) * len(slots), seed=0)


def stage(model: nn.Module, **settings: object) -> DiffusionStage:
    settings = {"times": {"kind": "loss_second_moment", "bins": 4, "history": 2}, "caption_drop": 0, **settings}
    return DiffusionStage(DiffusionConfig.model_validate(settings), model, Pixels(), 8, Runtime(torch.device("cpu")))


def teach(made: DiffusionStage) -> None:
    for _ in range(2):
        made.after_step({"quantile": MIDDLES, "loss": SIZES})


@pytest.mark.parametrize("stratified", [False, True])
def test_the_expected_loss_is_unchanged_and_without_the_division_it_is_not(stratified: bool, tiny: Tiny) -> None:
    """For x0 = 0 on flow the target is v = alpha noise / sqrt(alpha^2 + sigma^2), whose mean square is 1/2 over t."""
    made = stage(tiny(), schedule=Flow(), parameterization=V(), loss={"stratified": stratified})
    teach(made)
    made.players["model"] = Silent()
    losses, said = made.loss("model", grey(range(20_000), side=1))
    error = losses.std().item() / 20_000**0.5
    assert error < 0.008
    assert abs(losses.mean().item() - 0.5) < 3 * error
    assert made.table is not None
    undivided = losses * made.table.rate(said["quantile"])
    assert abs(undivided.mean().item() - 0.5) > 30 * error


def test_times_are_a_function_of_slot_and_table_and_a_loss_changes_neither(tiny: Tiny) -> None:
    made = stage(tiny().double())
    teach(made)
    before = {name: tensor.clone() for name, tensor in made.memory.items()}
    losses, said = made.loss("model", grey(range(8)))
    again, same = made.loss("model", grey(range(8)))
    assert torch.equal(losses, again)
    assert torch.equal(said["quantile"], same["quantile"])
    alone, here = made.loss("model", grey(range(5, 6)))
    torch.testing.assert_close((alone, here["quantile"]), (losses[5:6], said["quantile"][5:6]))
    assert all(torch.equal(made.memory[name], tensor) for name, tensor in before.items())
    table, config = TimeTable(LossSecondMomentTimes(bins=4, history=2)), made.config
    for _ in range(2):
        table.learn(MIDDLES, SIZES)
    drawn = add_noise(torch.zeros(8, 3, 1, 1), range(8), 0, config.schedule, config.times, config.loss, table)
    assert torch.equal(drawn.quantile, said["quantile"])
    assert torch.equal(drawn.t, UniformTimes()(drawn.quantile, config.schedule))


def test_a_step_teaches_the_table_its_own_losses(tiny: Tiny) -> None:
    made = stage(tiny().double())
    teach(made)
    losses, said = made.loss("model", grey(range(8)))
    assert made.table is not None
    expected = learned()
    expected.learn(said["quantile"], losses)
    made.after_step({"loss": losses, **said})
    torch.testing.assert_close(dict(made.memory), dict(expected.memory))
    assert made.memory["counts"].sum() == 16


def test_a_stage_with_fixed_times_remembers_nothing(tiny: Tiny) -> None:
    made = stage(tiny().double(), times={"kind": "logit_normal"})
    losses, said = made.loss("model", grey(range(2)))
    assert (made.memory, said) == ({}, {})
    made.after_step({"loss": losses})


@pytest.mark.parametrize(
    ("times", "answer"),
    [
        ({"bins": 1}, "times.bins: must be greater than or equal to 2"),
        ({"floor": 0}, "times.floor: must be greater than 0"),
        ({"history": 0}, "times.history: must be greater than or equal to 1"),
        ({"base": {"kind": "loss_second_moment"}}, "times.base: unknown kind 'loss_second_moment'"),
        ({"base": {"kind": "log_normal", "mean": 30}}, "lie mostly beyond the noise levels"),
    ],
)
def test_impossible_settings_are_refused(times: dict[str, object], answer: str) -> None:
    with pytest.raises(Refused, match=answer):
        parse({"times": {"kind": "loss_second_moment", **times}}, DiffusionConfig)

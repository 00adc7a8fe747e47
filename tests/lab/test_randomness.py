"""Randomness is a function of (seed, stream, counter), and of nothing else."""

import hashlib

import pytest
import torch

from lab import randomness
from lab.randomness import key, normal, number, seeded, standard_normal, stratified, uniform

SLOTS = range(20_000)


def test_a_number_is_the_start_of_a_published_hash() -> None:
    digest = hashlib.blake2b(b"7/noise/123", digest_size=16).digest()
    assert number(7, "noise", 123) == int.from_bytes(digest, "little")


def test_equal_keys_draw_equal_numbers_and_others_do_not() -> None:
    def draw(*name) -> torch.Tensor:
        return standard_normal(key(*name), (4,))

    assert torch.equal(draw(0, "t", 5), draw(0, "t", 5))
    names = [
        (0, "t", 5),
        (1, "t", 5),
        (0, "noise", 5),
        (0, "t", 6),
        (-1, "t", 5),
        (5, "t", 0),
        (0, "t/5", 0),
        (2**70, "t", 5),
    ]
    assert len({tuple(draw(*name).tolist()) for name in names}) == len(names)


def test_numbers_of_many_counters_are_all_different() -> None:
    assert len({number(0, stream, slot) for stream in ("t", "noise") for slot in SLOTS}) == 2 * len(SLOTS)
    assert all(0 <= number(0, "t", slot) < 2**128 for slot in SLOTS)


@pytest.mark.parametrize("bit", [0, 31, 32, 63, 64, 127])
def test_every_bit_of_a_number_counts(monkeypatch: pytest.MonkeyPatch, bit: int) -> None:
    """Torch's own generator would drop all but 32."""
    before = normal(0, "noise", [7], (4,))
    flipped = number(0, "noise", 7) ^ (1 << bit)
    monkeypatch.setattr("lab.randomness.number", lambda seed, stream, counter: flipped)
    assert not torch.equal(normal(0, "noise", [7], (4,)), before)


def test_uniform_fills_0_to_1_evenly() -> None:
    u = uniform(0, "t", SLOTS)
    assert u.dtype == torch.float32
    assert 0 <= u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    distance = (u.double().sort().values - (torch.arange(len(u)) + 0.5) / len(u)).abs().max().item()
    assert distance < 1.95 / len(u) ** 0.5  # Kolmogorov-Smirnov, one in a thousand


def test_uniform_never_rounds_up_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.randomness.number", lambda seed, stream, counter: 2**128 - 1)
    assert uniform(0, "t", [0]).item() == 1 - 2**-24


def test_streams_and_neighbours_are_independent() -> None:
    """Correlations of 20,000 independent pairs have a standard deviation of 0.007."""
    u = uniform(0, "t", SLOTS)
    others = [uniform(0, "caption_drop", SLOTS), uniform(1, "t", SLOTS), normal(0, "t", SLOTS, (1,))[:, 0], u.roll(1)]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([u, other]))[0, 1].item()) < 0.03


def test_normal_is_standard() -> None:
    z = normal(0, "noise", range(500), (3, 8, 8)).double()
    n = z.numel()
    assert abs(z.mean().item()) < 4 / n**0.5
    assert abs(z.var().item() - 1) < 4 * (2 / n) ** 0.5


def test_a_row_depends_on_its_slot_alone() -> None:
    for draw in (lambda slots: normal(3, "noise", slots, (2, 5)), lambda slots: uniform(3, "t", slots)):
        together = draw([8, 2, 9])
        assert torch.equal(together[1:2], draw([2]))
        assert torch.equal(together.flip(0), draw([9, 2, 8]))


def test_several_threads_draw_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    one = normal(3, "noise", range(5, 45), (3, 64, 64))
    monkeypatch.setattr(randomness, "MANY", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert torch.equal(normal(3, "noise", range(5, 45), (3, 64, 64)), one)
    assert normal(3, "noise", [5], ()).shape == (1,)


def test_keys_do_not_touch_the_global_generator_and_seeded_gives_it_back() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    normal(0, "noise", [1, 2], (4,))
    with seeded(0, "weights"):
        first = torch.randn(4)
    assert torch.equal(torch.randn(3), expected)
    with seeded(0, "weights"):
        assert torch.equal(torch.randn(4), first)
    with seeded(0, "weights", 1):
        assert not torch.equal(torch.randn(4), first)


def test_seeded_gives_the_generator_back_after_a_failure() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(0, "weights"):
        torch.randn(len("x") // 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("power", [0, 1, 4, 9])
def test_stratified_numbers_fall_one_into_each_part(power: int) -> None:
    size = 2**power
    for start in (0, size, 10 * size, 2**16 - size, 2**20):
        drawn = stratified(3, "t", range(start, start + size))
        assert (drawn * size).floor().sort().values.tolist() == list(range(size))


def test_stratified_numbers_depend_on_their_slot_alone() -> None:
    together = stratified(3, "t", [5, 99, 70_000])
    assert torch.equal(together, torch.cat([stratified(3, "t", [slot]) for slot in (5, 99, 70_000)]))
    assert not torch.isclose(together, stratified(4, "t", [5, 99, 70_000])).any()
    assert not torch.isclose(together, stratified(3, "u", [5, 99, 70_000])).any()


def test_each_stratified_number_is_uniform_over_the_seeds() -> None:
    drawn = torch.cat([stratified(seed, "t", [0, 6, 2**16]) for seed in range(1000)]).view(-1, 3).double()
    assert ((drawn >= 0) & (drawn < 1)).all()
    for column in drawn.T:
        assert column.mean().item() == pytest.approx(0.5, abs=4 / (12 * 1000) ** 0.5)
        assert ((column * 8).floor().long().bincount(minlength=8) - 125).abs().max() < 4 * 125**0.5
    assert not torch.equal(drawn[:, 0], drawn[:, 2])  # 2^16 slots on, the part is the same, the place in it is not

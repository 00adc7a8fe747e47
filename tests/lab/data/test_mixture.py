"""Slots are shared out exactly, and every part runs through its own samples in its own order."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from lab.config import parse
from lab.data.mixture import PERIOD, Mixture, MixtureConfig, shares
from lab.data.shapes import Shapes, ShapesConfig
from lab.data.source import Fault, Sample
from lab.data.sources import source
from lab.errors import Refused


class Numbers:
    """Samples that tell their slot."""

    def __init__(self, name: str, num: int | None = 5) -> None:
        self.fingerprint, self.num = name, num

    def sample(self, seed: int, slot: int) -> Sample:
        faults = (Fault(slot, "bad", "broken image", "", ""),) if slot == 3 else ()
        return Sample(torch.zeros(3, 1, 1), f"{seed}", str(slot), faults=faults)

    def captions(self) -> Iterable[str]:
        return [f"of {self.fingerprint}"]


def mixture(**weights: float) -> Mixture:
    return Mixture(weights, {name: Numbers(name) for name in weights})


@pytest.mark.parametrize(
    "weights",
    [{"a": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 500, "b": 1}],
)
def test_every_part_gets_its_slots_one_after_another_and_evenly(weights: dict[str, float]) -> None:
    made, counts = mixture(**weights), Counter[str]()
    given = shares(weights)
    assert sum(given.values()) == PERIOD
    for slot in range(3 * PERIOD + 100):
        name, own = made.place(slot)
        assert own == counts[name]
        counts[name] += 1
        for part, share in given.items():
            assert abs(counts[part] - share * (slot + 1) / PERIOD) < len(weights)
    for name, weight in weights.items():
        assert given[name] / PERIOD == pytest.approx(weight / sum(weights.values()), abs=1 / PERIOD)


def test_any_slot_is_found_without_those_before_it() -> None:
    made = mixture(a=2.0, b=1.0)
    slot = 10**12 * PERIOD
    assert [made.place(slot + k)[1] - 10**12 * shares({"a": 2.0, "b": 1.0})[made.place(k)[0]] for k in range(6)] == [
        made.place(k)[1] for k in range(6)
    ]


def test_samples_and_faults_are_named_by_their_part() -> None:
    made = mixture(a=1.0, b=1.0)
    samples = [made.sample(0, slot) for slot in range(8)]
    assert [sample.id for sample in samples] == [f"{name}/{own}" for name, own in map(made.place, range(8))]
    assert len({sample.caption for sample in samples}) == 2  # each has a seed of its own
    assert [(f.slot, f.id) for sample in samples for f in sample.faults] == [(6, "a/bad"), (7, "b/bad")]


def test_it_is_as_large_as_its_parts_and_says_what_they_say() -> None:
    made = mixture(a=1.0, b=1.0)
    assert made.num == 10
    assert Mixture({"a": 1, "b": 1}, {"a": Numbers("a"), "b": Numbers("b", None)}).num is None
    assert list(made.captions()) == ["of a", "of b"]
    assert len({made.fingerprint, mixture(a=1.0, b=2.0).fingerprint, mixture(a=1.0, c=1.0).fingerprint}) == 3


def test_a_mixture_is_configured_by_names() -> None:
    shapes = {"kind": "shapes", "size": 16}
    config = parse(
        {"size": 16, "parts": {"few": shapes, "many": shapes}, "weights": {"few": 1, "many": 3}}, MixtureConfig
    )
    made = source(config)
    sample = made.sample(0, 0)
    assert sample.id.startswith("many/shapes-train-")
    world = Shapes(ShapesConfig(size=16))
    assert made.num is None
    assert sample.image.shape == world.sample(0, 0).image.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": {"a": 1.0}}, "weights are to name a, b; they name a"),
        ({"weights": {"a": 1.0, "b": 0.0}}, "must be greater than 0"),
        ({"weights": {"a": 1.0, "b": 1e-5}}, r"weights\.b is less than 1/1024 of all"),
        ({"size": 32}, r"parts\.a\.size=16, but size=32"),
        ({"parts": {}, "weights": {}}, "parts"),
        ({"parts": {"a": {"kind": "mixture"}}}, "unknown kind 'mixture'"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(change: Any, words: str) -> None:
    part = {"kind": "shapes", "size": 16}
    tree = {"size": 16, "parts": {"a": part, "b": part}, "weights": {"a": 1.0, "b": 1.0}, **change}
    with pytest.raises(Refused, match=words):
        parse(tree, MixtureConfig)

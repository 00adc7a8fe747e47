"""How sure the distance to the world's law is."""

from collections import Counter

import pytest
import torch

from lab.data.shapes_render import render
from lab.data.shapes_scene import GROUNDS, Object, Scene
from lab.evaluation import diversity as module
from lab.evaluation.diversity import _cells, _margin, diversity, total_variation
from lab.randomness import key


def grounds(trial: int, n: int, favoured: float) -> list[str]:
    """Cells of pictures whose ground is the first tint with this probability, else any."""
    draw, tints = key(0, "test", trial), list(GROUNDS)
    chosen = [tints[0] if draw.random() < favoured else tints[int(draw.random() * len(tints))] for _ in range(n)]
    return _cells([Scene(ground, (Object("red", "circle", 16, 16, 8),)) for ground in chosen], "ground")


def test_the_interval_covers_the_distance_to_be_expected() -> None:
    law = Counter(list(GROUNDS))
    trials = 250
    drawn = [grounds(trial, 120, 0.4) for trial in range(trials)]
    values = [total_variation(Counter(each), law) for each in drawn]
    expected = sum(values) / trials
    covered = sum(abs(value - expected) <= _margin(each, law) for value, each in zip(values, drawn, strict=True))
    assert 0.91 <= covered / trials <= 1.0
    margins = [_margin(each, law) for each in drawn[:20]]
    assert 0.05 < sum(margins) / 20 < 0.2


def test_one_picture_says_nothing() -> None:
    assert _margin(grounds(0, 1, 0.0), Counter(grounds(1, 50, 0.0))) == 1.0


def test_renders_and_law_are_those_of_the_seed_and_of_the_number_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same as often as they are asked for."""
    monkeypatch.setattr(module, "NUM_SCENES", 100)
    image = torch.from_numpy(render(Scene("mint", (Object("red", "circle", 16, 16, 8),)), 32))
    asked = [(91, 3), (92, 3), (91, 4), (91, 3)]  # seeds that nobody else asks for
    found = [diversity([image] * num, "a red circle", seed) for seed, num in asked]
    assert found[0] == found[3]
    assert len({str(each["position"]) for each in found}) == 3
    assert len({each["position"].tv for each in found}) > 1

"""How sure the distance to the world's law is."""

from lab.data.shapes_scene import GROUNDS, Object, Scene
from lab.evaluation.diversity import _histogram, _margin, total_variation
from lab.randomness import key


def scenes(trial: int, n: int, favoured: float) -> list[Scene | None]:
    """Pictures whose ground is the first tint with this probability, else any."""
    draw, tints = key(0, "test", trial), list(GROUNDS)
    grounds = [tints[0] if draw.random() < favoured else tints[int(draw.random() * len(tints))] for _ in range(n)]
    return [Scene(ground, (Object("red", "circle", 16, 16, 8),)) for ground in grounds]


def test_the_interval_covers_the_distance_to_be_expected() -> None:
    law = _histogram([Scene(tint, (Object("red", "circle", 16, 16, 8),)) for tint in GROUNDS], "ground")
    trials = 250
    drawn = [scenes(trial, 120, 0.4) for trial in range(trials)]
    values = [total_variation(_histogram(each, "ground"), law) for each in drawn]
    expected = sum(values) / trials
    covered = sum(
        abs(value - expected) <= _margin(each, "ground", law) for value, each in zip(values, drawn, strict=True)
    )
    assert 0.91 <= covered / trials <= 1.0
    margins = [_margin(each, "ground", law) for each in drawn[:20]]
    assert 0.05 < sum(margins) / 20 < 0.2


def test_one_picture_says_nothing() -> None:
    assert _margin(scenes(0, 1, 0.0), "ground", _histogram(scenes(1, 50, 0.0), "ground")) == 1.0

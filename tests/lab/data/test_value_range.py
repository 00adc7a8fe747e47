"""Data whose images lost their black is told apart from data that is in order."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from lab.data.shapes import Shapes, ShapesConfig
from lab.data.source import Sample
from lab.data.value_range import DARKEST, check_range
from lab.errors import Refused


@dataclass
class Levels:
    """A source of images of one level each, the first of them once, the last for ever."""

    levels: Sequence[float]
    num: int | None = None
    fingerprint: str = "levels"
    looked_at: int = 0

    def sample(self, seed: int, slot: int) -> Sample:
        self.looked_at += 1
        level = self.levels[min(slot, len(self.levels) - 1)]
        return Sample(torch.full((3, 2, 2), level), "", f"number {slot}")

    def captions(self) -> Sequence[str]:
        return ()


def test_one_dark_place_is_enough_and_no_further_image_is_looked_at() -> None:
    source = Levels([0.9, 0.0, DARKEST - 0.01, 0.5])
    check_range(source, seed=0)
    assert source.looked_at == 3
    check_range(Shapes(ShapesConfig(size=16)), seed=0)


@pytest.mark.parametrize(("num", "asked"), [(None, 20), (20, 1000), (7, 7)])
def test_images_without_black_are_refused_with_the_remedy(num: int | None, asked: int) -> None:
    source = Levels([0.9, DARKEST + 0.01, 0.5], num)
    with pytest.raises(Refused, match=r"none of the first \d+ images goes below -0\.09, .* --allow-range"):
        check_range(source, seed=0, num=asked)
    assert source.looked_at == min(asked, num or asked)


@pytest.mark.parametrize("level", [1.5, -2.0, 255.0, float("nan")])
def test_values_beyond_the_range_are_refused_by_name(level: float) -> None:
    with pytest.raises(Refused, match=r"image number 1 has values from .* beyond \[-1, 1\]"):
        check_range(Levels([0.5, level]), seed=0)

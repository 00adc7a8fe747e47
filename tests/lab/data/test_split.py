"""What is held out is a function of the group alone."""

import numpy as np
import pytest

from lab.data.split import place, plain


@pytest.mark.parametrize(
    "captions",
    [
        ("woman running", "man running", "Person running: medium-dark skin tone", "running"),
        ("waving hand", "waving hand: light skin tone", "waving hand: medium skin tone"),
        ("man", "woman", "boy", ""),
        ("woman's hat", "mans hat"),
    ],
)
def test_near_twins_are_of_one_group(captions: tuple[str, ...]) -> None:
    assert len({plain(caption) for caption in captions}) == 1


def test_other_words_make_other_groups() -> None:
    captions = ("human running", "manual", "dark moon", "light bulb", "medium size", "romance", "a boyish grin")
    assert len({plain(caption) for caption in captions}) == len(captions)
    assert plain("Manual, in Dark!") == "manual in dark"


def test_places_are_even_and_never_change() -> None:
    places = np.array([place(f"group {k}") for k in range(4000)])
    assert np.histogram(places, 4, (0, 1))[0] == pytest.approx(1000, abs=120)
    assert (
        place("running") == 0.43125959060018004
    )  # recorded: a change would move samples between the sides of every run

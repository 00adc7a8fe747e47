"""Captions are chosen by kind, share and template, and read with care."""

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from lab.data.caption import CaptionConfig, choose, of_fields, spoken
from lab.data.source import BadSample
from lab.randomness import key

BOTH = (("short", "a fox"), ("long", "a fox: red, quick"))
FIVE = tuple(("caption", f"caption {k}") for k in range(5))


def drawn(captions: Any, num: int = 2000, **settings: Any) -> Counter[tuple[str, str]]:
    config = CaptionConfig(**settings)
    return Counter(choose(captions, config, key(1, "caption", slot)) for slot in range(num))


def test_every_caption_is_as_likely_as_another() -> None:
    counts = drawn(FIVE)
    assert len(counts) == 5
    assert max(abs(count - 400) for count in counts.values()) < 80


def test_kinds_come_in_their_shares() -> None:
    counts = drawn(BOTH, kinds={"short": 3.0, "long": 1.0})
    assert counts["short", "a fox"] == pytest.approx(1500, abs=80)
    assert counts.total() == 2000


def test_where_a_kind_is_missing_the_others_share_its_part() -> None:
    assert drawn(BOTH[:1], num=50, kinds={"short": 0.1, "long": 0.9}) == {("short", "a fox"): 50}
    assert drawn((*BOTH, ("tags", "fox")), num=50, kinds={"tags": 1.0, "short": 0.0}) == {("tags", "fox"): 50}


def test_the_captions_of_one_kind_are_alike() -> None:
    counts = drawn((*FIVE, *BOTH), kinds={"caption": 1.0, "short": 1.0})
    assert counts["short", "a fox"] == pytest.approx(1000, abs=90)
    assert counts["caption", "caption 3"] == pytest.approx(200, abs=60)


def test_templates_stand_around_the_caption_but_not_around_nothing() -> None:
    counts = drawn(BOTH[:1], templates=("{caption}", "a drawing of {caption}, or {caption}"))
    assert counts["short", "a fox"] == pytest.approx(1000, abs=90)
    assert counts["short", "a drawing of a fox, or a fox"] == pytest.approx(1000, abs=90)
    assert drawn((("caption", ""),), num=5, templates=("a drawing of {caption}",)) == {("caption", ""): 5}


def test_all_that_may_be_said_is_listed() -> None:
    config = CaptionConfig(kinds={"short": 1.0, "tags": 0.0}, templates=("{caption}", "see {caption}"))
    assert list(spoken((*BOTH, ("tags", "t"), ("short", "")), config)) == ["a fox", "see a fox"]


@pytest.mark.parametrize(
    ("captions", "settings", "reason"),
    [((), {}, "no caption"), (BOTH, {"kinds": {"tags": 1.0}}, "no caption of these kinds")],
)
def test_a_picture_without_a_fitting_caption_is_bad(captions: Any, settings: Any, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        choose(captions, CaptionConfig(**settings), key(0, "caption", 0))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("fields", "settings", "expected"),
    [
        ({"caption": " a fox "}, {}, [("caption", "a fox")]),
        ({"captions": ["a", "b"], "caption": None}, {}, [("caption", "a"), ("caption", "b")]),
        ({"captions": ["a", "b", "c"]}, {"positions": ("x", "y")}, [("x", "a"), ("y", "b"), ("caption", "c")]),
        (
            {"caption": "a", "tags": ["b", "c"], "other": "d"},
            {"kinds": {"tags": 1.0}},
            [("caption", "a"), ("tags", "b"), ("tags", "c")],
        ),
        ({"caption": ""}, {}, [("caption", "")]),
        ({"title": "a", "captions": []}, {}, []),
        ({"caption": "a"}, {"kinds": {"caption": 1.0}}, [("caption", "a")]),
    ],
)
def test_metadata_holds_captions_of_kinds(fields: Any, settings: Any, expected: Any) -> None:
    assert of_fields(fields, CaptionConfig(**settings)) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"caption": 3}, "caption is not a text"),
        ({"captions": ["a", {}]}, "caption is not a text"),
        ({"caption": "caf\udce9"}, "caption is not UTF-8"),
    ],
)
def test_a_caption_that_cannot_be_read_is_bad(fields: Any, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        of_fields(fields, CaptionConfig())
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "settings",
    [{"kinds": {"a": 0.0}}, {"kinds": {"a": -1.0, "b": 2.0}}, {"templates": ("a drawing",)}, {"templates": ()}],
)
def test_shares_and_templates_that_cannot_be_are_refused(settings: Any) -> None:
    with pytest.raises(ValidationError):
        CaptionConfig(**settings)

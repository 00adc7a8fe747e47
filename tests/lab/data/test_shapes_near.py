"""Near misses differ in one thing, are false, and come in every kind."""

from collections import Counter
from functools import partial

import pytest

from lab.data.shapes import Shapes, ShapesConfig
from lab.data.shapes_captions import HELDOUT, meaning, parse, phrasings, say, sense
from lab.data.shapes_near import KINDS, falsified, near_misses
from lab.data.shapes_scene import Noun, Scene, Statement, most_large
from lab.evaluation.prompt_accuracy import compare
from lab.randomness import key

WORLD = Shapes(ShapesConfig(mixture={"single": 0.2, "pair": 0.3, "count": 0.1, "full": 0.4}), "heldout")
PAIR = "in the picture a red circle sits left of two small blue squares"


def is_false(scene: Scene, statement: Statement) -> bool:
    return not all(compare(scene, statement).values())


def test_near_misses_are_false_different_and_of_every_kind() -> None:
    seen: Counter[str] = Counter()
    for slot in range(60):
        scene, caption = WORLD.scene(0, slot)
        found = near_misses(caption, 15, key(0, "test", slot), partial(is_false, scene))
        assert len({meaning(each.caption) for each in found} | {meaning(caption)}) == 16
        assert all(parse(each.caption) == each.statement for each in found)
        assert all(is_false(scene, each.statement) for each in found)
        seen.update(each.kind for each in found)
    assert set(seen) == set(KINDS)


def test_each_kind_changes_what_it_says() -> None:
    found = near_misses(PAIR, 25, key(0, "test", 0), lambda _: True)
    by_kind = {kind: {each.caption for each in found if each.kind == kind} for kind in KINDS}
    assert by_kind["swapped colours"] == {"in the picture a blue circle sits left of two small red squares"}
    assert by_kind["swapped shapes"] == {"in the picture a red square sits left of two small blue circles"}
    assert by_kind["size"] == {"in the picture a red circle sits left of two large blue squares"}
    turned = {PAIR.replace("left of", "right of"), "in the picture two small blue squares sit left of a red circle"}
    relations = by_kind["relation"] - turned
    assert relations == {PAIR.replace("left of", other) for other in ("above", "below")}
    assert len(by_kind["relation"] & turned) == 1  # they say the same
    assert "in the picture two red circles sit left of two small blue squares" in by_kind["count"]
    with pytest.raises(ValueError, match="near misses, not 500"):
        near_misses(PAIR, 500, key(0, "test", 0), lambda _: True)


def test_what_is_falsified_is_false_of_every_picture_of_the_caption() -> None:
    for slot in range(1000):
        scene, caption = WORLD.scene(1, slot)
        for other in falsified(caption, 3, key(0, "test", slot)):
            assert is_false(scene, parse(other)), (caption, other)
    assert falsified(PAIR, 4, key(0, "a", 1)) == falsified(PAIR, 4, key(0, "a", 1))


def test_what_other_captions_do_not_teach_comes_first() -> None:
    swapped = {"a blue circle left of a red square", "a red square left of a blue circle"}
    turned: Counter[str] = Counter()
    for slot in range(40):
        found = set(falsified("a red circle left of a blue square", 3, key(0, "test", slot)))
        assert swapped < found
        turned.update(found - swapped)
    assert set(turned) == {"a red circle right of a blue square", "a blue square left of a red circle"}
    assert min(turned.values()) > 8  # or the word alone would tell, where a curriculum has one of them only
    assert len({tuple(falsified(PAIR, 2, key(0, "test", slot))) for slot in range(40)}) > 8  # in any order


def test_held_out_phrasings_have_near_misses_too() -> None:
    statement = parse(PAIR)
    templates = phrasings(statement, heldout=True)
    assert set(templates) <= set(HELDOUT)
    for template in templates.values():
        assert len(near_misses(say(statement, template), 15, key(0, "test", 0), lambda _: True)) == 15


def test_captions_of_one_meaning() -> None:
    red, blue = Noun("red", "circle"), Noun("blue", "square", 2)
    same = ["a red circle left of two blue squares", "two blue squares right of a red circle"]
    same += ["left of two blue squares there is a red circle"]
    assert len({meaning(caption) for caption in same}) == 1
    assert sense(Statement((red, blue))) == sense(Statement((blue, red)))
    others = [Statement((red, blue), "right of"), Statement((red, blue), "above"), Statement((red, blue))]
    assert len({sense(other) for other in others} | {meaning(same[0])}) == 4


def test_what_a_near_miss_states_has_room() -> None:
    """Three large things below a large one took a minute to be drawn."""
    caption = "below a large blue diamond we see a large yellow diamond"
    for miss in near_misses(caption, 15, key(0, "room", 0), lambda _: True):
        nouns = miss.statement.nouns
        large = sum(noun.count for noun in nouns if noun.size == "large")
        assert large <= most_large(sum(noun.count for noun in nouns))

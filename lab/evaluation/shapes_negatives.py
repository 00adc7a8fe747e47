"""Captions of the Shapes world that are nearly right: one thing is another, and false of the picture.

Who tells a caption from these has heard which colour is of which shape, how many there are, how large, and what stands
where; who tells it from those of other pictures may have heard two colours.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, cycle
from typing import NamedTuple

import numpy as np

from lab.data.shapes_captions import meaning, parse, phrasings, say
from lab.data.shapes_scene import COLOURS, RELATIONS, SHAPES, SIZES, Noun, Scene, Statement, draw
from lab.evaluation.prompt_accuracy import compare

KINDS = ("swapped colours", "swapped shapes", "relation", "size", "count", "colour", "shape")
MOST_OBJECTS = 4


class Negative(NamedTuple):
    """A caption that is nearly right, what is wrong with it, and what it states."""

    kind: str
    caption: str
    statement: Statement


def negatives(scene: Scene, caption: str, num: int, rng: np.random.Generator) -> list[Negative]:
    """Give different captions that are false of a scene, in the words of one that is true of it.

    Kinds take turns, so that each that is possible is there: those of ``KINDS``, the two swaps first.

    Args:
        scene: of the picture.
        caption: what is said of it.
        num: how many; any scene has 15.
        rng: the choice is a function of its state.

    Raises:
        Refused: the caption is none of this world.
        ValueError: there are not so many.
    """
    statement, words = parse(caption), " ".join(caption.lower().split())
    template = next(each for each in _templates(statement) if say(statement, each) == words)
    known, found = {meaning(caption)}, list[Negative]()
    options = {kind: _shuffled(list(_changed(statement, kind)), rng) for kind in KINDS}
    for kind in cycle(KINDS):
        if len(found) == num:
            return found
        if not any(options.values()):
            raise ValueError(f"{caption!r} has {len(found)} near misses, not {num}")
        while options[kind]:
            other: Statement = options[kind].pop()
            said = say(other, template)
            if meaning(said) not in known and not all(compare(scene, other).values()):
                known.add(meaning(said))
                found.append(Negative(kind, said, other))
                break
    raise AssertionError("a cycle does not end")


def scene_of(negative: Negative, caption: str, rng: np.random.Generator) -> Scene:
    """Draw a scene of which a negative is true, and of which the caption that it differs from is false."""
    statement = parse(caption)
    while all(compare(scene := draw(negative.statement, rng), statement).values()):
        pass
    return scene


def _templates(statement: Statement) -> Iterator[str]:
    for heldout in (False, True):
        yield from phrasings(statement, heldout=heldout).values()


def _shuffled(statements: list[Statement], rng: np.random.Generator) -> list[Statement]:
    return [statements[place] for place in rng.permutation(len(statements))]


def _changed(statement: Statement, kind: str) -> Iterator[Statement]:
    """Statements that differ in one thing, all of whose nouns differ in colour or shape."""
    if kind == "relation":
        yield from (replace(statement, relation=name) for name in RELATIONS if statement.relation)
        return
    for nouns in _nouns(statement.nouns, kind):
        if len({(noun.colour, noun.shape) for noun in nouns}) == len(nouns):
            yield replace(statement, nouns=nouns)


def _nouns(nouns: tuple[Noun, ...], kind: str) -> Iterator[tuple[Noun, ...]]:
    """Nouns of which two have exchanged something, or one has something else."""
    if kind.startswith("swapped"):
        field = "colour" if kind.endswith("colours") else "shape"
        for i, j in combinations(range(len(nouns)), 2):
            swapped = list(nouns)
            swapped[i] = replace(nouns[i], **{field: getattr(nouns[j], field)})
            swapped[j] = replace(nouns[j], **{field: getattr(nouns[i], field)})
            yield tuple(swapped)
        return
    for i, noun in enumerate(nouns):
        for other in _others(noun, kind, MOST_OBJECTS - sum(each.count for each in nouns) + noun.count):
            yield (*nouns[:i], other, *nouns[i + 1 :])


def _others(noun: Noun, kind: str, most: int) -> Iterator[Noun]:
    match kind:
        case "size":
            yield from (replace(noun, size=size) for size in SIZES if noun.size)
        case "count":
            yield from (replace(noun, count=count) for count in range(1, most + 1))
        case "colour":
            yield from (replace(noun, colour=colour) for colour in COLOURS)
        case "shape":
            yield from (replace(noun, shape=shape) for shape in SHAPES)

"""Captions of the Shapes world that are nearly right: one thing is another, all else is as it was.

Who tells a caption from these has heard which colour is of which shape, how many there are, how large, and what stands
where; who tells it from those of other pictures may have heard two colours.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, cycle
from typing import NamedTuple

import numpy as np

from lab.data.shapes_captions import OPPOSITES, parse, phrasings, say, sense
from lab.data.shapes_scene import COLOURS, RELATIONS, SHAPES, SIZES, Noun, Statement, most_large, pick

HARD = ("swapped colours", "swapped shapes", "relation", "size")  # the others are learned from any other caption
EASY = ("count", "colour", "shape")
KINDS = (*HARD, *EASY)
MOST_OBJECTS = 4


class NearMiss(NamedTuple):
    """A caption that is nearly right, what is wrong with it, and what it states."""

    kind: str
    caption: str
    statement: Statement


def near_misses(
    caption: str, num: int, rng: np.random.Generator, is_false: Callable[[Statement], bool]
) -> list[NearMiss]:
    """Give captions that differ from one in one thing and from each other in meaning, in the same words.

    Kinds take turns in the order of ``KINDS``, so that each that is possible is there.

    Args:
        caption: of this world.
        num: how many; any caption has 15.
        rng: the choice is a function of its state.
        is_false: whether a statement is false of the picture.

    Raises:
        Refused: the caption is none of this world.
        ValueError: there are not so many.
    """
    statement = parse(caption)
    template, known = _template(statement, caption), {sense(statement)}
    options = {kind: list(_changed(statement, kind)) for kind in KINDS}
    found: list[NearMiss] = []
    for kind in cycle(KINDS):
        if len(found) == num:
            break
        if not any(options.values()):
            raise ValueError(f"{caption!r} has {len(found)} near misses, not {num}")
        while options[kind]:
            other = options[kind].pop(int(rng.random() * len(options[kind])))
            if sense(other) not in known and is_false(other):
                known.add(sense(other))
                found.append(NearMiss(kind, say(other, template), other))
                break
    return found


def falsified(caption: str, num: int, rng: np.random.Generator) -> list[str]:
    """Change one thing of a caption, several times: what comes out is false of every picture of which it is true.

    Kinds of change take turns in random order, those in ``HARD`` before the others. A change that may be true as well
    is not made: what is left of something may also be above it.

    Args:
        caption: of this world.
        num: how many; some may be the same.
        rng: the choice is a function of its state.

    Raises:
        Refused: the caption is none of this world.
    """
    statement = parse(caption)
    template, told = _template(statement, caption), list[str]()
    for kind in cycle([*_shuffled(HARD, rng), *_shuffled(EASY, rng)]):
        if len(told) == num:
            break
        options = [other for other in _changed(statement, kind) if _excludes(statement, other)]
        if options:
            told.append(say(pick(rng, options), template))
    return told


def _excludes(one: Statement, other: Statement) -> bool:
    """Whether no scene can be as both say, where they differ in one thing."""
    things, others = (sorted((n.colour, n.shape, n.count) for n in each.nouns) for each in (one, other))
    if things != others:
        return True
    if one.relation != other.relation:
        return other.relation == OPPOSITES[one.relation or ""]
    first, then = one.nouns[0], other.nouns[0]
    if one.relation is not None and (first.colour, first.shape) != (then.colour, then.shape):
        return True  # the same two have changed places
    sizes = {(noun.colour, noun.shape): noun.size for noun in one.nouns}
    return any({noun.size, sizes[noun.colour, noun.shape]} == set(SIZES) for noun in other.nouns)


def _shuffled(kinds: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    return [kinds[place] for place in rng.permutation(len(kinds))]


def _template(statement: Statement, caption: str) -> str:
    """In which words a caption says its statement."""
    words = " ".join(caption.lower().split())
    templates = [each for heldout in (False, True) for each in phrasings(statement, heldout=heldout).values()]
    return next(each for each in templates if say(statement, each) == words)


def _changed(statement: Statement, kind: str) -> Iterator[Statement]:
    """Statements that differ in one thing, all of whose nouns differ in colour or shape, where there is room."""
    if kind == "relation":
        if statement.relation:
            yield from (replace(statement, relation=name) for name in RELATIONS)
            yield replace(statement, nouns=statement.nouns[::-1])  # or the word alone tells, where one is rare
        return
    for nouns in _nouns(statement.nouns, kind):
        num_large = sum(noun.count for noun in nouns if noun.size == "large")
        is_crowded = statement.relation and num_large > most_large(sum(noun.count for noun in nouns))
        if len({(noun.colour, noun.shape) for noun in nouns}) == len(nouns) and not is_crowded:
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

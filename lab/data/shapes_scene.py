"""What the Shapes world is made of: shapes, colours, grounds, sizes, relations, and scenes drawn from statements.

Lengths are in *units* of 1/32 of the image's side, so a unit is one pixel at 32 px and everything scales with the
resolution. ``x`` grows to the right and ``y`` downwards. Every shape fills a square box; the box's side is the object's
``size``.

The world's law is one sentence: given a statement, everything that it leaves open is drawn independently and uniformly,
among the scenes in which the statement holds and one unit stays free between boxes and around the border. Rendering
(``shapes_render``) and language (``shapes_captions``) do not belong here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

SIDE = 32.0
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")

# RGB in 0..255. Colours are at least 123 apart from each other, 146 from the grounds; grounds 28 from each other.
COLOURS = {
    "red": (205, 0, 25),
    "orange": (250, 120, 0),
    "yellow": (255, 240, 30),
    "green": (0, 145, 50),
    "blue": (20, 50, 225),
    "cyan": (0, 205, 235),
    "pink": (240, 70, 195),
    "black": (15, 15, 20),
}
GROUNDS = {
    "white": (255, 255, 255),
    "cream": (255, 243, 205),
    "mint": (208, 243, 220),
    "sky": (205, 230, 255),
    "rose": (255, 214, 220),
    "lavender": (226, 212, 250),
    "grey": (214, 214, 214),
    "lime": (232, 246, 185),
}
SIZES = {"small": (7.0, 8.4), "large": (12.0, 14.0)}  # units; small is at most 0.7 of large
RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}  # direction from the second to the first
MARGIN = 3.0  # units between centres along a relation's direction, at least
FREE = 1.0  # units left free around every box

PAIRS = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
# Never trained on: a diagonal rule that leaves each colour at least 4 trained shapes and each shape 6 trained colours.
HELDOUT_PAIRS = tuple(
    (colour, shape) for i, shape in enumerate(SHAPES) for j, colour in enumerate(COLOURS) if (i + j) % 4 == 0
)
TRAINED_PAIRS = tuple(pair for pair in PAIRS if pair not in HELDOUT_PAIRS)

T = TypeVar("T")


@dataclass(frozen=True)
class Noun:
    """A stated group of like objects: "three small red circles". ``size`` is None where the text does not say."""

    colour: str
    shape: str
    count: int = 1
    size: str | None = None


@dataclass(frozen=True)
class Statement:
    """What a caption states: its nouns and, of two, how all of the first stand to all of the second (``relation``)."""

    nouns: tuple[Noun, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Object:
    """One object: its box's centre and side in units."""

    colour: str
    shape: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """A picture's content: a named ground and one to four objects."""

    ground: str
    objects: tuple[Object, ...]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each equally likely (several times faster than ``Generator.choice``)."""
    return options[int(rng.random() * len(options))]


def most_large(num: int) -> int:
    """Give how many of so many objects may be large: more hardly find a place where a relation is to hold."""
    return 2 if num < 4 else 1


def draw(statement: Statement, rng: np.random.Generator) -> Scene:
    """Draw a scene of which the statement is true; what is not stated is free.

    Size classes come first (fair, where unstated), sizes are uniform in their class, then all centres are uniform by
    rejection. Sizes for which some hundreds of tries find no place are drawn again, so crowded scenes lean towards
    small objects.

    Args:
        statement: at most four objects in all.
        rng: the scene is a function of its state.

    Returns:
        The scene; its objects stand in the order of the statement's nouns.
    """
    members = [noun for noun in statement.nouns for _ in range(noun.count)]
    tries = (1, 32, 128, 512)[len(members) - 1]
    while True:
        spans = [SIZES[noun.size or pick(rng, ("small", "large"))] for noun in members]
        sizes = [low + (high - low) * rng.random() for low, high in spans]
        centres = _place(sizes, statement, rng, tries)
        if centres is not None:
            break
    objects = tuple(
        Object(noun.colour, noun.shape, x, y, size)
        for noun, (x, y), size in zip(members, centres.tolist(), sizes, strict=True)
    )
    return Scene(pick(rng, tuple(GROUNDS)), objects)


def _place(sizes: list[float], statement: Statement, rng: np.random.Generator, tries: int) -> np.ndarray | None:
    """Centres (n, 2), uniform where they are allowed; None where no try succeeded."""
    halves = np.array(sizes) / 2
    centres = np.empty((tries, 0, 2))
    first = statement.nouns[0].count
    for i, low in enumerate(halves + FREE):  # each object joins the tries that are left
        new = low + (SIDE - 2 * low) * rng.random((len(centres), 1, 2))
        if i == 0:
            centres = new  # there is nothing yet that it might touch
            continue
        fits = (np.abs(new - centres).max(axis=2) >= halves[i] + halves[:i] + FREE).all(axis=1)
        if statement.relation is not None and i >= first:
            along = (centres[:, :first] - new) @ np.array(RELATIONS[statement.relation], dtype=float)
            fits &= (along >= MARGIN).all(axis=1)
        centres = np.concatenate([centres, new], axis=1)[fits]
    return centres[0] if len(centres) else None

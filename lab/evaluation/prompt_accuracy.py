"""Does the picture show what the prompt states?

A prompt is parsed to a statement, the picture is read to a scene, and each kind of attribute that the prompt states
gets a verdict. What the prompt leaves open (positions, ground, unstated sizes) is not judged; a picture that cannot be
read is wrong in everything.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from torch import Tensor

from lab.data.shapes_captions import parse
from lab.data.shapes_scene import RELATIONS, SIZES, Noun, Object, Scene, Statement
from lab.evaluation.intervals import wilson
from lab.evaluation.shapes_reader import read

RELATION_MARGIN = 2.0  # units; the world keeps 3
_SIZE_BORDER = (SIZES["small"][1] + SIZES["large"][0]) / 2  # units


@dataclass(frozen=True)
class Verdict:
    """The judgement of one picture.

    Attributes:
        right: all that is stated is right and nothing is added.
        attributes: by name, of those that the prompt states: "count" (number of objects in all), "colour", "shape" (as
            multisets), "binding" (each colour on its shape), "size", "relation".
        problem: why the picture could not be read; empty if it could.
    """

    right: bool
    attributes: dict[str, bool]
    problem: str = ""

    @property
    def readable(self) -> bool:
        """Whether a scene could be read at all."""
        return not self.problem

    @property
    def agreement(self) -> float:
        """The share of the stated attributes that are right, 0 to 1."""
        return sum(self.attributes.values()) / len(self.attributes)


@dataclass(frozen=True)
class Proportion:
    """A proportion with its Wilson 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def judge(image: Tensor, prompt: str) -> Verdict:
    """Judge one picture.

    Args:
        image: (3, H, H) in about [-1, 1].
        prompt: a caption of the Shapes world.

    Raises:
        Refused: the prompt is no caption of this world.
    """
    statement = parse(prompt)
    reading = read(image)
    if reading.scene is None:
        return Verdict(False, dict.fromkeys(_stated(statement), False), reading.problem)
    attributes = compare(reading.scene, statement)
    return Verdict(all(attributes.values()), attributes)


def compare(scene: Scene, statement: Statement) -> dict[str, bool]:
    """Compare a scene with a statement, attribute by attribute; see ``Verdict``."""
    wanted = [noun for noun in statement.nouns for _ in range(noun.count)]
    objects = scene.objects
    # Which object stands for which noun: the assignment that agrees best, with the relation only to break ties.
    options = permutations(objects) if len(objects) == len(wanted) else ()
    best = max((_match(option, wanted, statement) for option in options), key=lambda match: match[0], default=(0, {}))[
        1
    ]
    verdict = {
        "count": len(objects) == len(wanted),
        "colour": Counter(item.colour for item in objects) == Counter(noun.colour for noun in wanted),
        "shape": Counter(item.shape for item in objects) == Counter(noun.shape for noun in wanted),
        "binding": best.get("binding", False),
        "size": best.get("size", False),
        "relation": best.get("relation", False),
    }
    return {name: verdict[name] for name in _stated(statement)}


def accuracy(images: Iterable[Tensor], prompts: Sequence[str]) -> dict[str, Proportion]:
    """Judge many pictures.

    Args:
        images: one (3, H, H) per prompt.
        prompts: captions of the Shapes world.

    Returns:
        "right", "readable", and each attribute by name (over those prompts that state it) -> proportion.

    Raises:
        Refused: a prompt is no caption of this world.
        ValueError: the numbers of images and prompts differ.
    """
    return shares([judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)])


def shares(verdicts: Iterable[Verdict]) -> dict[str, Proportion]:
    """Count verdicts: "right", "readable", and each attribute by name -> proportion."""
    answers: dict[str, list[bool]] = {}
    for verdict in verdicts:
        for name, answer in {"right": verdict.right, "readable": verdict.readable, **verdict.attributes}.items():
            answers.setdefault(name, []).append(answer)
    return {
        name: Proportion(sum(given) / len(given), *wilson(sum(given), len(given)), n=len(given))
        for name, given in answers.items()
    }


def _stated(statement: Statement) -> list[str]:
    """Names of the attributes that a statement speaks of."""
    names = ["count", "colour", "shape", "binding"]
    names += ["size"] if any(noun.size for noun in statement.nouns) else []
    return names + (["relation"] if statement.relation else [])


def _match(
    option: Sequence[Object], wanted: Sequence[Noun], statement: Statement
) -> tuple[tuple[int, bool], dict[str, bool]]:
    """How well these objects stand for those nouns, in order: a figure to compare, and the verdicts."""
    colours = [item.colour == noun.colour for item, noun in zip(option, wanted, strict=True)]
    shapes = [item.shape == noun.shape for item, noun in zip(option, wanted, strict=True)]
    sizes = [noun.size in (None, _size(item)) for item, noun in zip(option, wanted, strict=True)]
    related = True
    if statement.relation is not None:
        x, y = RELATIONS[statement.relation]
        along = [item.x * x + item.y * y for item in option]
        first = statement.nouns[0].count
        related = min(along[:first]) - max(along[first:]) >= RELATION_MARGIN
    verdicts = {"binding": all(colours) and all(shapes), "size": all(sizes), "relation": related}
    return (sum(colours) + sum(shapes) + sum(sizes), related), verdicts


def _size(item: Object) -> str:
    return "small" if item.size < _SIZE_BORDER else "large"

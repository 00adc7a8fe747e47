"""The verifier: right on renders, clean or slightly worn; wrong on wrong prompts and spoiled renders.

The figures of the full test (n = 2,000) are printed by
``python -m pytest tests/lab/evaluation/test_prompt_accuracy.py -m "slow or not slow" -s``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lab.data.shapes import PRESETS, Shapes, ShapesConfig
from lab.data.shapes_captions import parse
from lab.data.shapes_render import render
from lab.data.shapes_scene import COLOURS, FREE, GROUNDS, PAIRS, Noun, Object, Scene, Statement, draw, pick
from lab.errors import Refused
from lab.evaluation.diversity import diversity, total_variation
from lab.evaluation.intervals import wilson
from lab.evaluation.prompt_accuracy import accuracy, compare, judge
from lab.evaluation.shapes_reader import read

Spoil = Callable[[Scene, np.random.Generator], np.ndarray]

# A small number of pictures by default, the number of the promise under the marker "slow".
NUMBERS = [pytest.param(40, id="40"), pytest.param(2000, id="2000", marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
SOURCES = {preset: Shapes(ShapesConfig(mixture={preset: 1.0}), split="heldout") for preset in PRESETS}


def show(text: str) -> None:
    print(text)  # noqa: T201


def clean(image: Tensor, slot: int) -> Tensor:
    return image


def noisy(image: Tensor, slot: int) -> Tensor:
    return image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(slot))


def blurred(image: Tensor, slot: int) -> Tensor:
    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row).expand(3, 1, 3, 3)
    return conv2d(pad(image[None], (1, 1, 1, 1), mode="replicate"), kernel, groups=3)[0]


@pytest.mark.parametrize("num", NUMBERS)
@pytest.mark.parametrize(("wear", "least"), [(clean, 0.995), (noisy, 0.97), (blurred, 0.97)])
@pytest.mark.parametrize("preset", PRESETS)
def test_renders_are_read_right(preset: str, wear: Callable[[Tensor, int], Tensor], least: float, num: int) -> None:
    samples = [SOURCES[preset].sample(0, slot) for slot in range(num)]
    images = [wear(sample.image, slot) for slot, sample in enumerate(samples)]
    figures = accuracy(images, [sample.caption for sample in samples])
    show(f"{preset:6} {wear.__name__:8} " + "  ".join(f"{k} {v.value:.4f}" for k, v in figures.items()) + f"  n {num}")
    assert {"right", "readable", "count", "colour", "shape", "binding"} <= set(figures)
    assert {name: figure.value for name, figure in figures.items() if figure.value < least} == {}


@pytest.mark.parametrize("num", NUMBERS)
@pytest.mark.parametrize("preset", PRESETS)
def test_wrong_prompts_are_judged_wrong(preset: str, num: int) -> None:
    source = SOURCES[preset]
    captions = [source.scene(0, slot)[1] for slot in range(num, num + 100)]
    wrong = 0
    for slot in range(num):
        scene, _ = source.scene(0, slot)
        others = [text for text in captions[slot % 50 :] if not all(compare(scene, parse(text)).values())]
        wrong += not judge(source.sample(0, slot).image, others[0]).right
    show(f"{preset:6} wrong prompts judged wrong {wrong / num:.4f}  n {num}")
    assert wrong / num >= 0.995


def paint(scene: Scene, item: Object, other: Object) -> np.ndarray:
    """Half of one object, half of another in its place."""
    objects = tuple(other if each is item else each for each in scene.objects)
    return (render(scene, 32) + render(replace(scene, objects=objects), 32)) / 2


def half_erased(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    item, image = pick(rng, scene.objects), render(scene, 32)
    ground = np.array(GROUNDS[scene.ground]) / 127.5 - 1
    x, y, reach = round(item.x), round(item.y), int(item.size / 2 + 1.5)
    left, right, top, bottom = max(x - reach, 0), x + reach, max(y - reach, 0), y + reach
    halves = [
        np.s_[top:bottom, left:x],
        np.s_[top:bottom, x:right],
        np.s_[top:y, left:right],
        np.s_[y:bottom, left:right],
    ]
    image[:, *pick(rng, halves)] = ground[:, None, None]
    return image


def two_blended(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    item = pick(rng, scene.objects)
    colour, shape = pick(rng, [pair for pair in PAIRS if pair != (item.colour, item.shape)])
    size = item.size * (0.9 + 0.2 * rng.random())
    return paint(scene, item, replace(item, colour=colour, shape=shape, size=size))


def colour_halfway(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    item = pick(rng, scene.objects)
    here = np.array(COLOURS[item.colour])
    nearest = min(COLOURS, key=lambda name: np.linalg.norm(here - COLOURS[name]) + 999 * (name == item.colour))
    return paint(scene, item, replace(item, colour=nearest))


def one_too_many(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    for _ in range(2000):
        x, y = 4.5 + 23 * rng.random(2)
        colour, shape = pick(rng, PAIRS)
        extra = Object(colour, shape, x, y, 7.0)
        if all(max(abs(x - o.x), abs(y - o.y)) >= (7 + o.size) / 2 + FREE for o in scene.objects):
            return render(replace(scene, objects=(*scene.objects, extra)), 32)
    return one_too_few(scene, rng)  # there is no room


def one_too_few(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    item = pick(rng, scene.objects)
    return render(replace(scene, objects=tuple(each for each in scene.objects if each is not item)), 32)


def smear(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    image, axis = render(scene, 32), pick(rng, (1, 2))
    padded = np.pad(image, [(3, 3) if i == axis else (0, 0) for i in range(3)], mode="edge")
    return np.mean([padded.take(range(shift, shift + 32), axis=axis) for shift in range(7)], axis=0)


def noise(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(3, 32, 32)) * rng.uniform(0.25, 1) + pick(rng, (0.0, 0.7))


@lru_cache
def _mean_of_renders() -> np.ndarray:
    return np.mean([SOURCES["pair"].sample(1, slot).image.numpy() for slot in range(500)], axis=0)


def mean_image(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return _mean_of_renders() + 0.02 * rng.normal(size=(3, 32, 32))


SPOILS = [half_erased, two_blended, colour_halfway, one_too_many, one_too_few, smear, noise, mean_image]


@pytest.mark.parametrize("num", NUMBERS)
@pytest.mark.parametrize("spoil", SPOILS)
def test_spoiled_renders_are_judged_wrong(spoil: Spoil, num: int) -> None:
    wrong = 0
    for slot in range(num):
        scene, caption = SOURCES[PRESETS[slot % len(PRESETS)]].scene(0, slot)
        image = spoil(scene, np.random.Generator(np.random.Philox(slot)))
        wrong += not judge(torch.from_numpy(image), caption).right
    low, high = wilson(wrong, num)
    show(f"{spoil.__name__:15} judged wrong {wrong / num:.4f} ({low:.4f} to {high:.4f})  n {num}")
    assert wrong / num >= (0.98 if num >= 1000 else 0.95)


@pytest.mark.parametrize("size", [48, 64, 128, 256])
def test_larger_pictures_are_read_too(size: int) -> None:
    source = Shapes(ShapesConfig(mixture={"full": 1.0}, size=size), split="heldout")
    samples = [source.sample(0, slot) for slot in range(25)]
    figures = accuracy([sample.image for sample in samples], [sample.caption for sample in samples])
    assert figures["right"].value == 1


def test_a_reading_says_where_everything_is() -> None:
    for slot in range(40):
        scene, _ = SOURCES["full"].scene(0, slot)
        found = read(torch.from_numpy(render(scene, 32))).scene
        assert found is not None
        assert found.ground == scene.ground
        for item in scene.objects:
            near = min(found.objects, key=lambda other: abs(other.x - item.x) + abs(other.y - item.y))
            assert (near.colour, near.shape) == (item.colour, item.shape)
            assert max(abs(near.x - item.x), abs(near.y - item.y), abs(near.size - item.size)) < 0.1


@pytest.mark.parametrize("value", [float("nan"), 0.0, 1.0, -1.0])
def test_flat_pictures_are_unreadable(value: float) -> None:
    verdict = judge(torch.full((3, 32, 32), value), "a red circle")
    assert not verdict.readable
    assert not verdict.right
    assert set(verdict.attributes.values()) == {False}


def scene(*objects: Object) -> Scene:
    return Scene("white", objects)


A = Object("red", "circle", 8, 8, 8)
B = Object("blue", "square", 20, 14, 13)
RED, BLUE = Noun("red", "circle"), Noun("blue", "square")


def dotted(x: int) -> np.ndarray:
    image = render(scene(A), 32)
    image[:, 24:26, x : x + 3] = -1
    return image


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (dotted(20), "no object explains"),
        (render(scene(replace(A, size=5.5)), 32), "size"),
        (render(scene(replace(A, size=17)), 32), "size"),
        (paint(scene(A), A, replace(A, colour="orange")), "colour"),
        (paint(scene(A), A, replace(A, shape="diamond")), "no shape"),
        (render(scene(replace(B, shape="circle"), replace(B, colour="red", shape="cross", x=25)), 32), "no shape"),
        (render(scene(A), 32) * 0.5, "ground"),
    ],
)
def test_what_cannot_be_read_has_a_reason(image: np.ndarray, problem: str) -> None:
    reading = read(torch.from_numpy(image))
    assert reading.scene is None
    assert problem in reading.problem


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an image \(3, H, H\)"):
        read(torch.zeros(1, 32, 32))


@pytest.mark.parametrize(
    ("objects", "statement", "wrong"),
    [
        ((A, B), Statement((RED, BLUE), "left of"), set()),
        ((B, A), Statement((RED, BLUE), "above"), set()),
        ((A, B), Statement((BLUE, RED), "right of"), set()),
        ((A, B), Statement((RED, BLUE), "right of"), {"relation"}),
        ((A, replace(B, y=9.9)), Statement((RED, BLUE), "above"), {"relation"}),
        ((replace(A, colour="blue"), replace(B, colour="red")), Statement((RED, BLUE), "left of"), {"binding"}),
        ((replace(A, colour="green"), B), Statement((RED, BLUE), "left of"), {"colour", "binding"}),
        ((replace(A, colour="green"), B), Statement((RED, BLUE), "below"), {"colour", "binding", "relation"}),
        ((replace(A, shape="ring"), B), Statement((RED, BLUE), "left of"), {"shape", "binding"}),
        ((A,), Statement((RED,)), set()),
        ((A, B), Statement((RED,)), {"count", "colour", "shape", "binding"}),
        ((A,), Statement((replace(RED, size="small"),)), set()),
        ((A,), Statement((replace(RED, size="large"),)), {"size"}),
        ((A, replace(A, y=20)), Statement((replace(RED, count=2),)), set()),
        ((A, replace(A, y=20)), Statement((replace(RED, count=3),)), {"count", "colour", "shape", "binding"}),
        ((A, replace(A, y=26), B), Statement((replace(RED, count=2), BLUE), "left of"), set()),
        ((A, replace(A, x=19, y=26), B), Statement((replace(RED, count=2), BLUE), "left of"), {"relation"}),
    ],
)
def test_attributes_are_judged_one_by_one(objects: Sequence[Object], statement: Statement, wrong: set[str]) -> None:
    assert {name for name, right in compare(scene(*objects), statement).items() if not right} == wrong


def test_what_is_not_stated_is_not_judged() -> None:
    assert set(compare(scene(A), Statement((RED,)))) == {"count", "colour", "shape", "binding"}


def test_accuracy_counts_over_the_prompts_that_state_an_attribute() -> None:
    images = [torch.from_numpy(render(scene(A), 32)), torch.from_numpy(render(scene(A, B), 32))]
    figures = accuracy(images, ["a red circle", "a red circle right of a blue square"])
    assert (figures["right"].value, figures["right"].n) == (0.5, 2)
    assert (figures["relation"].value, figures["relation"].n) == (0.0, 1)
    assert (figures["right"].low, figures["right"].high) == wilson(1, 2)
    with pytest.raises(Refused, match="no caption"):
        accuracy(images[:1], ["something else"])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        accuracy(images, ["a red circle", "a red circle", "a red circle"])


def test_wilson_against_published_values() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(29, 29) == pytest.approx((0.8830, 1), abs=1e-4)
    for successes, n in [(0, 0), (3, 2), (-1, 5)]:
        with pytest.raises(ValueError, match="a proportion needs"):
            wilson(successes, n)


def pictures(num: int, seed: int) -> list[Tensor]:
    rng = np.random.Generator(np.random.Philox(seed))
    return [torch.from_numpy(render(draw(Statement((RED,)), rng), 32)) for _ in range(num)]


def test_the_world_itself_is_diverse_and_a_collapse_is_not() -> None:
    spread = diversity(pictures(120, 7), "a red circle")
    assert set(spread) == {"position", "size", "ground"}
    for figure in spread.values():
        assert figure.n == 120
        assert figure.tv <= figure.limit == 3 * figure.tv_renders + 0.05
    one, unreadable = pictures(1, 7)[0], torch.zeros(3, 32, 32)
    for same in (one, unreadable):
        assert all(figure.tv > figure.limit for figure in diversity([same] * 120, "a red circle").values())
    half = diversity(pictures(60, 7) + [unreadable] * 60, "a red circle")
    assert all(0.5 - 1e-9 <= figure.tv < 0.6 for figure in half.values())


def test_diversity_is_for_one_object() -> None:
    with pytest.raises(Refused, match="one object"):
        diversity(pictures(1, 0), "two red circles")
    with pytest.raises(Refused, match="no images"):
        diversity([], "a red circle")


def test_total_variation() -> None:
    assert total_variation(Counter("aabb"), Counter("ab")) == 0
    assert total_variation(Counter("aa"), Counter("b")) == 1
    assert total_variation(Counter("aaab"), Counter("abbb")) == pytest.approx(0.5)


def test_total_variation_does_not_depend_on_the_order_of_the_cells() -> None:
    """Names in a set have another order in every process; a figure must not."""
    counts = [(1, 7), (77, 13), (3, 41), (5, 9), (23, 11), (2, 8), (61, 1)]

    def distance(name: str) -> float:
        first, second = (Counter({f"{name}{k}": pair[side] for k, pair in enumerate(counts)}) for side in (0, 1))
        return total_variation(first, second)

    assert len({distance(name) for name in map(str, range(200))}) == 1

"""The Shapes world: its law, its language, its determinism."""

from itertools import combinations

import numpy as np
import pytest
import torch

from lab.config import parse as parse_config
from lab.data import shapes_captions as language
from lab.data.shapes import PRESETS, Shapes, ShapesConfig, prompts, prompts_hash, state
from lab.data.shapes_captions import parse, say
from lab.data.shapes_render import ARM, HOLE, render
from lab.data.shapes_scene import (
    COLOURS,
    GROUNDS,
    HELDOUT_PAIRS,
    PAIRS,
    RELATIONS,
    SHAPES,
    SIZES,
    Noun,
    Object,
    Scene,
    Statement,
    draw,
)
from lab.errors import Refused
from lab.images import to_uint8

AREAS = {
    "circle": np.pi / 4,
    "square": 1.0,
    "triangle": 0.5,
    "diamond": 0.5,
    "cross": 1 - (1 - ARM) ** 2,
    "ring": np.pi / 4 * (1 - HOLE**2),
}


def world(preset: str, **settings: object) -> Shapes:
    return Shapes(ShapesConfig.model_validate({"mixture": {preset: 1.0}, **settings}))


def test_vocabulary_is_large_and_colours_are_far_apart() -> None:
    assert len(SHAPES) >= 6
    assert len(COLOURS) >= 8
    assert len(GROUNDS) >= 6
    rgb = {name: np.array(value) for name, value in (COLOURS | GROUNDS).items()}
    assert min(np.linalg.norm(rgb[a] - rgb[b]) for a, b in combinations(COLOURS, 2)) > 123
    assert min(np.linalg.norm(rgb[a] - rgb[b]) for a in COLOURS for b in GROUNDS) > 146
    assert min(np.linalg.norm(rgb[a] - rgb[b]) for a, b in combinations(GROUNDS, 2)) > 28


def test_a_sample_is_a_function_of_seed_and_slot() -> None:
    first, second = world("full"), world("full")
    slots = [5, 0, 3]
    for slot, again in [(slot, second.sample(1, slot)) for slot in sorted(slots)]:
        sample = first.sample(1, slot)
        assert torch.equal(sample.image, again.image)
        assert (sample.caption, sample.id) == (again.caption, again.id)
    images = [first.sample(seed, slot).image for seed in (0, 1) for slot in range(20)]
    images += [Shapes(first.config, split="heldout").sample(0, slot).image for slot in range(20)]
    assert len({image.numpy().tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("size", [16, 32, 37, 256])
def test_images_have_the_size_asked_for_and_are_in_range(size: int) -> None:
    image = world("full", size=size).sample(0, 0).image
    assert image.shape == (3, size, size)
    assert image.dtype == torch.float32
    assert image.abs().max() <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_scenes_keep_their_distances_and_their_captions_are_true(preset: str) -> None:
    source = world(preset)
    for slot in range(400):
        scene, caption = source.scene(0, slot)
        statement = parse(caption)
        members = [noun for noun in statement.nouns for _ in range(noun.count)]
        assert 1 <= len(members) <= 4
        for noun, item in zip(members, scene.objects, strict=True):
            low, high = SIZES["small" if item.size < 10 else "large"]
            assert (noun.colour, noun.shape) == (item.colour, item.shape)
            assert low <= item.size <= high
            assert noun.size in (None, "small" if item.size < 10 else "large")
            assert 1 + item.size / 2 <= min(item.x, item.y)
            assert max(item.x, item.y) <= 31 - item.size / 2
        for a, b in combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2 + 1
        if statement.relation is not None:
            x, y = RELATIONS[statement.relation]
            first = statement.nouns[0].count
            along = [item.x * x + item.y * y for item in scene.objects]
            assert min(along[:first]) - max(along[first:]) >= 3


def test_presets_state_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        (single,) = state("single", rng).nouns
        (group,) = state("count", rng).nouns
        ordered, pair = state("ordered", rng), state("pair", rng)
        assert (single.count, single.size) == (1, None)
        assert 2 <= group.count <= 4
        assert [(noun.count, noun.size) for noun in (*ordered.nouns, *pair.nouns)] == [(1, None)] * 4
        assert ordered.relation in ("left of", "above")
        assert pair.relation in RELATIONS
    full = [state("full", rng) for _ in range(400)]
    assert {sum(noun.count for noun in statement.nouns) for statement in full} == {1, 2, 3, 4}
    assert {noun.size for statement in full for noun in statement.nouns} == {None, "small", "large"}
    assert {statement.relation for statement in full} == {None, *RELATIONS}


def test_either_object_is_named_first_and_every_relation_is_said_as_often() -> None:
    statements = [parse(world("pair").scene(0, slot)[1]) for slot in range(2000)]
    shares = [sum(s.relation == relation for s in statements) / 2000 for relation in RELATIONS]
    assert max(abs(share - 0.25) for share in shares) < 0.04


def test_centres_are_uniform_where_they_are_allowed() -> None:
    statement = Statement((Noun("red", "circle"),))
    rng = np.random.default_rng(0)
    items = [draw(statement, rng).objects[0] for _ in range(4000)]
    for centre in ([item.x for item in items], [item.y for item in items]):
        low = np.array([item.size / 2 + 1 for item in items])
        uniform = np.sort((np.array(centre) - low) / (32 - 2 * low))
        # Kolmogorov and Smirnov's distance; 1.95 / sqrt(n) is passed once in a thousand
        assert np.abs(uniform - np.arange(4000) / 4000).max() < 1.95 / np.sqrt(4000)
    assert abs(np.mean([item.size > 10 for item in items]) - 0.5) < 0.04


def test_held_out_pairs_are_never_seen_in_training() -> None:
    assert len(PAIRS) == 48
    assert len(HELDOUT_PAIRS) == 12
    for name in (*COLOURS, *SHAPES):
        assert sum(name in pair for pair in set(PAIRS) - set(HELDOUT_PAIRS)) >= 3
    source = Shapes(ShapesConfig(mixture={"single": 1.0, "pair": 1.0, "count": 1.0, "full": 1.0}))
    for slot in range(1500):
        scene, _ = source.scene(0, slot)
        assert not {(item.colour, item.shape) for item in scene.objects} & set(HELDOUT_PAIRS)


def words(captions: object) -> set[str]:
    return {word for caption in captions for word in caption.replace(",", " ,").split()}  # type: ignore[attr-defined]


def test_held_out_phrasings_are_new_sentences_of_known_words() -> None:
    assert len(language.RELATED) + len(language.RELATED_HELDOUT) >= 10
    assert len(language.RELATED_HELDOUT) >= 3
    source = Shapes(ShapesConfig(mixture={"single": 1.0, "pair": 1.0, "count": 1.0, "full": 1.0}))
    said = [source.scene(0, slot)[1] for slot in range(1500)]
    known = words(source.captions())
    assert words(said) == known
    heldout = [caption for preset in PRESETS for caption in prompts(f"{preset}_heldout_phrasings", 300, 0)]
    assert words(heldout) <= words(said)
    assert not set(heldout) & set(said)
    templates = [*language.RELATED.values(), *language.LISTED.values()]
    for caption in heldout:
        assert caption not in {say(parse(caption), template) for template in templates if fits(template, caption)}


def fits(template: str, caption: str) -> bool:
    return ("{relation}" in template) == (parse(caption).relation is not None)


def test_captions_are_read_back_in_every_phrasing() -> None:
    rng = np.random.default_rng(0)
    for preset in PRESETS:
        for _ in range(100):
            statement = state(preset, rng, PAIRS)
            for heldout in (False, True):
                for template in language.phrasings(statement, heldout=heldout).values():
                    assert parse(say(statement, template)) == statement


def test_english() -> None:
    orange, crosses, ring = Noun("orange", "ring"), Noun("red", "cross", 2, "small"), Noun("cyan", "ring", 1, "large")
    assert say(Statement((crosses, orange), "above"), language.RELATED["sits"]) == (
        "two small red crosses sit above an orange ring"
    )
    assert say(Statement((orange, crosses), "left of"), language.RELATED_HELDOUT["inverted sits"]) == (
        "left of two small red crosses sits an orange ring"
    )
    assert say(Statement((orange, crosses, ring)), language.LISTED["there"]) == (
        "there is an orange ring, two small red crosses and a large cyan ring"
    )


@pytest.mark.parametrize(
    "text", ["", "a red dog", "red circle", "a red circles", "a red circle near a blue square", "five red circles"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="no caption of the Shapes world"):
        parse(text)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pixels", [32, 64, 256])
def test_rendered_areas_are_those_of_the_shapes(shape: str, pixels: int) -> None:
    item = Object("black", shape, 15.3, 16.1, 13.0)
    image = (render(Scene("white", (item,)), pixels) + 1) / 2
    dark = (1 - image[0]).sum() / (1 - 15 / 255) * (32 / pixels) ** 2
    assert dark == pytest.approx(AREAS[shape] * 13.0**2, rel=0.03 if pixels == 32 else 0.015)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_picture_has_the_bytes_of_its_colours(ground: str, colour: str) -> None:
    """So -1 is black and 1 is white, which puts the middle of the range at 0."""
    picture = to_uint8(torch.from_numpy(render(Scene(ground, (Object(colour, "square", 16, 16, 13.0),)), 32)))
    assert tuple(picture[:, 0, 0].tolist()) == GROUNDS[ground]
    assert tuple(picture[:, 16, 16].tolist()) == COLOURS[colour]


def test_a_scene_is_the_same_picture_at_every_resolution() -> None:
    for slot in range(20):
        scene, _ = world("full").scene(0, slot)
        fine = render(scene, 256).reshape(3, 32, 8, 32, 8).mean(axis=(2, 4))
        # Coverage comes from the distance to the edge; it is off by up to 0.36 of the contrast of 2 at a sharp tip.
        assert np.abs(fine - render(scene, 32)).max() < 0.8
        assert np.abs(fine - render(scene, 32)).mean() < 0.01


def test_the_curriculum_is_a_function_of_the_slot() -> None:
    source = world("pair", warm_up_samples=2000)
    related = np.array([parse(source.scene(0, slot)[1]).relation is not None for slot in range(2600)])
    assert related[:40].mean() < 0.1
    assert abs(related[800:1200].mean() - 0.5) < 0.1
    assert related[2000:].all()


def test_phrasings_can_be_restricted() -> None:
    captions = [world("pair", phrasings=("is", "plain")).scene(0, slot)[1] for slot in range(60)]
    allowed = [language.RELATED["is"], language.RELATED["plain"]]
    assert all(caption in [say(parse(caption), template) for template in allowed] for caption in captions)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"size": 8}, "size"),
        ({"mixture": {"pairs": 1.0}}, "pairs"),
        ({"mixture": {"pair": -1.0}}, "mixture"),
        ({"mixture": {}}, "mixture"),
        ({"phrasings": ["shout"]}, "shout"),
        ({"phrasings": ["is"]}, "plain"),
    ],
)
def test_impossible_configurations_are_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        parse_config(mapping, ShapesConfig)


def test_what_an_ordered_caption_names_first_is_left_or_above() -> None:
    """In training and in prompts, held-out phrasings included; pairs name either first."""
    world = Shapes(ShapesConfig(mixture={"ordered": 1.0}))
    captions = [world.scene(0, slot)[1] for slot in range(200)]
    captions += [*prompts("ordered", 100, 0), *prompts("ordered_heldout_phrasings", 100, 0)]
    for caption in captions:
        statement = parse(caption)
        assert statement.relation in ("left of", "above")
        about, other = (say(Statement((noun,)), "{nouns}") for noun in statement.nouns)
        assert caption.index(about) < caption.index(other)
    assert any(caption.startswith(("above", "left of")) for caption in prompts("pair", 100, 0))


def test_the_fingerprint_names_the_data() -> None:
    config = ShapesConfig()
    assert Shapes(config).fingerprint == Shapes(ShapesConfig()).fingerprint
    others = [Shapes(ShapesConfig(size=64)), Shapes(config, split="heldout"), world("pair")]
    assert len({source.fingerprint for source in [Shapes(config), *others]}) == 4


def test_prompts_come_from_a_fixed_list() -> None:
    assert prompts("pair", 20, 0) == prompts("pair", 30, 0)[:20]
    assert prompts("pair", 20, 0) != prompts("pair", 20, 1)
    assert prompts_hash(prompts("pair", 20, 0)) != prompts_hash(prompts("pair", 20, 1))
    for preset in PRESETS:
        for prompt in prompts(f"{preset}_heldout_combinations", 100, 0):
            assert any((noun.colour, noun.shape) in HELDOUT_PAIRS for noun in parse(prompt).nouns)
        for prompt in (*prompts(preset, 100, 0), *prompts(f"{preset}_heldout_phrasings", 100, 0)):
            assert not any((noun.colour, noun.shape) in HELDOUT_PAIRS for noun in parse(prompt).nouns)


@pytest.mark.parametrize("kind", ["pairs", "pair_heldout", "pair_heldout_colours"])
def test_unknown_prompts_are_refused(kind: str) -> None:
    with pytest.raises(Refused, match="no prompts of kind"):
        prompts(kind, 1, 0)

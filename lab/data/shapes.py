"""The Shapes world: an endless captioned image source without files, each sample a function of (seed, slot).

This file holds the configuration, the source and the evaluation prompts; scenes are drawn in ``shapes_scene``, rendered
in ``shapes_render`` and put into words in ``shapes_captions``. The difficulty presets:

* ``single``:  "a red circle"
* ``ordered``: "a red circle left of a blue square"; what is named first is left or above, sizes are free
* ``pair``:    the same with all four relations, so that order alone says nothing about places
* ``count``:   "three red circles", two to four
* ``full``:    one to four objects; counts, sizes stated or not, lists, relations

Training never shows one of the 12 ``HELDOUT_PAIRS`` of colour and shape, and never speaks in a held-out phrasing.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import Field, model_validator

from lab.config import Config
from lab.data import shapes_captions as language
from lab.data.shapes_render import render
from lab.data.shapes_scene import (
    HELDOUT_PAIRS,
    PAIRS,
    RELATIONS,
    TRAINED_PAIRS,
    Noun,
    Scene,
    Statement,
    draw,
    most_large,
    pick,
)
from lab.data.source import Sample
from lab.data.split import Split
from lab.errors import Refused
from lab.randomness import key

Preset = Literal["single", "ordered", "pair", "count", "full"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
ORDERED = ("left of", "above")  # relations in which order on the page is order in the picture
WORLD = 2  # raise when a scene, a caption or a pixel of this world changes: it is a part of the data's fingerprint


class ShapesConfig(Config):
    """What to draw.

    ``mixture`` gives the share of each preset. In the first ``warm_up_samples`` slots a sample comes from the mixture
    ``warm_up`` instead, with a probability that falls linearly from 1 to 0: a curriculum that is a function of the
    slot. ``phrasings`` names the trained phrasings in use (``shapes_captions.TRAINED``).
    """

    kind: Literal["shapes"] = "shapes"
    size: int = Field(default=32, ge=16, le=256)
    mixture: dict[Preset, float] = {"single": 0.3, "pair": 0.7}
    warm_up: dict[Preset, float] = {"single": 1.0}
    warm_up_samples: int = Field(default=0, ge=0)
    phrasings: tuple[str, ...] = language.TRAINED

    @model_validator(mode="after")
    def _possible(self) -> "ShapesConfig":
        for name in ("mixture", "warm_up"):
            shares = getattr(self, name).values()
            if min(shares, default=0.0) < 0 or sum(shares) <= 0:
                raise ValueError(
                    f"{name} needs shares of at least 0 with a positive sum, for example {{single: 0.3, pair: 0.7}}"
                )
        unknown = sorted(set(self.phrasings) - set(language.TRAINED))
        if unknown or not set(self.phrasings) & set(language.LISTED):
            raise ValueError(
                f"phrasings are to be some of {', '.join(language.TRAINED)}, at least one of them of "
                f"{', '.join(language.LISTED)}; got {', '.join(self.phrasings) or 'none'}"
            )
        return self


class Shapes:
    """The Shapes world as a source of samples.

    Args:
        config: what to draw.
        split: "train", or "heldout" for scenes of the same law (final mixture, no warm-up) that training never sees.
    """

    num = None

    def __init__(self, config: ShapesConfig, split: Split = "train") -> None:
        self.config = config
        self.split = split
        self.fingerprint = hashlib.blake2b(
            json.dumps([WORLD, split, config.model_dump(mode="json")], sort_keys=True).encode(), digest_size=8
        ).hexdigest()
        self._mixture = _cumulative(config.mixture)
        self._warm_up = _cumulative(config.warm_up)

    def scene(self, seed: int, slot: int) -> tuple[Scene, str]:
        """The scene and the caption of a slot, before rendering."""
        rng = key(seed, f"shapes/{self.split}", slot)
        warming = rng.random() * self.config.warm_up_samples > slot and self.split == "train"
        names, edges = self._warm_up if warming else self._mixture
        preset = names[np.searchsorted(edges, rng.random(), side="right")]
        statement = state(preset, rng)
        caption = _caption(preset, statement, rng, self.config.phrasings)
        return draw(statement, rng), caption

    def sample(self, seed: int, slot: int) -> Sample:
        """Give sample ``slot`` (from 0) of the run with this seed; its image is (3, size, size) float32 in [-1, 1]."""
        scene, caption = self.scene(seed, slot)
        return Sample(
            image=torch.from_numpy(render(scene, self.config.size)),
            caption=caption,
            id=f"shapes-{self.split}-{seed}-{slot}",
        )

    def captions(self) -> Iterable[str]:
        """Captions in which every word of the world occurs, whatever the mixture."""
        return language.every_word()


def state(preset: Preset, rng: np.random.Generator, pairs: Sequence[tuple[str, str]] = TRAINED_PAIRS) -> Statement:
    """Draw what a caption of a preset shall state; all nouns differ in colour or shape.

    Args:
        preset: the difficulty.
        rng: the statement is a function of its state.
        pairs: the (colour, shape) combinations allowed.
    """
    if preset == "single":
        return Statement((Noun(*pick(rng, pairs)),))
    if preset == "count":
        return Statement((Noun(*pick(rng, pairs), count=2 + int(rng.random() * 3)),))
    if preset in ("ordered", "pair"):
        first, second = _distinct(2, rng, pairs)
        return Statement((Noun(*first), Noun(*second)), pick(rng, ORDERED if preset == "ordered" else tuple(RELATIONS)))
    counts = pick(rng, pick(rng, _LAYOUTS))
    nouns, num_large = [], 0
    for count, (colour, shape) in zip(counts, _distinct(len(counts), rng, pairs), strict=True):
        size = pick(rng, (None, None, "small", "large"))
        if size == "large" and num_large + count > most_large(sum(counts)):
            size = "small"
        num_large += count if size == "large" else 0
        nouns.append(Noun(colour, shape, count, size))
    related = len(nouns) == 2 and rng.random() < 0.75
    return Statement(tuple(nouns), pick(rng, tuple(RELATIONS)) if related else None)


def prompts(kind: str, num: int, seed: int) -> tuple[str, ...]:
    """A fixed list of evaluation prompts.

    Args:
        kind: a preset, such as "pair", says it in trained combinations and phrasings. With the suffix
            "_heldout_combinations" at least one noun of each prompt is a held-out combination of colour and shape:
            uniform among those statements, so 87 % of the pairs have exactly one. With "_heldout_phrasings" the
            combinations are trained and the phrasings held out.
        num: how many; the first n of a longer list are the list of n.
        seed: of the list.

    Raises:
        Refused: no such kind.
    """
    preset, _, heldout = kind.partition("_heldout_")
    if preset not in PRESETS or heldout not in ("", "combinations", "phrasings"):
        raise Refused(
            f"no prompts of kind {kind!r}; known are {', '.join(PRESETS)}, "
            "each also with _heldout_combinations or _heldout_phrasings"
        )
    return tuple(_prompt(preset, heldout, key(seed, f"shapes/prompts/{kind}", i)) for i in range(num))


def prompts_hash(prompts: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that name a list of prompts."""
    return hashlib.blake2b("\n".join(prompts).encode(), digest_size=8).hexdigest()


def _prompt(preset: Preset, heldout: str, rng: np.random.Generator) -> str:
    """One evaluation prompt."""
    statement = state(preset, rng, PAIRS if heldout == "combinations" else TRAINED_PAIRS)
    while heldout == "combinations" and not any((noun.colour, noun.shape) in HELDOUT_PAIRS for noun in statement.nouns):
        statement = state(preset, rng, PAIRS)
    if heldout == "phrasings":
        return _caption(preset, statement, rng, language.HELDOUT, heldout=True)
    return _caption(preset, statement, rng, language.TRAINED)


def _caption(
    preset: Preset, statement: Statement, rng: np.random.Generator, names: Sequence[str], *, heldout: bool = False
) -> str:
    """The statement in one of the named phrasings that can say it; "ordered" ones name first what they are about."""
    templates = language.phrasings(statement, heldout=heldout)
    able = [templates[name] for name in names if name in templates]
    if preset == "ordered":
        able = [template for template in able if template.index("{a}") < template.index("{b}")]
    return language.say(statement, pick(rng, able))


def _distinct(num: int, rng: np.random.Generator, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Different combinations, uniformly, in random order."""
    chosen: list[tuple[str, str]] = []
    while len(chosen) < num:
        pair = pick(rng, pairs)
        if pair not in chosen:
            chosen.append(pair)
    return chosen


def _cumulative(shares: dict[Preset, float]) -> tuple[tuple[Preset, ...], np.ndarray]:
    """Names, and the right edges of their shares of [0, 1], for a search."""
    edges = np.array(list(accumulate(shares.values())))
    return tuple(shares), edges[:-1] / edges[-1]


_LAYOUTS = (  # counts of the nouns of a "full" statement, by the number of objects
    ((1,),),
    ((2,), (1, 1)),
    ((3,), (2, 1), (1, 2), (1, 1, 1)),
    ((4,), (3, 1), (1, 3), (2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2)),
)

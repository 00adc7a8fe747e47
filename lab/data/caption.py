"""Which of a picture's captions is spoken, and in which words around it."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
from pydantic import Field, model_validator

from lab.config import Config
from lab.data.source import CAPTION, BadSample

HOLE = "{caption}"
Captions = Sequence[tuple[str, str]]  # (kind, text) each, in the order of the data


class CaptionConfig(Config):
    """How captions are chosen, anew each time a picture is seen.

    Attributes:
        kinds: share of each kind of caption among pictures that have it, for example {short: 0.5, long: 0.5}; a picture
            with none of them is bad. Empty: every caption of a picture alike. A kind is a field of the metadata
            or a name in ``positions``.
        positions: kinds of the captions of a list by their place in it, for example [short, long]; those beyond, and
            all of them by default, are of kind "caption".
        templates: sentences around the caption, chosen uniformly, for example "a drawing of {caption}". An empty
            caption stays empty.
    """

    kinds: dict[str, float] = {}
    positions: tuple[str, ...] = ()
    templates: tuple[str, ...] = Field((HOLE,), min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> "CaptionConfig":
        if self.kinds and (min(self.kinds.values()) < 0 or sum(self.kinds.values()) <= 0):
            raise ValueError("kinds needs shares of at least 0 with a positive sum, such as {short: 0.5, long: 0.5}")
        if wrong := [template for template in self.templates if HOLE not in template]:
            raise ValueError(f"templates hold {HOLE} where the caption is to stand; {wrong[0]!r} does not")
        return self


def choose(captions: Captions, config: CaptionConfig, rng: np.random.Generator) -> tuple[str, str]:
    """Choose one of a picture's captions.

    Args:
        captions: of the picture.
        config: how.
        rng: the choice is a function of its state.

    Returns:
        The kind and the text.

    Raises:
        BadSample: there is none, or none of the kinds that are asked for.
    """
    which, one, sentence = rng.random(3)
    kinds = [kind for kind, _ in captions]
    if not captions:
        raise BadSample("no caption")
    if config.kinds:
        kind = _weighted({kind: share for kind, share in config.kinds.items() if kind in kinds and share > 0}, which)
        if kind is None:
            raise BadSample("no caption of these kinds", f"has {', '.join(dict.fromkeys(kinds))}")
        captions = [caption for caption in captions if caption[0] == kind]
    kind, text = captions[int(one * len(captions))]
    template = config.templates[int(sentence * len(config.templates))]
    return kind, template.replace(HOLE, text) if text else ""


def spoken(captions: Captions, config: CaptionConfig) -> Iterator[str]:
    """Give every text that ``choose`` may choose."""
    for kind, text in captions:
        if not config.kinds or config.kinds.get(kind, 0) > 0:
            yield from (template.replace(HOLE, text) for template in config.templates if text)


def read(value: object, field: str) -> list[str]:
    """Give the captions in a value of metadata, a text, a list of texts or nothing, without spaces around them.

    Raises:
        BadSample: it is something else, or not UTF-8.
    """
    if value is None:
        return []
    found: list[str] = []
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            raise BadSample("caption is not a text", f"{field} is {text!r:.60}")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise BadSample("caption is not UTF-8", field)  # such bytes became lone surrogates
        found.append(text.strip())
    return found


def of_fields(fields: Mapping[str, object], config: CaptionConfig) -> list[tuple[str, str]]:
    """Give the captions in the metadata of one picture.

    Args:
        fields: of one picture: "caption", a text; "captions", a list; and fields that ``config.kinds`` names.
        config: says which kinds there are.

    Raises:
        BadSample: one is not a text, or not UTF-8.
    """
    own = dict.fromkeys((CAPTION, *config.kinds))
    found = [(field, text) for field in own if field in fields for text in read(fields[field], field)]
    return found + in_places(read(fields.get("captions"), "captions"), config)


def in_places(texts: Iterable[str], config: CaptionConfig) -> list[tuple[str, str]]:
    """Give the captions of a list their kinds."""
    names = config.positions
    return [(names[k] if k < len(names) else CAPTION, text) for k, text in enumerate(texts)]


def _weighted(shares: Mapping[str, float], draw: float) -> str | None:
    """The kind in whose part of [0, 1) a draw falls, if there is any."""
    edges = list(accumulate(shares.values()))
    return list(shares)[bisect_right(edges[:-1], draw * edges[-1])] if shares else None

"""Several data sets as one, in fixed shares.

Which part a slot belongs to, and the how-manieth of that part it is, is a function of the slot alone: a pattern of
``PERIOD`` slots repeats, in which every part is spread as evenly as its share allows. So each part runs through its own
epochs, at its own pace, from any slot on.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from lab.config import Config
from lab.data.coco import Coco
from lab.data.collection import PictureSet
from lab.data.folder import Folder
from lab.data.idx import Idx
from lab.data.parquet import Parquet
from lab.data.shapes import ShapesConfig
from lab.data.shards import Shards
from lab.data.source import Sample, Source
from lab.data.stream import StreamConfig
from lab.data.torchvision_set import Torchvision
from lab.randomness import number

PERIOD = 1024  # slots; shares are multiples of 1 / PERIOD


def kind_of(value: Any) -> str | None:
    """The kind that a configuration of data names, which is "shapes" where none is named."""
    return value.get("kind", "shapes") if isinstance(value, dict) else getattr(value, "kind", None)


OnePart = (
    Annotated[ShapesConfig, Tag("shapes")]
    | Annotated[Folder, Tag("folder")]
    | Annotated[Coco, Tag("coco")]
    | Annotated[Idx, Tag("idx")]
    | Annotated[Torchvision, Tag("torchvision")]
    | Annotated[Parquet, Tag("parquet")]
    | Annotated[Shards, Tag("shards")]
    | Annotated[StreamConfig, Tag("stream")]
)
AnyPart = Annotated[OnePart, Discriminator(kind_of)]


class MixtureConfig(Config):
    """Data sets and their shares.

    Attributes:
        size: side of the images in pixels, which is that of every part.
        parts: data sets by names of your own.
        weights: share of each, relative to their sum, rounded to 1/1024.
        max_bad: share of bad samples, of all parts together, above which a run ends; those of the parts do not count.
    """

    kind: Literal["mixture"] = "mixture"
    size: int = Field(64, ge=8, le=1024)
    parts: dict[str, AnyPart] = Field(min_length=1)
    weights: dict[str, Annotated[float, Field(gt=0)]]
    max_bad: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _possible(self) -> "MixtureConfig":
        if self.parts.keys() != self.weights.keys():
            raise ValueError(f"weights are to name {', '.join(self.parts)}; they name {', '.join(self.weights)}")
        for name, part in self.parts.items():
            if part.size != self.size:
                raise ValueError(f"parts.{name}.size={part.size}, but size={self.size}: make them the same")
            if isinstance(part, PictureSet) and part.buckets:
                raise ValueError(
                    f"parts.{name}.buckets would make batches of one shape, and a mixture deals them out sample by "
                    "sample: leave it out, or train on that part alone"
                )
        if rare := [name for name, count in shares(self.weights).items() if not count]:
            raise ValueError(f"weights.{rare[0]} is less than 1/{PERIOD} of all: raise it")
        return self


class Mixture:
    """Several sources as one.

    Args:
        weights: of the sources.
        parts: the sources, by the same names.
    """

    def __init__(self, weights: Mapping[str, float], parts: Mapping[str, Source]) -> None:
        self.parts = parts
        self._shares = shares(weights)
        self._pattern = pattern(self._shares)
        known = json.dumps([self._shares, {name: part.fingerprint for name, part in parts.items()}], sort_keys=True)
        self.fingerprint = hashlib.blake2b(known.encode(), digest_size=8).hexdigest()

    @property
    def num(self) -> int | None:
        """How many different samples all parts have; ``None`` if one is endless."""
        nums = [part.num for part in self.parts.values()]
        return None if None in nums else sum(num for num in nums if num is not None)

    def place(self, slot: int) -> tuple[str, int]:
        """Give the part that a slot belongs to, and the slot of that part."""
        rounds, position = divmod(slot, PERIOD)
        name, rank = self._pattern[position]
        return name, rounds * self._shares[name] + rank

    def sample(self, seed: int, slot: int) -> Sample:
        """Give sample ``slot`` (from 0) of the run with this seed.

        Raises:
            BadData: as from the parts.
        """
        name, own = self.place(slot)
        sample = self.parts[name].sample(number(seed, f"mixture/{name}", 0) >> 96, own)
        faults = tuple(replace(fault, slot=slot, id=f"{name}/{fault.id}") for fault in sample.faults)
        return replace(sample, id=f"{name}/{sample.id}", faults=faults)

    def captions(self) -> Iterable[str]:
        """Give the captions of all parts."""
        return chain.from_iterable(part.captions() for part in self.parts.values())


def shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Give how many of ``PERIOD`` slots each part gets: rounded so that they are all given out."""
    exact = {name: PERIOD * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: PERIOD - sum(counts.values())]:
        counts[name] += 1
    return counts


def pattern(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Give for each of ``PERIOD`` slots the part that is furthest behind its share, and how many of it came before."""
    given = dict.fromkeys(counts, 0)
    slots: list[tuple[str, int]] = []
    for slot in range(1, PERIOD + 1):
        name = max(counts, key=lambda name: counts[name] * slot - given[name] * PERIOD)
        slots.append((name, given[name]))
        given[name] += 1
    return slots

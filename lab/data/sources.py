"""From the configuration of the data to its source."""

from typing import Annotated

from pydantic import Discriminator, Tag

from lab.data.finite import Finite
from lab.data.index import open_index
from lab.data.mixture import Mixture, MixtureConfig, OnePart, kind_of
from lab.data.shapes import Shapes, ShapesConfig
from lab.data.source import Source
from lab.data.split import Split
from lab.data.stream import Stream, StreamConfig

AnyData = Annotated[OnePart | Annotated[MixtureConfig, Tag("mixture")], Discriminator(kind_of)]


def source(config: AnyData, split: Split = "train", batch: int = 0) -> Source:
    """Open the data that is configured, one side of it.

    Args:
        config: which.
        split: which side.
        batch: samples of a training step, which have one shape each where the data has several (``data.buckets``); 0 is
            for everybody else, who sees squares.

    Raises:
        Refused: there is no such data, or it is not to be trusted.
        BadData: it cannot be listed.
        StorageFailed: its index cannot be written.
    """
    match config:
        case ShapesConfig():
            return Shapes(config, split)
        case StreamConfig():
            return Stream(config, split)
        case MixtureConfig():
            return Mixture(config.weights, {name: source(part, split) for name, part in config.parts.items()})
        case _:
            return Finite(config, open_index(config), split, batch)

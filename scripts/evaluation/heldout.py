"""Pictures of a run's data for what is measured on pictures: of both sides, each the same at every call."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lab.config import Config
from lab.data.collection import PictureSet
from lab.data.mixture import MixtureConfig
from lab.data.pictures import PictureConfig
from lab.data.sources import AnyData, source
from lab.data.split import Split
from lab.errors import Refused
from lab.images import to_uint8

SEED = 0  # of what is evaluated; runs have their own

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class Pictures:
    """Some pictures of one side of the data.

    Attributes:
        images: (n, 3, H, W) uint8, RGB; what is transparent lies on white.
        captions: n texts.
        kinds: n kinds of captions.
        facts: which they are, as JSON values.
    """

    images: Tensor
    captions: tuple[str, ...]
    kinds: tuple[str, ...]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)


def pictures(data: AnyData, split: Split, num: int, least: int = 1) -> Pictures:
    """Give the first pictures of one side of the data, on white and without random crops and mirrorings.

    Args:
        data: of the run.
        split: which side.
        num: how many; all there are, if there are fewer.
        least: of them, with which something can be said.

    Raises:
        Refused, BadData: as from ``source``, and if there are too few.
    """
    found = source(_still(data), split)
    num = min(num, found.num or num)
    if num < least:
        raise Refused(f"{num} pictures on the {split} side are too few for these figures, which need {least}")
    samples = [found.sample(SEED, slot) for slot in tqdm(range(num), desc=f"{split} pictures", disable=None)]
    facts = {"split": split, "seed": SEED, "num": num, "fingerprint": found.fingerprint}
    images = torch.stack([to_uint8(sample.image) for sample in samples])
    return Pictures(images, tuple(each.caption for each in samples), tuple(each.kind for each in samples), facts)


def _still(data: AnyConfig) -> AnyConfig:
    """The same data with its pictures as they are."""
    if isinstance(data, MixtureConfig):
        return data.model_copy(update={"parts": {name: _still(part) for name, part in data.parts.items()}})
    if isinstance(data, PictureSet):
        return data.model_copy(update={"picture": PictureConfig(smallest=data.picture.smallest)})
    return data

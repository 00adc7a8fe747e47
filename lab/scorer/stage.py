"""A scorer as a stage of the one trainer: of the pictures and texts of a step each is to find its own."""

import hashlib
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.data.loader import Batch
from lab.randomness import key
from lab.runtime import Runtime
from lab.scorer.model import LARGEST_SCALE, Scorer, TowerConfig
from lab.text.encoder import placed

Meaning = Callable[[str], str]
"""What a text says, whatever its words: texts of one meaning fit the same pictures."""
Falsify = Callable[[str, int, np.random.Generator], Sequence[str]]
"""Gives so many texts that are nearly a caption, and false of every picture of which it is true."""


class Language(NamedTuple):
    """What is known of captions, beside their words.

    Attributes:
        meaning: of a caption; those of one meaning are not held against each other.
        falsify: changes one thing of a caption; ``None`` where nobody knows how.
    """

    meaning: Meaning
    falsify: Falsify | None = None


class ScorerConfig(Config):
    """A scorer and how it is trained.

    Attributes:
        tower: the network of pictures; that of texts is the run's text encoder.
        width: of the space in which pictures and texts are compared.
        near_misses: texts beside the others of the step that each picture is to tell from its own: its caption with one
            thing changed. Of data whose captions can be falsified, the Shapes. 0 for open_clip's loss.
    """

    kind: Literal["scorer"] = "scorer"
    tower: TowerConfig = TowerConfig()
    width: int = Field(128, ge=8)
    near_misses: int = Field(0, ge=0, le=16)


class Contrast(NamedTuple):
    """What a contrast says of each of a process's samples.

    Attributes:
        losses: (b,), half for finding the text of the picture, half for finding the picture of the text.
        finds_text, finds_image: (b,), 1 where the right one scores highest, else 0.
    """

    losses: Tensor
    finds_text: Tensor
    finds_image: Tensor


class Step(NamedTuple):
    """The directions of a whole step, of which a process has a part.

    Attributes:
        images, texts: (B, d), of all pictures and texts.
        meanings: (B,) int64, equal where texts say the same.
        own: the part of this process, b samples.
        near: (b, k, d), of texts that are nearly right for each of its pictures.
    """

    images: Tensor
    texts: Tensor
    meanings: Tensor
    own: range
    near: Tensor


def contrast(step: Step, scale: Tensor) -> Contrast:
    """Compare the samples of a process with all of the step.

        loss_i = -1/2 log softmax_j (scale x_i . y_j) at j = i  -  1/2 log softmax_j (scale x_j . y_i) at j = i

    The softmax runs over the samples of another meaning than i, and i itself: a text that says the same as text i is no
    wrong answer for picture i. That over texts also runs over what is nearly right for picture i. Without either the
    mean over all samples is open_clip's ``ClipLoss``.

    Args:
        step: the directions.
        scale: of the cosines.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3; van den Oord et al. 2018, arXiv:1807.03748, eq. 4; near
    misses as in Yuksekgonul et al. 2023, arXiv:2210.01936, section 4, but each for its own picture alone.
    """
    images, texts, near = step.images, step.texts, step.near
    rows = torch.arange(step.own.start, step.own.stop, device=images.device)
    twins = step.meanings[rows, None] == step.meanings[None]
    twins[rows - step.own.start, rows] = False
    with torch.autocast(images.device.type, enabled=False):
        to_text = (scale * images[rows] @ texts.T).masked_fill(twins, -math.inf)  # (b, B)
        to_text = torch.cat([to_text, scale * einsum(images[rows], near, "b d, b k d -> b k")], dim=1)
        to_image = (scale * texts[rows] @ images.T).masked_fill(twins, -math.inf)
        halves = [F.cross_entropy(logits, rows, reduction="none") / 2 for logits in (to_text, to_image)]
    hits = [(logits.argmax(dim=1) == rows).float() for logits in (to_text, to_image)]
    return Contrast(halves[0] + halves[1], *hits)


class ScorerStage:
    """Trains a ``Scorer`` on captioned images.

    Args:
        config: what beside the step a picture is compared with.
        model: what is trained.
        language: what is known of the captions.
        originals: gives the first so many pictures (b, 3, H, W) of the data, for previews.
        runtime: where it computes, and with whom.
    """

    needs_whole_batch = True

    def __init__(
        self,
        config: ScorerConfig,
        model: Scorer,
        language: Language,
        originals: Callable[[int], Tensor],
        runtime: Runtime,
    ) -> None:
        self.config, self.language, self.originals, self.runtime = config, language, originals, runtime
        self.players: MutableMapping[str, nn.Module] = {"model": model}
        self.memory: Mapping[str, Tensor] = {}
        self._prepare = model.text.prepare

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give the loss of each sample (b,) against all of the step, on every process, and whether it was found."""
        world, device, num = self.runtime.world, batch.images.device, len(batch)
        prepared = placed(self._prepare([*batch.captions, *self._near(batch)]), device)
        images, texts, scale = self.players["model"](batch.images, prepared)
        near = rearrange(texts[num:], "(b k) d -> b k d", b=num)
        joined, begin = world.join(torch.cat([images, texts[:num]], dim=1))
        numbers = torch.tensor([_number(self.language.meaning(text)) for text in batch.captions])
        meanings, _ = world.join(numbers)
        every_image, every_text = joined.chunk(2, dim=1)
        step = Step(every_image, every_text, meanings.to(device), range(begin, begin + num), near)
        losses, finds_text, finds_image = contrast(step, scale)
        told = {"finds_text": finds_text, "finds_image": finds_image, "scale": scale.detach().expand(num)}
        return losses, told

    def _near(self, batch: Batch) -> list[str]:
        """What is nearly right for each picture, one after the other."""
        num, falsify = self.config.near_misses, self.language.falsify
        if not num:
            return []
        assert falsify is not None, "only captions that can be falsified have near misses"
        pairs = zip(batch.captions, batch.slots, strict=True)
        return [text for caption, slot in pairs for text in falsify(caption, num, key(batch.seed, "near", slot))]

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Keep the scale of the cosines from growing without end, as CLIP does."""
        with torch.no_grad():
            self.players["model"].get_parameter("log_scale").clamp_(0, math.log(LARGEST_SCALE))

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Give for each caption the picture that fits it best, of the pictures of all of them."""
        assert isinstance(model, Scorer)
        images = self.runtime.batch(self.originals(len(captions)))
        with self.runtime.autocast():
            cosines = model.of_texts(captions) @ model.of_images(images).T
        return images[cosines.argmax(dim=1)]

    def findings(self) -> Mapping[str, float]:
        """Give the number of texts that each picture of a step is told from beside those of the others."""
        return {"near_misses": float(self.config.near_misses)}

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw nothing."""
        return {}


def _number(meaning: str) -> int:
    """A meaning as 63 bits, which processes can exchange."""
    return int.from_bytes(hashlib.blake2b(meaning.encode(), digest_size=8).digest(), "little") >> 1

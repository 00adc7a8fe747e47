"""A scorer as a stage of the one trainer: of the pictures and texts of a step each is to find its own."""

import hashlib
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.data.loader import Batch
from lab.runtime import Runtime
from lab.scorer.model import LARGEST_SCALE, Scorer, TowerConfig
from lab.text.encoder import placed

Meaning = Callable[[str], str]
"""What a text says, whatever its words: texts of one meaning fit the same pictures."""


class ScorerConfig(Config):
    """A scorer and how it is trained.

    Attributes:
        tower: the network of pictures; that of texts is the run's text encoder.
        width: of the space in which pictures and texts are compared.
    """

    kind: Literal["scorer"] = "scorer"
    tower: TowerConfig = TowerConfig()
    width: int = Field(128, ge=8)


class Contrast(NamedTuple):
    """What a contrast says of each of a process's samples.

    Attributes:
        losses: (b,), half for finding the text of the picture, half for finding the picture of the text.
        finds_text, finds_image: (b,), 1 where the right one scores highest, else 0.
    """

    losses: Tensor
    finds_text: Tensor
    finds_image: Tensor


def contrast(images: Tensor, texts: Tensor, own: range, scale: Tensor, meanings: Tensor) -> Contrast:
    """Compare some samples of a step with all.

        loss_i = -1/2 log softmax_j (scale x_i . y_j) at j = i  -  1/2 log softmax_j (scale x_j . y_i) at j = i

    The softmax runs over the samples of another meaning than i, and i itself: a text that says the same as text i is no
    wrong answer for picture i. Without such twins the mean over all samples is open_clip's ``ClipLoss``.

    Args:
        images, texts: (B, d), directions of the pictures and texts of the whole step.
        own: which of them the losses are wanted of, b.
        scale: of the cosines.
        meanings: (B,) int64, equal where texts say the same.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3; van den Oord et al. 2018, arXiv:1807.03748, eq. 4.
    """
    rows = torch.arange(own.start, own.stop, device=images.device)
    twins = meanings[rows, None] == meanings[None]
    twins[torch.arange(len(rows)), rows] = False
    found = []
    with torch.autocast(images.device.type, enabled=False):
        for queries, answers in ((images, texts), (texts, images)):
            logits = (scale * queries[rows] @ answers.T).masked_fill(twins, -math.inf)  # (b, B)
            found.append((F.cross_entropy(logits, rows, reduction="none"), (logits.argmax(dim=1) == rows).float()))
    (to_text, finds_text), (to_image, finds_image) = found
    return Contrast((to_text + to_image) / 2, finds_text, finds_image)


class ScorerStage:
    """Trains a ``Scorer`` on captioned images.

    Args:
        model: what is trained.
        meaning: of captions; those of one meaning are not held against each other.
        originals: gives the first so many pictures (b, 3, H, W) of the data, for previews.
        runtime: where it computes, and with whom.
    """

    needs_whole_batch = True

    def __init__(self, model: Scorer, meaning: Meaning, originals: Callable[[int], Tensor], runtime: Runtime) -> None:
        self.meaning, self.originals, self.runtime = meaning, originals, runtime
        self.players: MutableMapping[str, nn.Module] = {"model": model}
        self.memory: Mapping[str, Tensor] = {}
        self._prepare = model.text.prepare

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give the loss of each sample (b,) against all of the step, on every process, and whether it was found."""
        model, world = self.players["model"], self.runtime.world
        pair = model(batch.images, placed(self._prepare(batch.captions), batch.images.device))
        joined, begin = world.join(torch.cat(pair, dim=1))
        images, texts = joined.chunk(2, dim=1)
        meanings, _ = world.join(torch.tensor([_number(self.meaning(text)) for text in batch.captions]))
        scale = self._log_scale.exp()
        own = range(begin, begin + len(batch))
        losses, finds_text, finds_image = contrast(images, texts, own, scale, meanings.to(images.device))
        told = {"finds_text": finds_text, "finds_image": finds_image, "scale": scale.detach().expand(len(batch))}
        return losses, told

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Keep the scale of the cosines from growing without end, as CLIP does."""
        with torch.no_grad():
            self._log_scale.clamp_(0, math.log(LARGEST_SCALE))

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Give for each caption the picture that fits it best, of the pictures of all of them."""
        assert isinstance(model, Scorer)
        images = self.runtime.batch(self.originals(len(captions)))
        with self.runtime.autocast():
            cosines = model.of_texts(captions) @ model.of_images(images).T
        return images[cosines.argmax(dim=1)]

    def findings(self) -> Mapping[str, float]:
        """Give what cosines are multiplied by."""
        return {"scale": float(self._log_scale.detach().exp())}

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw nothing."""
        return {}

    @property
    def _log_scale(self) -> Tensor:
        return self.players["model"].get_parameter("log_scale")


def _number(meaning: str) -> int:
    """A meaning as 63 bits, which processes can exchange."""
    return int.from_bytes(hashlib.blake2b(meaning.encode(), digest_size=8).digest(), "little") >> 1

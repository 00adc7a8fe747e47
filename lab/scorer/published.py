"""CLIP models that others have trained, as judges of pictures; lab.evaluation.clip_score finds and loads them."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lab.evaluation.clip_score import Clip
from lab.images import to_uint8
from lab.runtime import Runtime
from lab.scorer.judge import Judge


class PublishedClip:
    """A published CLIP as a judge needs it; see ``lab.scorer.judge.Directions``.

    Args:
        clip: with both halves, on the device.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def of_images(self, images: Tensor) -> Tensor:
        """Give the directions (b, d) of pictures (b, 3, H, W) in [-1, 1], of any size, as a PNG would hold them."""
        return F.normalize(self.clip(to_uint8(images)), dim=-1)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Give the directions (b, d) of texts, of which the first tokens are heard, 77 in most."""
        return F.normalize(self.clip.texts(texts), dim=-1)

    def cut(self, texts: Sequence[str]) -> int:
        """Count the texts whose end is not heard."""
        return self.clip.num_cut(texts)


def load(name: str, runtime: Runtime) -> Judge:
    """Load a published CLIP.

    Raises:
        Refused: as from ``Clip``.
    """
    clip = Clip(name, runtime.device, setting="--scorer clip")
    origin = {"published": name, "weights_sha256": clip.weights_sha256}
    return Judge(PublishedClip(clip), runtime, origin)

"""What a thing must say of itself to be trained."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Protocol

from PIL import Image
from torch import Tensor, nn

from lab.data.loader import Batch


class Stage(Protocol):
    """Something with players and losses: a diffusion model, an autoencoder and its critic, a decoder.

    Attributes:
        players: the modules that are trained, updated in this order in each step; "model" is averaged (EMA) and sampled
            from.
    """

    players: MutableMapping[str, nn.Module]

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give one loss per sample (b,) for a player, and per-sample metrics (b,) to be averaged.

        Everything random is a function of the batch's slots, and a sample's loss does not depend on the others in the
        batch.
        """
        ...

    def preview(self, model: nn.Module, captions: Sequence[str]) -> Tensor:
        """Draw (b, 3, H, W) images for the log with the weights given."""
        ...

    def findings(self) -> Mapping[str, float]:
        """Give what is worth knowing of this stage before a step is made, such as the signal left at t = 1."""
        ...

    def charts(self) -> Mapping[str, Image.Image]:
        """Draw what is worth seeing of this stage before a step is made, by name."""
        ...

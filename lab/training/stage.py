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
        memory: what it learns of its own training, often nothing: tensors that ``after_step`` alone changes, in place,
            and that are saved with the players.
        needs_whole_batch: whether a sample's loss depends on the others of its step. The trainer then makes each step
            in one pass, and the stage exchanges with other processes what the loss needs (``World.join``).
    """

    players: MutableMapping[str, nn.Module]
    memory: Mapping[str, Tensor]
    needs_whole_batch: bool

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Give one loss per sample (b,) for a player, and per-sample metrics: (b,) to be averaged, (b, ...) to be kept.

        Everything random is a function of the batch's slots, and a sample's loss does not depend on the others in the
        batch, unless ``needs_whole_batch`` says so. Losses without a gradient let a player beside the model rest:
        neither its weights nor its moments change.
        """
        ...

    def after_step(self, samples: Mapping[str, Tensor]) -> None:
        """Take note of a step that was made.

        Args:
            samples: the losses (batch,) and metrics (batch, ...) of all its samples, in the order of the slots: of the
                model by their own names, of the player P as "P/...".
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

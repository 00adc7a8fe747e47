"""From a batch of large pictures to pairs of a large one and the small one that it is to be made from."""

from torch import Tensor

from lab.data.crops import cropped
from lab.data.loader import Batch
from superres.degrade import AnyDegradation, degrade


def pairs(batch: Batch, crop: int, factor: int, degradation: AnyDegradation) -> tuple[Tensor, Tensor]:
    """Give large pictures, perhaps parts of them, and the small ones made from them; all by slot.

    Args:
        batch: the large pictures, (b, 3, H, W).
        crop: side in pixels of the part that is taken, another one for each slot; 0 for all of it.
        factor: how much smaller the small ones are.
        degradation: how they are made.
    """
    large = cropped(batch, crop)
    return large, degrade(large, factor, degradation, batch.seed, batch.slots)

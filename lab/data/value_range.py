"""Whether the images of a data set use the range that every model is told of: -1 is black, 1 is white.

Images that were scaled to [0, 1] on their way lie within [-1, 1] too. A model learns them, and draws grey.
"""

from lab.data.source import Source
from lab.errors import Refused

DARKEST = -0.1  # what some image of a set goes below
NUM = 1000


def check_range(source: Source, seed: int, num: int = NUM) -> None:
    """Look at the first images, until one is dark somewhere.

    Args:
        source: of the data.
        seed: the run's.
        num: images that are looked at, at most; of a smaller set all.

    Raises:
        Refused: a value is not in [-1, 1], or no image goes below ``DARKEST``.
        BadData: as from ``Source.sample``.
    """
    low, num = 1.0, min(num, source.num or num)
    for slot in range(num):
        sample = source.sample(seed, slot)
        darkest, lightest = sample.image.min().item(), sample.image.max().item()
        if not -1.001 <= darkest <= lightest <= 1.001:
            raise Refused(
                f"image {sample.id} has values from {darkest:.2f} to {lightest:.2f}, beyond [-1, 1]: "
                "bring bytes to that range by lab.images.from_uint8"
            )
        low = min(low, darkest)
        if low < DARKEST:
            return
    raise Refused(
        f"none of the first {num:,} images goes below {low:.2f}, where -1 is black and 1 is white: if they were scaled "
        "to [0, 1] or saved so, load them anew by lab.images.from_uint8; if they are that bright, add --allow-range"
    )

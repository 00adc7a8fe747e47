"""Are samples copies of training images? Their nearest training images are held against those of held-out images.

A held-out image has never been seen, so how near it lies to the training set is what chance does. A sample that lies
nearer than most held-out ones may be a copy; if more samples do than held-out images, some are.

    probability of a sample  (1 + held-out images as near or nearer) / (1 + held-out images)
    share of copies          (a - c) / (1 - c), where a of the samples and c of all unseen images lie nearer than t

The first is uniform where samples are new images, in any space of features and in pixels alike. For the second t is
the distance below which a twentieth of the held-out images lie.

Source: Meehan et al. 2020, arXiv:2004.05675, for the comparison with held-out images; Vovk et al. 2005, "Algorithmic
Learning in a Random World", for the probability.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.errors import NonFinite, Refused
from lab.evaluation.intervals import wilson

NEAR = 0.05  # share of held-out images that counts as near
LEAST = 40  # held-out images with which two of them are that near
_ROWS = 256  # images of either side held in full precision at once


@dataclass(frozen=True)
class Neighbours:
    """The nearest image of a set to each of some images.

    Attributes:
        distances: (n,) float64, Euclidean.
        indices: (n,), which image of the set.
    """

    distances: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Memorization:
    """How many samples are copies.

    Attributes:
        share: of the samples, estimated; at least 0.
        low, high: its 95 % interval.
        probabilities: (n,) of the samples, to lie so near by chance.
        n, heldout, training: numbers of images.
        interval: the kind of interval.
    """

    share: float
    low: float
    high: float
    probabilities: Tensor
    n: int
    heldout: int
    training: int
    interval: str = "95 %, Wilson over samples and Clopper-Pearson over held-out images, combined"

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.low > 0:
            return (
                f"{self.share:.0%} of the samples are copies of training images ({self.low:.0%} to {self.high:.0%}): "
                "they lie nearer to one than held-out images do"
            )
        return (
            f"no sign of copies: samples lie no nearer to training images than held-out images do (at most "
            f"{self.high:.0%} are copies)"
        )


def nearest(images: Tensor, among: Tensor) -> Neighbours:
    """Find the nearest of some images, or of their features, by Euclidean distance.

    Args:
        images: (n, d).
        among: (m, d), at least 1.

    Raises:
        Refused: nothing to look among.
        NonFinite: a feature is infinite or not a number.
    """
    if not len(among):
        raise Refused("no images to look for neighbours among")
    if not (images.isfinite().all() and among.isfinite().all()):
        raise NonFinite("features that are not finite have no neighbours")
    distances = torch.full((len(images),), torch.inf, dtype=torch.float64)
    indices = torch.zeros(len(images), dtype=torch.int64)
    for first, rows in zip(range(0, len(images), _ROWS), images.split(_ROWS), strict=True):
        wanted = slice(first, first + len(rows))
        for start, others in zip(range(0, len(among), _ROWS), among.split(_ROWS), strict=True):
            found = torch.cdist(rows.double(), others.double()).min(dim=1)
            is_nearer = found.values < distances[wanted]
            distances[wanted] = torch.where(is_nearer, found.values, distances[wanted])
            indices[wanted] = torch.where(is_nearer, start + found.indices, indices[wanted])
    return Neighbours(distances, indices)


def memorization(samples: Neighbours, heldout: Neighbours, training: int) -> Memorization:
    """Estimate how many samples are copies.

    Args:
        samples: nearest training images of the samples.
        heldout: nearest training images of held-out images, of the same kind and number of training images.
        training: number of training images.

    Raises:
        Refused: too few held-out images to say what chance does, or no samples.
    """
    n, m = len(samples.distances), len(heldout.distances)
    if m < LEAST or not n:
        raise Refused(f"{n} samples and {m} held-out images: copies are told from chance by at least 1 and {LEAST}")
    as_near = torch.searchsorted(heldout.distances.sort().values, samples.distances, right=True)
    near = int(NEAR * m)
    limit = heldout.distances.sort().values[near - 1]
    hits = int((samples.distances <= limit).sum())
    (low, high), (least, most) = wilson(hits, n), _clopper_pearson(near, m)
    return Memorization(
        share=_excess(hits / n, near / m),
        low=_excess(low, most),
        high=_excess(high, least),
        probabilities=(1 + as_near) / (1 + m),
        n=n,
        heldout=m,
        training=training,
    )


def _excess(samples: float, chance: float) -> float:
    return max(0.0, (samples - chance) / (1 - chance))


def _clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a proportion, 0 < successes < n."""
    from scipy.special import betaincinv

    return (
        float(betaincinv(successes, n - successes + 1, 0.025)),
        float(betaincinv(successes + 1, n - successes, 0.975)),
    )

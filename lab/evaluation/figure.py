"""A figure with everything needed to read it, and what all figures ask of the features that they are read from.

What is compared is a = (a_1 .. a_n), features of samples, with b = (b_1 .. b_m), features of the reference set, rows of
width d from one extractor; arithmetic is in float64. A figure without data is an error and never 0.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lab.errors import NonFinite, Refused

Matrix = npt.NDArray[np.float64]

INCEPTION, DINOV2, CLIP = "inception-v3", "dinov2-vit-l14", "clip-vit-l14-336"  # whose figures have published names


@dataclass(frozen=True)
class Figure:
    """One figure with everything needed to read it.

    Attributes:
        name: what was measured and by which extractor, such as "kernel_distance (efficientnet-lite0)".
        extractor: name of the extractor.
        value: the point estimate.
        low, high: the 95 % interval; it always contains ``value``.
        n, m: number of images in the first and in the second set; 0 where there is no second.
        interval: the kind of interval.
        target: what the interval is meant to cover.
        notes: what a reader must be warned of; empty when there is nothing.
    """

    name: str
    extractor: str
    value: float
    low: float
    high: float
    n: int
    m: int
    interval: str
    target: str
    notes: tuple[str, ...] = ()


def matrices(a: Tensor, b: Tensor, *, at_least: int, what: str) -> tuple[Matrix, Matrix]:
    """Bring two feature sets to float64, or refuse what no figure can be read from.

    Args:
        a, b: (n, d) and (m, d).
        at_least: images that each set must have.
        what: the figure, for the message.

    Raises:
        Refused: too few images, or sets of different widths.
        NonFinite: a feature is infinite or not a number.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise Refused(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: "
            "give (n, d) and (m, d) from one extractor"
        )
    fewest = min(len(a), len(b))
    if fewest < at_least:
        raise Refused(f"{what} needs at least {at_least} images in each set, got {fewest}: give more images")
    for x in (a, b):
        if not x.isfinite().all():
            raise NonFinite(f"{what} cannot be read: a feature is infinite or not a number")
    return a.detach().cpu().double().numpy(), b.detach().cpu().double().numpy()


def torch_fidelity(module: str) -> ModuleType:
    """Open the door to a module of torch-fidelity, late: the import takes seconds.

    Raises:
        Refused: it is not installed.
    """
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ModuleNotFoundError as error:
        raise Refused("torch-fidelity is not installed: pip install torch-fidelity==0.4.0") from error

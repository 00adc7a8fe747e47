"""Everything that is read from the features of samples and of a reference set by one extractor."""

from collections.abc import Collection
from typing import Literal

from torch import Tensor

from lab.evaluation.distances import distances, frechet
from lab.evaluation.figure import CLIP, Figure
from lab.evaluation.infinity import frechet_infinity
from lab.evaluation.kernel_distances import cmmd, gaussian, kernel
from lab.evaluation.support import support
from lab.evaluation.vendi import vendi

Metric = Literal["distances", "fid", "kid", "fd_dinov2", "cmmd", "precision_recall", "diversity"]
FRECHET: frozenset[Metric] = frozenset({"distances", "fid", "fd_dinov2"})
KERNEL: frozenset[Metric] = frozenset({"distances", "kid"})


def likeness(asked: Collection[Metric], a: Tensor, b: Tensor, extractor: str) -> dict[str, list[Figure]]:
    """Measure what is asked for, the figure to trust first in each section.

    Args:
        asked: "distances", "fid" and "fd_dinov2" ask for the Frechet distance, "distances" and "kid" for the kernel
            distance, "cmmd" for CMMD or, of other features, the Gaussian kernel distance, "precision_recall" for
            precision to coverage and "diversity" for the Vendi score. Which name a figure goes by is decided by the
            features.
        a: (n, d) features of the samples.
        b: (m, d) features of the reference set.
        extractor: name of what made them.

    Returns:
        Figures by section: "distances", "support" and "vendi", where they are not empty.

    Raises:
        Refused: too few images, or torch-fidelity is not installed.
        NonFinite: a feature is infinite or not a number.
    """
    found: list[Figure] = []
    is_frechet, is_kernel = bool(FRECHET.intersection(asked)), bool(KERNEL.intersection(asked))
    if is_frechet and is_kernel:
        found += distances(a, b, extractor)
    elif is_kernel:
        found.append(kernel(a, b, extractor))
    elif is_frechet:
        found.append(frechet(a, b, extractor))
    if is_frechet and (unbiased := frechet_infinity(a, b, extractor)):
        found.append(unbiased)
    if "cmmd" in asked:
        found.append((cmmd if extractor == CLIP else gaussian)(a, b, extractor))
    sections = {
        "distances": found,
        "support": support(a, b, extractor) if "precision_recall" in asked else [],
        "vendi": [vendi(a, extractor)] if "diversity" in asked else [],
    }
    return {section: figures for section, figures in sections.items() if figures}

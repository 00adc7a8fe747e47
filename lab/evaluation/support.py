"""Do samples lie where reference images lie, and everywhere there?

A set's *support* is the union of balls around its images, each as large as the distance to the k-th nearest other one.

* **precision**: the share of samples in the support of the reference set (k = 3); **recall**: the share of reference
  images in that of the samples (k = 3). One outlier makes a huge ball.
* **density**: in how many balls of reference images a sample lies, over k; 1 on average for two sets of one
  distribution. **coverage**: the share of reference images with a sample in their ball (k = 5); 1 - 2^-k on average for
  two equally large sets of one distribution, and larger with more samples.

All depend on n and m, so only figures of the same n and m may be compared. Intervals take the one set as it is and
cover what other images of the other would give.

Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 2 and 3; Naeem et al. 2020, arXiv:2002.09797, eq. 3 and 4.
"""

from typing import Literal

import torch
from torch import Tensor

from lab.evaluation.figure import Figure, matrices, torch_fidelity
from lab.evaluation.intervals import mean, wilson

K_SUPPORT, K_DENSITY = 3, 5
_ROWS = 1024  # of a matrix of distances held at once


def support(a: Tensor, b: Tensor, extractor: str) -> list[Figure]:
    """Measure precision, recall, density and coverage.

    torch-fidelity computes the first two.

    Args:
        a: (n, d) features of the samples, n at least 6.
        b: (m, d) features of the reference set, likewise.
        extractor: name of what made them.

    Raises:
        Refused: too few images, sets of different widths, or torch-fidelity is not installed.
        NonFinite: a feature is infinite or not a number.
    """
    first, second = (torch.from_numpy(x) for x in matrices(a, b, at_least=K_DENSITY + 1, what="a support"))
    n, m = len(first), len(second)
    shares = torch_fidelity("metric_prc").prc_features_to_metric(
        first, second, prc_neighborhood=K_SUPPORT, save_cpu_ram=True, verbose=False
    )
    lies_in, covered = balls(first, second)
    density = mean((lies_in.double() / K_DENSITY).tolist())
    return [
        _share("precision", extractor, round(shares["precision"] * n), (n, m), of="samples"),
        _share("recall", extractor, round(shares["recall"] * m), (n, m), of="reference images"),
        Figure(
            name=f"density ({extractor})",
            extractor=extractor,
            value=density.value,
            low=density.low,
            high=density.high,
            n=n,
            m=m,
            interval="95 %, Student's t over samples",
            target=f"mean of all samples, against these {m} reference images",
        ),
        _share("coverage", extractor, int(covered.sum()), (n, m), of="reference images"),
    ]


def balls(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Give in how many balls of b each of a lies (n,), and which balls of b hold one of a (m,)."""
    radii = torch.cat([torch.cdist(rows, b).kthvalue(K_DENSITY + 1).values for rows in b.split(_ROWS)])
    lies_in, covered = [], torch.zeros(len(b), dtype=torch.bool)
    for rows in a.split(_ROWS):
        inside = torch.cdist(rows, b) <= radii
        lies_in.append(inside.sum(dim=1))
        covered |= inside.any(dim=0)
    return torch.cat(lies_in), covered


def _share(
    name: str, extractor: str, hits: int, sizes: tuple[int, int], of: Literal["samples", "reference images"]
) -> Figure:
    """A share of one of the two sets."""
    n, m = sizes
    total, others = (n, f"these {m} reference images") if of == "samples" else (m, f"these {n} samples")
    low, high = wilson(hits, total)
    return Figure(
        name=f"{name} ({extractor})",
        extractor=extractor,
        value=hits / total,
        low=low,
        high=high,
        n=n,
        m=m,
        interval=f"95 %, Wilson over {of}",
        target=f"share of all {of}, against {others}",
    )

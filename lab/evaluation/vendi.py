"""How many different images a set holds: the Vendi score, an effective number.

exp of the entropy of the eigenvalues of K / n, where K holds the cosines of the features of all pairs: 1 if all images
are alike, n if no two have anything in common. It grows with n, so only figures of the same n may be compared, and only
within one extractor: features that are never negative have large cosines, and small scores.

Source: Friedman and Dieng 2023, arXiv:2210.02410, definition 3.1.
"""

import numpy as np
from torch import Tensor

from lab.evaluation.distances import NUM_GROUPS, STUDENT, jackknife_error
from lab.evaluation.figure import Figure, Matrix, matrices


def vendi(features: Tensor, extractor: str) -> Figure:
    """Measure the Vendi score of a set.

    Args:
        features: (n, d), n at least 20; no row is 0.
        extractor: name of what made them.

    Raises:
        Refused: too few images.
        NonFinite: a feature is infinite or not a number.
    """
    rows, _ = matrices(features, features, at_least=NUM_GROUPS, what="a Vendi score")
    value, margin = vendi_value(rows), STUDENT * jackknife_error(vendi_value, rows)
    return Figure(
        name=f"vendi_score ({extractor})",
        extractor=extractor,
        value=value,
        low=value - margin,
        high=value + margin,
        n=len(rows),
        m=0,
        interval=f"95 %, delete-a-group jackknife, {NUM_GROUPS} groups",
        target=f"expected value at n = {len(rows)}",
    )


def vendi_value(rows: Matrix) -> float:
    """Give the Vendi score of rows (n, d), from the smaller of the matrices (n, n) and (d, d)."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(len(rows))
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    shares = np.linalg.eigvalsh(gram)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))

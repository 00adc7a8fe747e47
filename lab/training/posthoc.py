"""Averages of any length after the training, as sums of averages that were stored on the way.

The average with exponent gamma at step n weighs the weights of time tau, counted in steps, by its profile

    p(tau) = (gamma + 1) / n (tau / n)^gamma        0 <= tau <= n, and 0 later

and a sum of averages has the sum of their profiles. So the coefficients c of the wanted profile q follow from profiles
alone: the least squares |sum_i c_i p_i - q|^2, whose products are known in closed form,

    <p, q> = (g + 1) (h + 1) / (g + h + 1)  (m / a)^g (m / b)^h / max(a, b)        m = min(a, b)

for exponents g, h and steps a, b. The coefficients must add up to 1, which the paper leaves to the fit: what the
weights have in common over the run, mostly where they began, is then kept exactly (docs/decisions/0011).

The error of a fit is |sum_i c_i p_i - q| / |q|. It is the error of the average relative to the average's own scatter
where each step's weights scatter independently; weights that wander slowly are averaged better than that.

Source: Karras et al. 2023, arXiv:2312.02696, sec. 3.2, appendix C and algorithm 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.training.ema import gamma_of

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """What one average weighs.

    Attributes:
        step: at which the average was taken, from 1.
        length: its relative standard deviation, 0 to 0.28.
    """

    step: int
    length: float

    def density(self, times: Float64) -> Float64:
        """Give the weight per step at ``times``, any shape, in steps from 0."""
        gamma, share = gamma_of(self.length), times / self.step
        return np.where(share <= 1, (gamma + 1) / self.step * np.minimum(share, 1) ** gamma, 0.0)


@dataclass(frozen=True)
class Fit:
    """A sum of stored averages in the place of one that was not stored.

    Attributes:
        coefficients: (n,), of the stored ones in the order given; they add up to 1.
        error: norm of the difference of the profiles relative to the wanted one's, 0 for a perfect fit.
    """

    coefficients: Float64
    error: float


def products(some: Sequence[Profile], others: Sequence[Profile]) -> Float64:
    """Give the inner product of each profile (n,) with each other one (m,), per step: (n, m)."""
    (steps, gammas), (other_steps, other_gammas) = _columns(some), _columns(others)
    a, g, b, h = steps[:, None], gammas[:, None], other_steps[None], other_gammas[None]
    m = np.minimum(a, b)
    return (g + 1) * (h + 1) / (g + h + 1) * (m / a) ** g * (m / b) ** h / np.maximum(a, b)


def solve(stored: Sequence[Profile], wanted: Profile) -> Fit:
    """Find the sum of stored averages that comes nearest to a wanted one.

    Args:
        stored: at least one, all different.
        wanted: any step and length; far from the stored ones the error is large.
    """
    assert len(set(stored)) == len(stored) > 0, "profiles to sum must be there, and differ"
    gram, aim = products(stored, stored), products(stored, [wanted])[:, 0]
    norms = np.sqrt(np.diag(gram))
    # The conditions of the minimum with a Lagrange multiplier, for profiles brought to norm 1: the condition number of
    # their products grows as the fourth power of the number of snapshots, 10^4 for 32 and 10^10 for 1,000.
    last = np.append(1 / norms, 0.0)
    system = np.block([[gram / np.outer(norms, norms), last[:-1, None]], [last[None]]])
    coefficients = np.linalg.solve(system, np.append(aim / norms, 1.0))[:-1] / norms
    square = products([wanted], [wanted])[0, 0]
    rest = square - 2 * coefficients @ aim + coefficients @ gram @ coefficients
    return Fit(coefficients, float(np.sqrt(max(rest, 0.0) / square)))


def _columns(profiles: Sequence[Profile]) -> tuple[Float64, Float64]:
    """Steps and exponents, (n,) each."""
    steps = np.array([profile.step for profile in profiles], dtype=np.float64)
    return steps, np.array([gamma_of(profile.length) for profile in profiles])

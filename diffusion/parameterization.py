"""What the network predicts, as a view of the one thing a denoiser knows: the conditional mean of x0.

Every parameterization is three numbers per noise level,

    x0_hat = skip x_t + out network(into x_t, angle, cond)

and the network's own target is what makes x0_hat equal x0. ``into`` brings the network's input to unit variance, for
data of unit variance.
"""

from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from lab.config import Config


class Scales(NamedTuple):
    """The three numbers of a parameterization at each level; each (b,)."""

    skip: Tensor
    out: Tensor
    into: Tensor


class Parameterization(Protocol):
    """A function (alpha, sigma) -> Scales, with the target it implies."""

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``."""
        ...

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say; all four broadcast together."""
        ...


def _into(alpha: Tensor, sigma: Tensor) -> Tensor:
    return (alpha**2 + sigma**2).rsqrt()


class Eps(Config):
    """The network predicts the noise: x0_hat = (x_t - sigma eps_hat) / alpha. Not finite where alpha = 0.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 15.
    """

    kind: Literal["eps"] = "eps"

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``.

        Raises:
            ValueError: some alpha is 0; there the noise says nothing about x0.
        """
        if bool((alpha == 0).any()):
            raise ValueError("eps prediction is undefined where alpha = 0 (zero terminal SNR): predict v or x0 instead")
        return Scales(1 / alpha, -sigma / alpha, _into(alpha, sigma))

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say."""
        return noise


class X0(Config):
    """The network predicts the data itself."""

    kind: Literal["x0"] = "x0"

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``."""
        return Scales(torch.zeros_like(alpha), torch.ones_like(alpha), _into(alpha, sigma))

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say."""
        return x0


class V(Config):
    """The network predicts v = (alpha noise - sigma x0) / sqrt(alpha^2 + sigma^2), the state's derivative in the angle.

    Source: Salimans and Ho 2022, arXiv:2202.00512, appendix D; the division makes it the same quantity on schedules
    that do not preserve variance.
    """

    kind: Literal["v"] = "v"

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``."""
        into = _into(alpha, sigma)
        return Scales(alpha * into**2, -sigma * into, into)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say."""
        return (alpha * noise - sigma * x0) * _into(alpha, sigma)


class Edm(Config):
    """The network predicts what a linear guess leaves: x0_hat = skip x_t + out network, by EDM's preconditioning.

    With s = sigma / alpha and d = ``sigma_data``: skip = d^2 / (s^2 + d^2) / alpha, out = s d / sqrt(s^2 + d^2). Far
    above s = d the network predicts the data, far below it the noise. With d = 1 on a schedule that preserves variance
    this is V with the opposite sign. Flat pictures have little variance in most directions, and want a small d.

    Attributes:
        sigma_data: standard deviation of the data in those directions.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 and appendix B.6.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``."""
        # Multiplied out by alpha, so that it holds where alpha = 0.
        total = sigma**2 + (alpha * self.sigma_data) ** 2
        return Scales(
            alpha * self.sigma_data**2 / total, sigma * self.sigma_data * total.rsqrt(), _into(alpha, sigma)
        )

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say."""
        # (x0 - skip x_t) / out with sigma divided out, so that it holds where sigma = 0.
        total = sigma**2 + (alpha * self.sigma_data) ** 2
        return (sigma / self.sigma_data * x0 - alpha * self.sigma_data * noise) * total.rsqrt()


AnyParameterization = Annotated[Eps | X0 | V | Edm, Field(discriminator="kind")]

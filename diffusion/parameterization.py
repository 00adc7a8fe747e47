"""What the network predicts, as a view of the one thing a denoiser knows: the conditional mean of x0.

Every parameterization is three numbers per noise level,

    x0_hat = skip x_t + out network(into x_t, angle, cond)

and the network's own target is what makes x0_hat equal x0. ``into`` brings the network's input to unit variance, for
data of unit variance (of variance sigma_data^2 for ``Edm``). All but ``Eps`` are finite at every level, pure noise
(alpha = 0) and pure data (sigma = 0) included, on schedules that preserve variance and on those that do not. ``signal``
says from which share of signal on, alpha / sqrt(alpha^2 + sigma^2), the prediction is of use: there walks begin.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol

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

    signal: ClassVar[float]

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

    Near it the network's error is multiplied by sigma / alpha, 22,000 at the end of a cosine schedule, so a walk from
    there is lost in its first step. Others clamp x0_hat to the range of pictures; here walks begin at a signal of 0.05,
    less than Stable Diffusion's begin at (docs/decisions/0006).

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 15.
    """

    signal: ClassVar[float] = 0.05
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

    signal: ClassVar[float] = 0.0
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

    signal: ClassVar[float] = 0.0
    kind: Literal["v"] = "v"

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``."""
        into = _into(alpha, sigma)
        return Scales(alpha * into**2, -sigma * into, into)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say."""
        return (alpha * noise - sigma * x0) * _into(alpha, sigma)


class Velocity(Config):
    """The network predicts noise - x0, the state's derivative in t on the unshifted flow schedule.

    On any other schedule it is the same difference of the same x0 and noise, so no longer the derivative in that
    schedule's t: x_t / (alpha + sigma) is the state that flow has at the time sigma / (alpha + sigma), and this is the
    derivative there.

    Source: Lipman et al. 2022, arXiv:2210.02747, sec. 4.1; Liu et al. 2022, arXiv:2209.03003, eq. 1; both with time
    reversed.
    """

    signal: ClassVar[float] = 0.0
    kind: Literal["flow"] = "flow"

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``."""
        total = alpha + sigma
        return Scales(1 / total, -sigma / total, _into(alpha, sigma))

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say."""
        return noise - x0


class Edm(Config):
    """The network predicts a mix of data and noise that has unit variance at each level, for data of a known spread.

    The skip connection passes on what a linear denoiser would, and the network adds the rest. In EDM's form alpha is 1;
    here sigma stands for sigma / alpha, multiplied out. With sigma_data = 1 and preserved variance this is -v.

    Attributes:
        sigma_data: standard deviation of x0.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1.
    """

    signal: ClassVar[float] = 0.0
    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Scales:
        """Give skip, out and into, each shaped like ``alpha``."""
        into = self._into(alpha, sigma)
        return Scales(alpha * (self.sigma_data * into) ** 2, sigma * self.sigma_data * into, into)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Give what the network should say."""
        return (sigma / self.sigma_data * x0 - alpha * self.sigma_data * noise) * self._into(alpha, sigma)

    def _into(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt()


AnyParameterization = Annotated[Eps | X0 | V | Velocity | Edm, Field(discriminator="kind")]

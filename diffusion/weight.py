"""How much each noise level counts.

A weight is a function w(logsnr) on the squared error of x0. The network is judged on its own target, whose squared
error is that of x0 divided by out^2, so what multiplies it is

    w(logsnr) out^2

for every parameterization alike. A weight counts at each drawn sample, so the effective weight of a level is w times
the density of log-SNR; ``SigmoidWeight`` is defined per d logsnr instead and divides by that density.
"""

from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from lab.config import Config


class Level(NamedTuple):
    """What a weight may depend on; each (b,), float64.

    Attributes:
        logsnr: the level.
        density: of the samples in log-SNR, there.
        out: of the parameterization, there.
    """

    logsnr: Tensor
    density: Tensor
    out: Tensor


class Weight(Protocol):
    """A weight of noise levels."""

    @property
    def vanishes(self) -> bool:
        """Whether it is 0 where there is no signal (log-SNR -inf), so that nothing is learned there."""
        ...

    def __call__(self, level: Level) -> Tensor:
        """Give w out^2 (b,), which multiplies the squared error of the network's own target."""
        ...


class TargetWeight(Config):
    """Every level of the network's own target counts the same: w = 1 / out^2."""

    kind: Literal["target"] = "target"

    @property
    def vanishes(self) -> bool:
        """No."""
        return False

    def __call__(self, level: Level) -> Tensor:
        """Give 1, exactly."""
        return torch.ones_like(level.out)


class MinSnr(Config):
    """w = min(SNR, gamma) + floor.

    Without the floor this is min(SNR, gamma) / SNR on noise and min(SNR, gamma) / (SNR + 1) on v.

    Attributes:
        gamma: where the weight stops rising.
        floor: added, so that levels without signal are learned too; 1 for schedules with zero terminal SNR.

    Source: Hang et al. 2023, arXiv:2303.09556, sec. 3.4.
    """

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)
    floor: float = Field(0.0, ge=0)

    @property
    def vanishes(self) -> bool:
        """Whether there is no floor."""
        return self.floor == 0

    def __call__(self, level: Level) -> Tensor:
        """Give w out^2."""
        return (level.logsnr.exp().clamp_max(self.gamma) + self.floor) * level.out**2


class SoftMinSnr(Config):
    """w = SNR gamma / (SNR + gamma) + floor: min-SNR with a round corner.

    Attributes:
        gamma: what the weight approaches where there is little noise; 1 / sigma_data^2 in the paper.
        floor: added, so that levels without signal are learned too; 1 for schedules with zero terminal SNR.

    Source: Crowson et al. 2024, arXiv:2401.11605 ("soft-min-SNR").
    """

    kind: Literal["soft_min_snr"] = "soft_min_snr"
    gamma: float = Field(4.0, gt=0)
    floor: float = Field(0.0, ge=0)

    @property
    def vanishes(self) -> bool:
        """Whether there is no floor."""
        return self.floor == 0

    def __call__(self, level: Level) -> Tensor:
        """Give w out^2."""
        snr = level.logsnr.exp()
        return (snr / (snr / self.gamma + 1) + self.floor) * level.out**2


class EdmWeight(Config):
    """w = SNR + 1 / sigma_data^2, which is constant on the target of EDM's preconditioning.

    Attributes:
        sigma_data: standard deviation of x0.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 ("loss weighting").
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)

    @property
    def vanishes(self) -> bool:
        """No."""
        return False

    def __call__(self, level: Level) -> Tensor:
        """Give w out^2."""
        return (level.logsnr.exp() + self.sigma_data**-2) * level.out**2


class SigmoidWeight(Config):
    """w = e^logsnr sigmoid(bias - logsnr) / density, where the density is that of the samples in log-SNR.

    So it is e^logsnr sigmoid(bias - logsnr) per d logsnr, which is sigmoid(bias - logsnr) on the noise's error. The
    effective weight of a level is the same whatever the schedule and the distribution of times.

    Attributes:
        bias: log-SNR above which the weight on noise falls.
        floor: added to w per sample, so that levels without signal are learned too.

    Source: Kingma and Gao 2023, arXiv:2303.00848; Hoogeboom et al. 2024, arXiv:2410.19324 ("sigmoid weighting").
    """

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = 2.0
    floor: float = Field(0.0, ge=0)

    @property
    def vanishes(self) -> bool:
        """Whether there is no floor."""
        return self.floor == 0

    def __call__(self, level: Level) -> Tensor:
        """Give w out^2."""
        per_logsnr = (level.logsnr + torch.nn.functional.logsigmoid(self.bias - level.logsnr)).exp()
        return (per_logsnr / level.density + self.floor) * level.out**2


AnyWeight = Annotated[TargetWeight | MinSnr | SoftMinSnr | EdmWeight | SigmoidWeight, Field(discriminator="kind")]

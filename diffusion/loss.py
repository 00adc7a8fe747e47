"""The one loss: a weighted mean square over the network's own target.

For a sample x0, a time t and noise, the state is x_t = alpha x0 + sigma noise and

    loss = w(logsnr) mean((x0_hat - x0)^2) = w(logsnr) out^2 mean((network output - target)^2)

per sample, mean over c, h, w. Unless told otherwise w = 1 / out^2. The time and the noise of a sample are functions of
its slot, so the loss of a slot does not depend on the batch it came in.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from diffusion.denoiser import per_image
from diffusion.levels import Schedule, float64, logsnr
from diffusion.parameterization import Parameterization
from diffusion.times import AnyTimes, TimeTable
from diffusion.weight import AnyWeight, Level, TargetWeight
from lab.config import Config
from lab.randomness import normal, stratified, uniform


class LossConfig(Config):
    """What is made of the error, and how samples are made noisy.

    Attributes:
        weight: how much each noise level counts.
        huber: replaces the mean square m by 2 c (sqrt(m + c^2) - c) for this c > 0, which grows like the root of m
            beyond c^2: samples that cannot be told count less. 0 is off.
        stratified: spreads the times of neighbouring slots evenly over their distribution.
        offset_noise: standard deviation of noise that is constant over each channel of an image, added to the noise
            of training and of sampling alike, so that overall brightness is learned from pure noise on. 0 is off.
        perturbation: standard deviation of further noise in the state, relative to sigma, that the target does not know
            of: a model trained so forgives the errors of its own sampling. 0 is off.

    Source: huber: Song and Dhariwal 2024, arXiv:2310.14189, sec. 3.3; offset_noise: Guttenberg 2023, "Diffusion with
    offset noise"; perturbation: Ning et al. 2023, arXiv:2301.11706, algorithm 1.
    """

    weight: AnyWeight = TargetWeight()
    huber: float = Field(0.0, ge=0)
    stratified: bool = False
    offset_noise: float = Field(0.0, ge=0, le=1)
    perturbation: float = Field(0.0, ge=0, le=1)

    def __call__(self, error: Tensor, level: Level) -> Tensor:
        """Give the loss of each sample (b,).

        Args:
            error: (b,), mean square over the network's own target.
            level: of the samples.
        """
        if self.huber > 0:  # 2 c (sqrt(m + c^2) - c), without the cancellation at small m
            error = 2 * self.huber * error / ((error + self.huber**2).sqrt() + self.huber)
        return self.weight(level).to(error) * error


PLAIN = LossConfig()


class Noised(NamedTuple):
    """Samples brought to their noise levels.

    Attributes:
        x_t: (b, c, h, w).
        noise: (b, c, h, w), as the target knows it.
        t, alpha, sigma: (b,).
        quantile: (b,) in [0, 1), where in the distribution of times t lies, as that counts.
    """

    x_t: Tensor
    noise: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    quantile: Tensor


def add_noise(
    x0: Tensor,
    slots: Sequence[int],
    seed: int,
    schedule: Schedule,
    times: AnyTimes,
    config: LossConfig = PLAIN,
    table: TimeTable | None = None,
) -> Noised:
    """Draw each slot's time and noise and mix.

    Args:
        x0: (b, c, h, w).
        slots: the sample slot of each row.
        seed: the run's seed.
        schedule: t -> (alpha, sigma).
        times: maps uniform numbers to times.
        config: how times are spread, and what is added to the noise.
        table: how often which part of the times is drawn; None for each as often as it is likely.
    """
    spread = stratified if config.stratified else uniform
    u = spread(seed, "t", slots)
    quantile = u if table is None else table.quantile(u)
    return noised_at(quantile, x0, slots, seed, schedule, times, config)


def noised_at(
    quantile: Tensor,
    x0: Tensor,
    slots: Sequence[int],
    seed: int,
    schedule: Schedule,
    times: AnyTimes,
    config: LossConfig,
) -> Noised:
    """Draw each slot's noise and mix, at times that are told as quantiles (b,) of their distribution."""
    t = times(quantile, schedule).to(x0)
    noise = normal(seed, "noise", slots, tuple(x0.shape[1:])).to(x0)
    if config.offset_noise > 0:
        noise = noise + config.offset_noise * normal(seed, "offset", slots, (x0.shape[1], 1, 1)).to(x0)
    mixed = noise
    if config.perturbation > 0:
        mixed = noise + config.perturbation * normal(seed, "perturbation", slots, tuple(x0.shape[1:])).to(x0)
    alpha, sigma = schedule(t)
    return Noised(per_image(alpha) * x0 + per_image(sigma) * mixed, noise, t, alpha, sigma, quantile)


def level_of(t: Tensor, schedule: Schedule, times: AnyTimes, parameterization: Parameterization) -> Level:
    """Give what weights depend on at times (b,), just inside of (0, 1): at its ends log-SNR is infinite."""
    inside = float64(t).clamp(1e-9, 1 - 1e-9)
    alpha, sigma = schedule(inside)
    return Level(logsnr(alpha, sigma), times.density(inside, schedule), parameterization(alpha, sigma).out)


def square_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean square per sample: (b, c, h, w) twice -> (b,)."""
    return (output - target).square().flatten(1).mean(dim=1)

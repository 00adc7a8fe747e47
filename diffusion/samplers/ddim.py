"""DDIM and DDPM: steps of first order, which differ in how much of the noise is drawn anew.

A step to (alpha', sigma') is

    x' = alpha' x0_hat + kept eps_hat + new z,    kept^2 + new^2 = sigma'^2

with fresh noise z; DDPM's upper variance and the optimal one add more than that.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.samplers.steps import NoiseLike, Step, drawn, predict, required, steps_of
from diffusion.schedule import Schedule

DEVIATIONS: Mapping[str, Callable[[Step], float]] = {
    "lower": lambda step: step.posterior,
    "upper": lambda step: step.added,
}


def ddim(
    denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, *, eta: float = 0.0, noise: NoiseLike | None = None
) -> Tensor:
    """Walk from noise to data with DDIM steps.

    With ``eta = 0`` this is Euler's method in x/alpha as a function of sigma/alpha; with ``eta = 1`` it is ancestral
    DDPM sampling with the lower (posterior) variance.

    Args:
        denoise: (x_t, t) -> x0_hat; condition and guidance are already inside.
        x: (b, c, h, w), the state at ``times[0]``.
        times: (n + 1,), strictly decreasing in [0, 1].
        schedule: t -> (alpha, sigma).
        eta: fraction of the ancestral noise, 0 to 1.
        noise: draws a standard normal like its argument, one stream per image; required when ``eta > 0``.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], ``eta`` is outside [0, 1], or noise is needed and
            missing.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12; alpha-sigma form in docs/decisions/0002.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    noise = required(noise, "eta", eta)
    for step in steps_of(times, schedule):
        x0_hat = predict(denoise, x, step.t)
        new = eta * step.posterior
        kept = max(step.sigma_to**2 - new**2, 0.0) ** 0.5
        x = drawn(noise, step.mean(x, x0_hat, kept), new)
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseLike,
    variance: Literal["lower", "upper"] | Callable[[Step], float] = "upper",
) -> Tensor:
    """Walk from noise to data with ancestral DDPM steps, any number of them.

    Args:
        denoise, x, times, schedule, noise: as in ``ddim``.
        variance: "lower" is the posterior's given x0, which equals ``ddim`` with ``eta = 1``; "upper" is the variance
            that noising adds between the two levels (DDPM's beta); a function gives the standard deviation itself, as
            ``OptimalVariance`` does. The mean is the same. The last step to sigma = 0 adds nothing.

    Returns:
        (b, c, h, w), the state at ``times[-1]``; not clamped.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1].

    Source: Ho et al. 2020, arXiv:2006.11239, sec. 3.2; over several table entries alpha / alpha' stands for sqrt(1 -
    beta).
    """
    deviation = DEVIATIONS[variance] if isinstance(variance, str) else variance
    for step in steps_of(times, schedule):
        x0_hat = predict(denoise, x, step.t)
        kept = max(step.sigma_to**2 - step.posterior**2, 0.0) ** 0.5
        x = step.mean(x, x0_hat, kept)
        if step.sigma_to > 0:
            x = x + deviation(step) * noise(x)
    return x

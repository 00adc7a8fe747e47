"""From data back to the noise that a deterministic sampler would have started from."""

from typing import Literal

from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.samplers.steps import predict, steps_of
from diffusion.schedule import Schedule


def invert(denoise: Denoise, x: Tensor, times: Tensor, schedule: Schedule, *, order: Literal[1, 2] = 2) -> Tensor:
    """Walk the probability flow from data to noise.

    A deterministic sampler carries the result back to the data, up to an error that falls with the lower of both
    orders.

    Args:
        denoise: (x_t, t) -> x0_hat; condition is already inside. Without guidance: a guided flow is no flow of any data
            and is hard to go back.
        x: (b, c, h, w), the state at ``times[-1]``: images, or latents of them, where that is 0.
        times: (n + 1,), strictly decreasing in [0, 1], as for the sampler; they are walked from the last to the first.
        schedule: t -> (alpha, sigma).
        order: 1 is DDIM inversion, one call per step; 2 is Heun's method in alpha / sigma, two calls. At sigma = 0 the
            state does not say which noise is to come: that step is of first order and asks at its end, one call.

    Returns:
        (b, c, h, w), the state at ``times[0]``: about sigma times a standard normal where that is 1.

    Raises:
        ValueError: ``times`` does not decrease within [0, 1], or ``order`` is neither 1 nor 2.

    Source: Song et al. 2021, arXiv:2010.02502, sec. 4.3; Dhariwal and Nichol 2021, arXiv:2105.05233, appendix F.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    for down in reversed(steps_of(times, schedule)):
        if down.sigma_to == 0:
            # x = x0_hat(x') is to be solved for x' = alpha x + sigma eps_hat(x'): one iteration from alpha x.
            scaled = down.alpha / down.alpha_to * x
            x = scaled + down.alpha / down.alpha_to * (x - down.alpha_to * predict(denoise, scaled, down.t))
            continue
        up = down.reversed()
        x0_hat = predict(denoise, x, up.t)
        if order == 2:
            x0_hat = (x0_hat + predict(denoise, up.ddim(x, x0_hat), up.t_to)) / 2
        x = up.ddim(x, x0_hat)
    return x

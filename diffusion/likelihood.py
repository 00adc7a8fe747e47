"""How probable a model holds data to be: the density that its probability flow carries from noise to data.

With w = x / sigma and rho = alpha / sigma the flow is dw = x0_hat d rho, so along it

    log p_w(data) = log p_w(noise) - integral of sigma tr(J) d rho,    J = d x0_hat / d x

where alpha tr(J) = sigma tr(J) rho lies between 0 at noise and d at data: it is integrated over log rho. At noise w is
a standard normal. Natural logarithms; a condition may be inside the denoiser, guidance may not: a guided walk has no
density.
"""

import math

import torch
from torch import Tensor

from diffusion.denoiser import Denoise
from diffusion.samplers.steps import Step, predict, steps_of
from diffusion.schedule import Schedule

BIN = 1 / 127.5  # width of one of 256 values in [-1, 1]


def log_density(
    denoise: Denoise, x0: Tensor, times: Tensor, schedule: Schedule, probes: Tensor | None = None
) -> Tensor:
    """Give the log-density of data by Heun steps along the flow: second order, two denoiser calls with gradients each.

    Args:
        denoise: (x_t, t) -> x0_hat, differentiable, without guidance.
        x0: (b, c, h, w), the data.
        times: (n + 1,), strictly decreasing in (0, 1]; walked from the last, which stands for t = 0, where the flow is
            singular: what is measured is data with the noise of that time, so it should be near 0 (log-SNR 14, say).
        schedule: t -> (alpha, sigma).
        probes: (k, b, c, h, w) of mean 0 and variance 1 per element, k per image and the same at every time: the trace
            is estimated as the mean of v J v, without bias. None takes all c h w unit vectors, which is exact.

    Returns:
        (b,) natural logarithms of densities over (c, h, w).

    Raises:
        ValueError: ``times`` does not decrease within (0, 1], or reaches 0.

    Source: Song et al. 2021, arXiv:2011.13456, sec. 4.3 and appendix D.2; trace: Hutchinson 1990.
    """
    steps = steps_of(times, schedule)
    if steps[-1].sigma_to == 0:
        raise ValueError("the flow is singular at sigma = 0: let times end just above 0, at log-SNR 14 or so")
    size = x0[0].numel()
    x = steps[-1].alpha_to * x0
    total = torch.full((len(x0),), size * math.log(steps[-1].alpha_to / steps[-1].sigma_to)).to(x0)
    for down in reversed(steps):
        up = down.reversed()
        first, here = _with_trace(denoise, x, up.t, probes)
        second, there = _with_trace(denoise, up.ddim(x, first), up.t_to, probes)
        total = total - _integral(up, here, there)
        x = up.ddim(x, (first + second) / 2)
    w = (x / steps[0].sigma).flatten(1)
    return total - w.square().sum(1) / 2 - size / 2 * math.log(2 * math.pi)


def bits_per_dimension(
    denoise: Denoise, images: Tensor, times: Tensor, schedule: Schedule, uniform: Tensor, probes: Tensor | None = None
) -> Tensor:
    """Give the bits that each value of an 8-bit image costs: an upper bound, for one draw of the dequantisation.

    Args:
        denoise, times, schedule, probes: as in ``log_density``; of the pixels themselves. What it gives for latents is
            no code length of an image.
        images: (b, 3, H, W) in [-1, 1], each value one of the 256.
        uniform: shaped like ``images``, in [0, 1): spreads each value over its bin.

    Returns:
        (b,) bits per dimension.

    Raises:
        ValueError: as in ``log_density``, or ``images`` holds other values than 256 levels.

    Source: Theis et al. 2016, arXiv:1511.01844, sec. 3.1.
    """
    levels = (images + 1) / BIN
    if (levels - levels.round()).abs().max() > 1e-3 or images.abs().max() > 1:
        raise ValueError("images must hold the 256 levels of 8 bits in [-1, 1]: round them first")
    density = log_density(denoise, images + (uniform - 0.5) * BIN, times, schedule, probes)
    return -density / (images[0].numel() * math.log(2)) - math.log2(BIN)


def _integral(up: Step, here: Tensor, there: Tensor) -> Tensor:
    """Integral of sigma tr(J) over rho, by the trapezium rule; ``here`` and ``there`` are traces of J, (b,)."""
    if up.alpha_to == 0:  # log rho has no end there, rho has
        return up.alpha / up.sigma * (up.sigma * here + up.sigma_to * there) / 2
    length = math.log(up.alpha / up.sigma) - math.log(up.alpha_to / up.sigma_to)
    return length * (up.alpha * here + up.alpha_to * there) / 2


def _with_trace(denoise: Denoise, x: Tensor, t: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Predict x0_hat (b, c, h, w), and the trace of its Jacobian (b,)."""
    exact = probes is None
    directions = _units(x) if probes is None else probes
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0_hat = predict(denoise, x, t)
        total = torch.zeros(len(x)).to(x)
        for v in directions:
            (product,) = torch.autograd.grad(x0_hat, x, v.to(x).expand_as(x), retain_graph=True)
            total = total + (product * v.to(x)).flatten(1).sum(1)
    return x0_hat.detach(), total if exact else total / len(directions)


def _units(x: Tensor) -> Tensor:
    """The unit vectors of one image: (c h w, 1, c, h, w)."""
    size = x[0].numel()
    return torch.eye(size).to(x).view(size, 1, *x.shape[1:])

"""From noise to data: plain functions over a decreasing sequence of times.

With x0_hat known, the noise that x_t holds is eps_hat = (x_t - alpha x0_hat) / sigma, and the probability flow is, in
either of two forms,

    d(x / alpha) = eps_hat d(sigma / alpha)          d(x / sigma) = x0_hat d(alpha / sigma)

Holding the prediction fixed over a step gives, from both, the one first-order step that everything here builds on,

    x' = alpha' x0_hat + sigma' eps_hat

A sampler of higher order holds a polynomial through several predictions instead, in one of three variables: in
alpha / sigma (``heun``), in the half log-SNR log(alpha / sigma) (``dpmpp_2m``, ``dpmpp_3m``, ``unipc``), or in
sigma / alpha (``lms``, ``plms``). A stochastic one replaces a part of eps_hat by fresh noise. Coefficients are Python
floats; the state keeps its type and device. Nothing is clamped.

Two places are singular and are passed with a step of first order: a start at alpha = 0, where log-SNR is -inf, so that
no polynomial in it can use that prediction; and an end at sigma = 0, where it is +inf.

All share their first arguments and their result:

    denoise    (x_t, t) -> x0_hat; condition and guidance are already inside
    x          (b, c, h, w), the state at ``times[0]``
    times      (n + 1,), strictly decreasing in [0, 1]; else ValueError
    schedule   t -> (alpha, sigma)
    returns    (b, c, h, w), the state at ``times[-1]``; not clamped

and call the denoiser once per step, but for ``heun`` and ``invert``. Which of them is chosen, and with which times, is
said by ``SamplingConfig`` in diffusion/pipeline.py.
"""

from diffusion.samplers.ddim import ddim, ddpm
from diffusion.samplers.dpm_solver import dpmpp_2m, dpmpp_3m
from diffusion.samplers.euler import Churn, euler, euler_ancestral, heun
from diffusion.samplers.inversion import invert
from diffusion.samplers.multistep import lms, plms
from diffusion.samplers.spacing import (
    karras_times,
    leading_times,
    logsnr_times,
    quadratic_times,
    tangent_times,
    trailing_times,
    uniform_times,
)
from diffusion.samplers.steps import NoiseLike
from diffusion.samplers.unipc import unipc

__all__ = [
    "Churn",
    "NoiseLike",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_3m",
    "euler",
    "euler_ancestral",
    "heun",
    "invert",
    "karras_times",
    "leading_times",
    "lms",
    "logsnr_times",
    "plms",
    "quadratic_times",
    "tangent_times",
    "trailing_times",
    "uniform_times",
    "unipc",
]

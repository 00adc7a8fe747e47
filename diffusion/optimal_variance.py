"""The noise of an ancestral step that is right on average (Analytic-DPM), measured once from a model and its data.

An ancestral step to (alpha', sigma') has the posterior's mean and variance as if x0_hat were x0. What x0_hat does not
know of x0 is missing there: at a level, per element,

    e = E (x0 - x0_hat)^2    which for an exact denoiser is (sigma / alpha)^2 (1 - E eps_hat^2)

and the variance that brings the chain closest to the true reversal, in Kullback-Leibler divergence, is

    posterior variance + (alpha' (1 - shrink^2))^2 e,    shrink = (sigma' / alpha') / (sigma / alpha)

where the square is that of the mean's derivative in x0. Whatever the data, e need not be more than the error of the
best linear denoiser, 1 / (snr + 1 / variance), and is limited to it: this lies below both upper bounds of the paper,
1 / snr and that of data within an interval. It is reached by Gaussian data of one variance, for which the chain is then
exact at any number of steps. Guidance is not in it.

Source: Bao et al. 2022, arXiv:2201.06503, eq. 8 and theorem 2; measuring the error of x0 rather than the norm of
eps_hat: Bao et al. 2022, arXiv:2206.07309 (the optimum also for a mean that is not exact).
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from pydantic import Field

from diffusion.levels import logsnr
from diffusion.samplers.steps import Step
from diffusion.text_to_image import TextToImage
from lab.config import Config
from lab.data.loader import Batch
from lab.randomness import normal
from lab.runtime import Runtime
from vae.codec import Codec, latents

LIMITS = (-10.0, 10.0)  # of log-SNR
LEVELS = 41


class OptimalVariance(Config):
    """What a model does not know of x0, by noise level.

    Between the levels the error is interpolated as a share of that of the best linear denoiser, and beyond them this
    share is held.

    Attributes:
        logsnr: increasing.
        error: mean square error of x0_hat there, per element.
        variance: of x0, per element.
    """

    logsnr: tuple[float, ...]
    error: tuple[float, ...]
    variance: float = Field(gt=0)

    def __call__(self, step: Step) -> float:
        """Give the standard deviation of the fresh noise of a step, bounded from below by the posterior's."""
        shares = [error * self._inverse(level) for level, error in zip(self.logsnr, self.error, strict=True)]
        level = 2 * step.half_logsnr
        error = min(float(np.interp(level, self.logsnr, shares)), 1.0) / self._inverse(level)
        return math.hypot(step.posterior, step.alpha_to * (1 - step.shrink**2) * math.sqrt(error))

    def _inverse(self, level: float) -> float:
        """1 over the error of the best linear denoiser."""
        return math.exp(level) + 1 / self.variance


@torch.no_grad()
def measure(model: TextToImage, codec: Codec, runtime: Runtime, batches: Iterable[Batch]) -> OptimalVariance:
    """Measure the error of a model, with conditions and without guidance, on data that it was trained on.

    Args:
        model: in eval mode, on the runtime's device.
        codec: from images to latents.
        runtime: the precision that the network runs in.
        batches: the data; each sample's noise is that of its slot, at every level.
    """
    schedule = model.denoiser.schedule
    ends = logsnr(*schedule(torch.tensor([1, 1e-9], dtype=torch.float64))).clamp(*LIMITS)
    low, high = ends.tolist()
    levels = torch.linspace(low, high, LEVELS, dtype=torch.float64)
    times = schedule.t_of(levels)
    errors, x0s = torch.zeros(LEVELS, dtype=torch.float64), []
    for batch in batches:
        x0 = latents(codec, batch.with_images(runtime.batch(batch.images)))
        noise = normal(batch.seed, "variance", batch.slots, tuple(x0.shape[1:])).to(x0)
        with runtime.autocast():
            cond = model.encode(batch.captions)
            for k, (t, alpha, sigma) in enumerate(zip(times, *schedule(times), strict=True)):
                x_t = alpha.item() * x0 + sigma.item() * noise
                x0_hat = model.denoiser(x_t, t.to(x0).expand(len(x0)), cond)
                errors[k] += (x0_hat - x0).double().square().flatten(1).mean(dim=1).sum().cpu()
        x0s.append(x0.double().cpu())
    spread = torch.cat(x0s).var(dim=0).mean().item()
    return OptimalVariance(
        logsnr=tuple(levels.tolist()),
        error=tuple((errors / sum(map(len, x0s))).tolist()),
        variance=spread,
    )

"""Guidance: wrappers that turn a denoiser and conditions into a ``Denoise``.

A scale of 1 is off (the conditional denoiser itself, without a second pass), 0 is the null alone.
"""

import torch
from torch import Tensor

from diffusion.condition import Cond, stack
from diffusion.denoiser import Denoise, Denoiser


def conditional(denoiser: Denoiser, cond: Cond) -> Denoise:
    """Bind a condition to a denoiser, unguided."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        x0_hat: Tensor = denoiser(x_t, t, cond)
        return x0_hat

    return denoise


def classifier_free(denoiser: Denoiser, cond: Cond, null: Cond, scale: float) -> Denoise:
    """Move from the null prediction through the conditional one and on.

    x0_hat = x0_null + scale (x0_cond - x0_null). Conditional and null run as one batch.

    Args:
        denoiser: the model.
        cond: what is wanted, (b, ...).
        null: what to move away from, (b, ...): the empty prompt, or a negative prompt in its place.
        scale: 1 is off.

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6, with the scale counted from the null (their w + 1).
    """
    if scale == 1:
        return conditional(denoiser, cond)
    both = stack(cond, null)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        wanted, unwanted = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        x0_hat: Tensor = unwanted + scale * (wanted - unwanted)
        return x0_hat

    return denoise

"""How the power of latents is spread over frequencies: what a diffusion model has to learn from coarse to fine."""

import torch
from einops import reduce
from torch import Tensor


def radial_power(maps: Tensor) -> Tensor:
    """Give the mean power at each radial frequency of maps that are brought to mean 0 and variance 1 per channel.

    White noise has 1 everywhere; what is smooth has more below and less above.

    Args:
        maps: (b, c, h, w), with b at least 1 and no channel that is the same everywhere.

    Returns:
        (min(h, w) // 2 + 1,) float64; entry k is the mean of |F|^2 / (h w) over all frequencies of k cycles, rounded,
        per shorter side, over channels and over maps. The first is that of the means of the maps.
    """
    centred = maps.double() - maps.double().mean(dim=(0, 2, 3), keepdim=True)
    unit = centred / centred.square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
    height, width = maps.shape[2:]
    power = reduce(torch.fft.fft2(unit).abs().square() / (height * width), "b c h w -> h w", "mean")
    shorter = min(height, width)
    rows, columns = (torch.fft.fftfreq(n, 1 / shorter, device=maps.device).double() for n in (height, width))
    radius = torch.hypot(rows[:, None], columns[None, :]).round().long()
    bins = torch.stack([power[radius == k].mean() for k in range(shorter // 2 + 1)])
    return bins.cpu()

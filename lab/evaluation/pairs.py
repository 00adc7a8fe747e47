"""How far an image lies from the one that it is to be, pair by pair.

Both images of a pair are first rounded to bytes, as a file shows them. With levels x and y, 0 to 255, of all pixels and
channels of a pair:

* **PSNR** = 10 log10(255^2 / mean (x - y)^2) in dB. Equal images count as if a single value were off by one level,
  which is 89 dB at 64 x 64 pixels.
* **SSIM** = mean of (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2)) over channels and all
  places where a window of 11 x 11 pixels fits, with means m, variances s^2 and covariance s_xy under a Gaussian of
  deviation 1.5 in the window, C1 = (0.01 255)^2 and C2 = (0.03 255)^2.
* **Perceptual distance** to the eyes of a named network (``perceptual``).

An enlarged image is also held against the small one that it came from, after it was brought back to its size by an
antialiased bicubic filter: **consistency** is the PSNR there, **colour shift** how far the means of the three channels
have moved, and **contrast** by how much the standard deviation has changed.

A figure is the mean over images; nothing is pooled before. Distances between sets of images are in ``distances``.

Source: Wang et al. 2004, IEEE Trans. Image Processing 13(4), sec. III, for SSIM.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from lab.evaluation.intervals import Mean, mean
from lab.evaluation.perceptual import Perceptual
from lab.images import from_uint8, to_uint8
from lab.resampling import bicubic

WINDOW, DEVIATION = 11, 1.5  # of SSIM, in pixels
UNITS = {"psnr": "dB", "consistency": "dB", "colour_shift": "levels of 255"}

Values = Mapping[str, Tensor]


def compare(images: Tensor, wanted: Tensor, judges: Mapping[str, Perceptual]) -> dict[str, Tensor]:
    """Measure images against those that they are to be.

    Args:
        images, wanted: (b, 3, H, W) in about [-1, 1], at least 11 pixels wide and high.
        judges: networks of the perceptual distance, where the images are, by name.

    Returns:
        "psnr", "ssim" and "perceptual_distance (<judge>)" -> (b,) on the CPU.
    """
    found = {"psnr": psnr(images, wanted), "ssim": ssim(images, wanted)}
    with torch.no_grad():
        seen = [from_uint8(to_uint8(each)) for each in (images, wanted)]
        found |= {f"perceptual_distance ({name})": judge(*seen) for name, judge in judges.items()}
    return {name: values.cpu() for name, values in found.items()}


def hold_to_input(images: Tensor, small: Tensor) -> dict[str, Tensor]:
    """Measure what enlarged images have kept of what they came from.

    Args:
        images: (b, 3, H, W) in about [-1, 1].
        small: (b, 3, h, w) in [-1, 1].

    Returns:
        "consistency" in dB, "colour_shift" in levels (the absolute change of a channel's mean, averaged over channels)
        and "contrast" (relative change of the standard deviation about the channels' means, 0 for none; where it was
        below one level, relative to that) -> (b,) on the CPU.
    """
    shrunk = bicubic(from_uint8(to_uint8(images)), (small.shape[2], small.shape[3]))
    x, y = _levels(shrunk), _levels(small)
    shift = reduce(x - y, "b c h w -> b c", "mean").abs().mean(dim=1)
    found, wanted = (_deviation(each) for each in (x, y))
    contrast = (found - wanted) / wanted.clamp(min=1)
    values = {"consistency": psnr(shrunk, small), "colour_shift": shift, "contrast": contrast}
    return {name: each.cpu() for name, each in values.items()}


def figures(parts: Sequence[Values]) -> dict[str, Mean]:
    """Give the mean of each measure over the images of several batches, with its interval; at least 2 images."""
    return {name: mean(torch.cat([part[name] for part in parts]).tolist(), UNITS.get(name, "")) for name in parts[0]}


def psnr(images: Tensor, wanted: Tensor) -> Tensor:
    """Give the peak signal-to-noise ratio (b,) in dB of (b, 3, H, W) images in about [-1, 1]; see the module's text."""
    square = (_levels(images) - _levels(wanted)).square().flatten(1)
    return 10 * (255**2 / square.mean(dim=1).clamp(min=1 / square.shape[1])).log10()


def ssim(images: Tensor, wanted: Tensor) -> Tensor:
    """Give the structural similarity (b,), 1 for equal images, of (b, 3, H, W) images; see the module's text.

    Raises:
        ValueError: no window fits into the images.
    """
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, got {tuple(images.shape)}")
    x, y = _levels(images), _levels(wanted)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x.square(), _blurred(y * y) - mean_y.square()
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    likeness = likeness * (2 * covariance + c2) / (var_x + var_y + c2)
    return reduce(likeness, "b c h w -> b", "mean")


def _levels(images: Tensor) -> Tensor:
    """0 to 255 in float64."""
    return to_uint8(images).double()


def _deviation(levels: Tensor) -> Tensor:
    """(b,), about the mean of each channel."""
    centred = levels - levels.mean(dim=(2, 3), keepdim=True)
    return centred.square().flatten(1).mean(dim=1).sqrt()


def _blurred(x: Tensor) -> Tensor:
    """Means of (b, c, H, W) under the window, (b, c, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * DEVIATION**2))
    weights = weights / weights.sum()
    planes = rearrange(x, "b c h w -> (b c) 1 h w")
    planes = F.conv2d(F.conv2d(planes, rearrange(weights, "k -> 1 1 k 1")), rearrange(weights, "k -> 1 1 1 k"))
    return rearrange(planes, "(b c) 1 h w -> b c h w", b=len(x))

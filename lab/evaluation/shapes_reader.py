"""Images of the Shapes world back to scenes: analysis by synthesis, without trained weights.

Images are brought to 32 px, where a pixel is one unit. The ground is the commonest tint; every other pixel is
ground + a (colour - ground), which gives a coverage ``a`` for the best of the 8 colours. Connected regions of one
colour are candidates; ``shapes_fit`` fits all shapes to each and says how well the best one explains it. One linear
least-squares problem over the whole picture then gives the colours, and what it leaves unexplained decides whether the
picture can be read at all.

The limits were set on renders that were clean, noisy, blurred and spoiled
(tests/lab/evaluation/test_prompt_accuracy.py). Colours are in [-1, 1], lengths in units of 1/32 of the side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from torch import Tensor

from lab.data.shapes_scene import COLOURS, GROUNDS, SIDE, Object, Scene
from lab.evaluation.shapes_fit import Fit, fit

COLOUR_LIMIT = 0.36  # named colours are 0.96 apart at least, so halfway is 0.48
GROUND_LIMIT = 0.3
SIZE_LIMITS = (6.7, 15.0)
NOISE_LIMIT = 0.2  # standard deviation of the ground
MISFIT_LIMIT = 0.19  # see Fit.misfit; 0.04 under noise, 0.14 under a double blur, 0.19 and more under a smear of 7 px
LEFTOVER_LIMIT = 0.45  # norm over the channels of the 3x3 mean of what is left
MASS_LIMIT = 8.0  # pixels; the smallest object covers 24
REGION = 0.4  # coverage from which a pixel belongs to a region, and ...
SPLITS = (0.5, 0.6, 0.7, 0.8, 0.9)  # ... those at which a region that no shape fits may fall into several

Array = NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """What was read: the scene, or None and the problem."""

    scene: Scene | None
    problem: str = ""


def read(image: Tensor) -> Reading:
    """Read the scene in an image.

    Args:
        image: (3, H, H) in about [-1, 1]; detail beyond 32 px is averaged out.

    Returns:
        The scene, its objects in no particular order, or the reason why there is none to be read.

    Raises:
        ValueError: not a square RGB image.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2]:
        raise ValueError(f"expected an image (3, H, H), got {tuple(image.shape)}")
    pixels = _shrink(image)
    if not np.isfinite(pixels).all():
        return Reading(None, "not finite")
    name, ground, noise = _find_ground(pixels)
    if np.linalg.norm(ground - _PALETTE[name]) > GROUND_LIMIT or noise > NOISE_LIMIT:
        return Reading(None, "no clean ground")
    fits = [
        found
        for a, region, others, spread in _regions(pixels, ground, noise)
        for found in _explain(a, region, others, spread)
    ]
    if not fits:
        return Reading(None, "nothing on the ground")
    if not all(map(_fits, fits)):
        return Reading(None, "a region that is no shape")
    return _compose(pixels, name, ground, fits)


def _shrink(image: Tensor) -> Array:
    """(3, 32, 32) float64."""
    side = int(SIDE)
    small = image.detach().to("cpu", torch.float64)
    if small.shape[1] % side == 0:
        small = reduce(small, "c (h a) (w b) -> c h w", "mean", h=side, w=side)
    else:
        small = torch.nn.functional.interpolate(small[None], size=(side, side), mode="bilinear", antialias=True)[0]
    return small.numpy()


def _find_ground(pixels: Array) -> tuple[str, Array, float]:
    """The commonest tint: its name, its colour in this picture (3,), and the noise's standard deviation."""
    flat = pixels.reshape(3, -1).T
    distances = np.linalg.norm(flat[:, None] - _SWATCHES, axis=2)  # (pixels, grounds and colours)
    nearest = distances.argmin(axis=1)
    common = int(np.bincount(nearest, minlength=len(_NAMES))[: len(GROUNDS)].argmax())
    members = flat[distances[:, common] < 2 * GROUND_LIMIT]
    if len(members) < 64:
        return _NAMES[common], np.full(3, np.inf), 0.0
    ground = np.median(members, axis=0)
    name = min(GROUNDS, key=lambda tint: float(np.linalg.norm(_PALETTE[tint] - ground)))
    return name, ground, float(1.4826 * np.median(np.abs(members - ground)))


def _regions(pixels: Array, ground: Array, noise: float) -> Iterator[tuple[Array, Array, Array, float]]:
    """Connected regions of one colour: coverage (H, W), region and all others (bool), variance of the coverage."""
    from scipy import ndimage

    deltas = np.stack([_PALETTE[name] - ground for name in COLOURS])  # (colours, 3)
    square = (deltas**2).sum(axis=1)
    away = pixels - ground[:, None, None]
    cover = np.einsum("kc,chw->khw", deltas, away) / square[:, None, None]
    clipped = np.clip(cover, 0, 1)
    # squared distance of each pixel to the segment from the ground to each colour
    distance = (away**2).sum(axis=0) - (2 * cover - clipped) * clipped * square[:, None, None]
    colour = distance.argmin(axis=0)
    inside = np.take_along_axis(cover, colour[None], axis=0)[0] > REGION
    for k in np.unique(colour[inside]):
        labels, num = ndimage.label(inside & (colour == k), structure=np.ones((3, 3)))
        for index in range(1, num + 1):
            region = labels == index
            if clipped[k][region].sum() >= MASS_LIMIT:
                others = ndimage.binary_dilation(inside & ~region) & ~region
                yield cover[k], region, others, noise**2 / float(square[k])


def _explain(a: Array, region: Array, others: Array, noise: float) -> list[Fit]:
    """One shape, or where none fits several, for a region."""
    from scipy import ndimage

    whole = fit(a, region, others, noise)
    if _fits(whole):
        return [whole]
    for level in SPLITS:
        labels, num = ndimage.label(region & (a > level))
        masses = ndimage.sum_labels(np.clip(a, 0, 1), labels, range(1, num + 1))
        seeds = np.flatnonzero(np.asarray(masses) >= MASS_LIMIT) + 1
        if len(seeds) < 2:
            continue
        gaps = np.stack([ndimage.distance_transform_edt(labels != seed) for seed in seeds])  # (seeds, H, W)
        parts = [gap <= gaps.min(axis=0) for gap in gaps]  # each pixel to its nearest seed
        fits = [fit(a, region & part, others | ~part, noise) for part in parts]
        if all(map(_fits, fits)):
            return fits
    return [whole]


def _fits(found: Fit) -> bool:
    """Whether a region is one shape, and not between two."""
    return found.misfit <= min(MISFIT_LIMIT, 3 * found.margin)


def _compose(pixels: Array, name: str, ground: Array, fits: list[Fit]) -> Reading:
    """Colours from one least-squares problem over the picture, and a last look at what is left."""
    basis = np.stack([found.drawn.ravel() for found in fits], axis=1)  # (pixels, objects)
    away = (pixels - ground[:, None, None]).reshape(3, -1).T
    deltas = np.linalg.lstsq(basis, away, rcond=None)[0]  # (objects, 3)
    left = (away - basis @ deltas).T.reshape(pixels.shape)
    padded = np.pad(left, [(0, 0), (1, 1), (1, 1)])
    mean = sum(padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3)) / 9
    if np.linalg.norm(mean, axis=0).max() > LEFTOVER_LIMIT:
        return Reading(None, "something that no object explains")
    objects = []
    for found, delta in zip(fits, deltas, strict=True):
        distances = {colour: float(np.linalg.norm(_PALETTE[colour] - ground - delta)) for colour in COLOURS}
        colour = min(distances, key=lambda key: distances[key])
        if distances[colour] > COLOUR_LIMIT:
            return Reading(None, "an object of no known colour")
        if not SIZE_LIMITS[0] <= found.size <= SIZE_LIMITS[1]:
            return Reading(None, "an object of no known size")
        objects.append(Object(colour, found.shape, found.x, found.y, found.size))
    return Reading(Scene(name, tuple(objects)))


_PALETTE = {name: np.array(rgb) / 127.5 - 1 for name, rgb in (GROUNDS | COLOURS).items()}
_NAMES = (*GROUNDS, *COLOURS)
_SWATCHES = np.stack([_PALETTE[name] for name in _NAMES])

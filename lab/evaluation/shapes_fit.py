"""Fit the shapes of the Shapes world to a region of coverage.

The model of a coverage map is amplitude * ((1 - softness) T + softness B(T)), where T is the rendered shape at some
centre and size and B its 3x3 binomial blur. Centre, size, softness and amplitude are found by Gauss-Newton steps, at
first for all shapes at once, then for the two that are ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.data.shapes_render import ARM, HOLE, coverage, covered, signed_distance
from lab.data.shapes_scene import SHAPES

Array = NDArray[Any]

FIRST_STEPS, LAST_STEPS = 2, 3
REACH = 2  # pixels around a region that belong to its window
_DELTA = 0.05  # pixels, of the numerical derivatives
_FILL = np.array([np.pi / 4, 1, 0.5, 0.5, 1 - (1 - ARM) ** 2, np.pi / 4 * (1 - HOLE**2)])  # of the box
_SINK = np.array([0, 0, 1 / 3, 0, 0, 0])  # how far the centroid lies below the box's centre, in half sizes


class Grid(NamedTuple):
    """Pixel centres of a window: (h, 1) and (1, w)."""

    y: Array
    x: Array


@dataclass(frozen=True)
class Fit:
    """The best shape for a region.

    Attributes:
        shape: its name.
        x, y, size: centre and side of its box in pixels.
        misfit: squared coverage left unexplained, noise aside, per pixel of size (errors live on the outline).
        margin: how much larger the misfit of the second best shape is.
        drawn: (H, W), the fitted coverage at amplitude 1.
    """

    shape: str
    x: float
    y: float
    size: float
    misfit: float
    margin: float
    drawn: Array


def fit(a: Array, region: Array, excluded: Array, noise: float) -> Fit:
    """Fit every shape and keep the best.

    Args:
        a: (H, W), coverage of each pixel by the region's colour.
        region: (H, W) bool, the pixels taken to be the object's.
        excluded: (H, W) bool, pixels that belong to something else.
        noise: variance of ``a`` where there is nothing.

    Returns:
        The fit of least squared error.
    """
    rows, columns = np.nonzero(region)
    top, left = max(rows.min() - REACH, 0), max(columns.min() - REACH, 0)
    window = np.s_[top : rows.max() + REACH + 1, left : columns.max() + REACH + 1]
    weight = np.where(excluded[window], 0.0, 1.0)
    target = a[window]
    grid = Grid(*np.ogrid[0.5 : target.shape[0], 0.5 : target.shape[1]])
    start = _start(target * weight * (target > 0), grid)
    params, _, error = _gauss_newton(target, weight, grid, SHAPES, start, FIRST_STEPS)
    ahead = np.argsort(error)[:2]
    shapes = [SHAPES[index] for index in ahead]
    params, softness, error = _gauss_newton(target, weight, grid, shapes, params[ahead], LAST_STEPS)
    best = int(error.argmin())
    shape, (x, y, half) = shapes[best], params[best]
    misfit = max(float(error[best]) - noise * float(weight.sum()), 0.0) / float(2 * half)
    margin = float(error.max() - error.min()) / float(2 * half)
    drawn = np.zeros_like(a)
    drawn[window] = _soften(coverage(shape, grid.x - x, grid.y - y, half), softness[best])
    return Fit(shape, float(x + left), float(y + top), float(2 * half), misfit, margin, drawn)


def _start(mass: Array, grid: Grid) -> Array:
    """First guesses (shapes, 3) of x, y, half size, from the moments of the coverage."""
    total = mass.sum()
    half = np.sqrt(total / _FILL) / 2
    return np.stack(
        [np.full(len(SHAPES), (mass * grid.x).sum() / total), (mass * grid.y).sum() / total - _SINK * half, half],
        axis=1,
    )


def _gauss_newton(
    target: Array, weight: Array, grid: Grid, shapes: Sequence[str], params: Array, steps: int
) -> tuple[Array, Array, Array]:
    """Refine the shapes: parameters (shapes, 3), softness (shapes,), squared error (shapes,), each at its best step."""
    start = params
    moves = np.concatenate([np.zeros((1, 3)), _DELTA * np.eye(3)])  # the point itself, and its three neighbours
    softness = np.zeros(len(params))
    kept = (params, softness, np.full(len(params), np.inf))
    for step in range(steps + 1):
        moved = params[:, None] + moves if step < steps else params[:, None]  # (shapes, 4, 3)
        distances = [
            signed_distance(shape, grid.x - x[:, None, None], grid.y - y[:, None, None], half[:, None, None])
            for shape, (x, y, half) in zip(shapes, moved.transpose(0, 2, 1), strict=True)
        ]
        crisp = covered(np.stack(distances))  # (shapes, 4, h, w)
        soft = _blur(crisp)
        amplitude, softness = _mixture(target, weight, crisp[:, 0], soft[:, 0])
        model = crisp + softness[:, None, None, None] * (soft - crisp)
        rest = target - amplitude[:, None, None] * model[:, 0]
        error = (weight * rest * rest).sum(axis=(1, 2))
        better = error < kept[2]
        kept = (
            np.where(better[:, None], params, kept[0]),
            np.where(better, softness, kept[1]),
            np.where(better, error, kept[2]),
        )
        if step == steps:
            break
        slopes = amplitude[:, None, None, None] * (model[:, 1:] - model[:, :1]) / _DELTA
        basis = np.concatenate([slopes, model[:, :1], soft[:, :1] - crisp[:, :1]], axis=1)  # (shapes, 5, h, w)
        weighted = weight * basis
        normal = np.einsum("sihw,sjhw->sij", weighted, basis) + 1e-3 * np.eye(5)
        change = np.linalg.solve(normal, np.einsum("sihw,shw->si", weighted, rest)[..., None])[:, :3, 0]
        params = params + np.clip(change, -1, 1)
        params[:, 2] = np.clip(params[:, 2], 0.6 * start[:, 2], 1.6 * start[:, 2])
    return kept


def _mixture(target: Array, weight: Array, crisp: Array, soft: Array) -> tuple[Array, Array]:
    """Amplitude and softness (shapes,) by linear least squares, softness within [0, 1]."""
    basis = np.stack([crisp, soft - crisp], axis=1)  # their factors are amplitude and amplitude * softness
    weighted = weight * basis
    normal = np.einsum("sihw,sjhw->sij", weighted, basis) + 1e-6 * np.eye(2)
    right = np.einsum("sihw,hw->si", weighted, target)
    solved = np.linalg.solve(normal, right[..., None])[..., 0]
    softness = np.clip(solved[:, 1] / np.maximum(solved[:, 0], 1e-3), 0, 1)
    mixed = crisp + softness[:, None, None] * (soft - crisp)
    amplitude = (weight * mixed * target).sum(axis=(1, 2)) / ((weight * mixed * mixed).sum(axis=(1, 2)) + 1e-6)
    return amplitude, softness


def _soften(crisp: Array, softness: float) -> Array:
    return crisp + softness * (_blur(crisp) - crisp)


def _blur(x: Array) -> Array:
    """The 3x3 binomial filter over the last two axes, zero beyond the border."""
    down = 2 * x
    down[..., 1:, :] += x[..., :-1, :]
    down[..., :-1, :] += x[..., 1:, :]
    both = 2 * down
    both[..., 1:] += down[..., :-1]
    both[..., :-1] += down[..., 1:]
    return both / 16

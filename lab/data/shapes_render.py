"""Scenes to images: signed distances, clipped to a one-pixel ramp, blended over the ground.

The coverage of a pixel is clip(1/2 - d, 0, 1) with d the signed distance in pixels from its centre to the shape's
outline: exact for straight edges along the axes, within a few hundredths on other outlines, up to 1/4 off in the one
pixel of a corner, and the same formula at every resolution.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.data.shapes_scene import COLOURS, GROUNDS, SIDE, Scene

ARM = 0.36  # half the width of the cross's arms, and ...
HOLE = 0.48  # ... the radius of the ring's hole, in halves of the size

Array = NDArray[Any]


def signed_distance(shape: str, dx: Array, dy: Array, half: float | Array) -> Array:
    """Distance to the outline of a shape, negative inside.

    Args:
        shape: one of ``SHAPES``.
        dx: offsets from the centre to the right.
        dy: offsets from the centre downwards; broadcasts with dx.
        half: half the side of the shape's box, in the unit of dx and dy.

    Returns:
        Distances in the same unit, of the broadcast shape (a lower bound outside of corners).

    Raises:
        ValueError: no such shape.
    """
    x, y = np.abs(dx), np.abs(dy)
    distance: Array
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - half
    elif shape == "square":
        distance = np.maximum(x, y) - half
    elif shape == "diamond":
        distance = (x + y - half) / np.float32(np.sqrt(2))
    elif shape == "triangle":
        distance = np.maximum(dy - half, (2 * x - dy - half) / np.float32(np.sqrt(5)))
    elif shape == "cross":
        distance = np.maximum(np.minimum(x, y) - ARM * half, np.maximum(x, y) - half)
    elif shape == "ring":
        distance = np.abs(np.sqrt(x * x + y * y) - (1 + HOLE) / 2 * half) - (1 - HOLE) / 2 * half
    else:
        raise ValueError(f"no shape is called {shape!r}")
    return distance


def coverage(shape: str, dx: Array, dy: Array, half: float | Array) -> Array:
    """Fraction of each pixel that the shape covers, in [0, 1]; arguments as for ``signed_distance``, in pixels."""
    return covered(signed_distance(shape, dx, dy, half))


def covered(distance: Array) -> Array:
    """Fraction of each pixel that lies inside of an outline, in [0, 1], by its centre's signed distance in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def render(scene: Scene, size: int) -> NDArray[np.float32]:
    """Draw a scene.

    Args:
        scene: its lengths are in units of 1/32 of the side.
        size: side of the image in pixels, 16 to 256.

    Returns:
        (3, size, size) float32 in [-1, 1].
    """
    scale = size / SIDE
    image = np.empty((3, size, size), dtype=np.float32)
    image[:] = _TINTS[scene.ground]
    for item in scene.objects:
        x, y, half = item.x * scale, item.y * scale, item.size / 2 * scale
        left, right = max(int(x - half - 1), 0), min(int(x + half + 2), size)
        top, bottom = max(int(y - half - 1), 0), min(int(y + half + 2), size)
        dx = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
        dy = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y))[:, None]
        patch = image[:, top:bottom, left:right]
        patch += coverage(item.shape, dx, dy, half) * (_TINTS[item.colour] - patch)
    return image


_TINTS = {
    name: (np.array(rgb, dtype=np.float32) / 127.5 - 1)[:, None, None] for name, rgb in (GROUNDS | COLOURS).items()
}

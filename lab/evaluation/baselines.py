"""What needs no network: figures to stand beside those of an autoencoder or of what enlarges pictures.

* The **thumbnail**: a smaller picture, Lanczos on the way down, bicubic on the way up.
* The **linear codec**: each block of pixels as its first principal components, and a linear map from the components
  of 3 x 3 blocks back to the pixels of the middle one.
* The **linear filter**: each block of pixels of a large picture from 7 x 7 pixels of the small one.

All maps are fitted on training images by least squares.

Source: Pearson 1901, Phil. Mag. 2(11), for principal components; Romano et al. 2017, arXiv:1606.01299, whose filters
for one class of patch are the linear filter here.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lab.images import from_uint8
from lab.resampling import bicubic, lanczos

RIDGE = 1e-9  # of the mean diagonal: decides between equally good maps where the features are not independent
CHUNK = 8  # images that are held as features at once

Pairs = Iterable[tuple[Tensor, Tensor]]


def thumbnail_side(side: int, factor: int, channels: int) -> int:
    """Give the largest side of an RGB thumbnail with no more numbers than a latent.

    Args:
        side: of the image.
        factor: image side / latent side.
        channels: of the latent.
    """
    return max(1, math.isqrt(channels * (side // factor) ** 2 // 3))


def thumbnail(images: Tensor, side: int) -> Tensor:
    """Bring (b, 3, H, W) images down to ``side`` pixels and back."""
    return bicubic(lanczos(images, (side, side)), (images.shape[2], images.shape[3]))


@dataclass(frozen=True)
class LinearDecoder:
    """A linear map from the neighbourhood of each position of a map to the block of pixels that lies there.

    Attributes:
        weights: (c k k + 1, C f f), float64, the last row for a constant.
        kernel: k, the side of the neighbourhood, odd; beyond the border the outermost values are repeated.
        factor: f, pixels per position and side.
    """

    weights: Tensor
    kernel: int
    factor: int

    def __call__(self, maps: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, C, h f, w f), in the type of the maps."""
        height, width = maps.shape[2:]
        blocks = _features(maps, self.kernel) @ self.weights
        pattern = "(b h w) (c y x) -> b c (h y) (w x)"
        images = rearrange(blocks, pattern, h=height, w=width, y=self.factor, x=self.factor)
        return images.to(maps)


def fit(pairs: Pairs, kernel: int, factor: int) -> LinearDecoder:
    """Fit a linear decoder by least squares.

    Args:
        pairs: of maps (b, c, h, w) and the images (b, C, h f, w f) that belong to them.
        kernel: side of the neighbourhood, odd.
        factor: f.
    """
    square, product = torch.zeros(()), torch.zeros(())
    for maps, images in pairs:
        for few, many in zip(maps.split(CHUNK), images.split(CHUNK), strict=True):
            features = _features(few, kernel)
            blocks = rearrange(many.double(), "b c (h y) (w x) -> (b h w) (c y x)", y=factor, x=factor)
            square, product = square + features.T @ features, product + features.T @ blocks
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    return LinearDecoder(torch.linalg.solve(square, product), kernel, factor)


@dataclass(frozen=True)
class LinearCodec:
    """Principal components of blocks of pixels, and the linear decoder.

    Attributes:
        mean: (3 f f,), float64, of the blocks.
        components: (c, 3 f f), orthonormal, the strongest first.
        decoder: of 3 x 3 blocks.
    """

    mean: Tensor
    components: Tensor
    decoder: LinearDecoder

    def encode(self, images: Tensor) -> Tensor:
        """Give the components (b, c, H / f, W / f), float64, of (b, 3, H, W) images."""
        return _project(images, self.mean, self.components, self.decoder.factor)

    def __call__(self, images: Tensor) -> Tensor:
        """Encode and decode (b, 3, H, W) images, in their type."""
        return self.decoder(self.encode(images)).to(images)


def linear_codec(images: Tensor, factor: int, channels: int) -> LinearCodec:
    """Fit a linear codec with as many numbers as a latent.

    Args:
        images: (n, 3, H, W) uint8, of the training.
        factor: f, image side / latent side, which divides H and W.
        channels: of the latent; no more than 3 f f are used.
    """
    first, second, num = torch.zeros(()), torch.zeros(()), 0
    for few in images.split(CHUNK):
        blocks = rearrange(from_uint8(few).double(), "b c (h y) (w x) -> (b h w) (c y x)", y=factor, x=factor)
        first, second, num = first + blocks.sum(dim=0), second + blocks.T @ blocks, num + len(blocks)
    mean = first / num
    _, vectors = torch.linalg.eigh(second / num - torch.outer(mean, mean))  # from weak to strong
    components = vectors.T.flip(0)[:channels]
    pairs = ((_project(from_uint8(few), mean, components, factor), from_uint8(few)) for few in images.split(CHUNK))
    return LinearCodec(mean, components, fit(pairs, kernel=3, factor=factor))


def linear_filter(small: Tensor, large: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit the filter that enlarges best, the same for each colour.

    Args:
        small: (n, 3, h, w) uint8, of the training.
        large: (n, 3, h f, w f) uint8, what they are to become.

    Returns:
        What maps (b, 3, h, w) to (b, 3, h f, w f) in [-1, 1].
    """

    def planes(images: Tensor) -> Tensor:
        return rearrange(images, "b c h w -> (b c) 1 h w")

    chunks = zip(small.split(CHUNK), large.split(CHUNK), strict=True)
    pairs = ((planes(from_uint8(few)), planes(from_uint8(many))) for few, many in chunks)
    decoder = fit(pairs, kernel=7, factor=large.shape[-1] // small.shape[-1])
    return lambda images: rearrange(decoder(planes(images)), "(b c) 1 h w -> b c h w", c=3)


def _project(images: Tensor, mean: Tensor, components: Tensor, factor: int) -> Tensor:
    blocks = F.pixel_unshuffle(images.double(), factor) - rearrange(mean, "p -> p 1 1")
    return torch.einsum("kp,bphw->bkhw", components, blocks)


def _features(maps: Tensor, kernel: int) -> Tensor:
    """The neighbourhood of each position and a one: (b h w, c k k + 1), float64."""
    padded = F.pad(maps.double(), [kernel // 2] * 4, mode="replicate")
    columns = rearrange(F.unfold(padded, kernel), "b f l -> (b l) f")
    return torch.cat([columns, torch.ones(len(columns), 1, dtype=torch.float64)], dim=1)

"""Bytes of a picture, from anywhere, to an image of a given shape in [-1, 1].

What is read is not trusted: only formats whose decoders run nothing else, no picture of more than 64 megapixels, none
that is cut short. Transparency is laid on a ground before the picture is resized, which is the same as resizing with
premultiplied alpha. Resizing is a bicubic filter that widens with the reduction, so nothing aliases, and pixels are
areas, so nothing moves.
"""

import io
import re
import warnings
from typing import Annotated, Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from lab.config import Config
from lab.data.source import BadSample, Frame
from lab.images import Shape, from_uint8

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
ORIENTATION, TURNED = 0x0112, 5  # of EXIF; from this value on, width and height change places
TELLING = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # what may say the orientation, by PIL's names

Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[int, int, int]
GROUNDS: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0)}
_SIDES = re.compile(r"\b(?:left|right)(?:ward|wards|most)?\b", re.IGNORECASE)


class PictureConfig(Config):
    """How pictures become images of a given shape.

    Attributes:
        ground: what shows through where a picture is transparent: white, black, [red, green, blue] from 0 to 255, or
            random for another colour each time.
        crop: which part of a longer picture is shown: the middle, or a random one each time.
        flip: probability of a mirror image. A picture whose caption speaks of left or right is never mirrored.
        smallest: a picture whose shorter side has fewer pixels is bad.
    """

    ground: Literal["white", "black", "random"] | tuple[Level, Level, Level] = "white"
    crop: Literal["center", "random"] = "center"
    flip: float = Field(0.0, ge=0, le=1)
    smallest: int = Field(8, ge=1)


def image(
    data: bytes, config: PictureConfig, shape: Shape, rng: np.random.Generator, caption: str
) -> tuple[Tensor, Frame]:
    """Make an image of the bytes of a picture: the largest part of that ratio, resized.

    Args:
        data: of a picture file: grey, palette, 16-bit, CMYK, transparent and animated ones (the first frame) too.
        config: how.
        shape: (H, W) of the image.
        rng: crop, mirroring and ground are a function of its state, and the same whatever the picture.
        caption: of the picture.

    Returns:
        (3, H, W) float32 in [-1, 1], and what was cut out.

    Raises:
        BadSample: it is not a picture, cut short, broken, absurdly large or too small.
    """
    along, coin = rng.random(2)
    random_ground: Colour = tuple(rng.integers(256, size=3).tolist())
    picture = decode(data)
    width, height = picture.size
    if min(width, height) < config.smallest:
        raise BadSample("image too small", f"{width}x{height}, data.picture.smallest={config.smallest}")
    along = 0.5 if config.crop == "center" else along
    part_width, part_height = min(width, height * shape[1] / shape[0]), min(height, width * shape[0] / shape[1])
    left, top = int(along * (int(width - part_width) + 1)), int(along * (int(height - part_height) + 1))
    ground = random_ground if config.ground == "random" else config.ground
    whole = opaque(picture, GROUNDS[ground] if isinstance(ground, str) else ground)
    box = (left, top, left + part_width, top + part_height)
    part = whole.resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    if coin < config.flip and not _SIDES.search(caption):
        part = ImageOps.mirror(part)
    levels = torch.from_numpy(np.array(part))
    return from_uint8(rearrange(levels, "h w c -> c h w").contiguous()), Frame(height, width, top, left)


def decode(data: bytes) -> Image.Image:
    """Read a picture that is not to be trusted, turned as EXIF says.

    Raises:
        BadSample: as from ``image``.
    """
    if not data:
        raise BadSample("empty file")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _eight_bits(_decoded(data))
    except (BadSample, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadSample("not an image", f"begins with {data[:8]!r}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadSample("decompression bomb", str(error)) from None
    except Exception as error:  # decoders fall over broken files in every way
        raise BadSample("broken image", f"{type(error).__name__}: {error}") from None


def size_of(data: bytes) -> tuple[int, int]:
    """Read width and height of a picture, as ``decode`` gives it, from its first bytes; 0 where they do not tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            is_turned = bool(TELLING & picture.info.keys()) and picture.getexif().get(ORIENTATION, 1) >= TURNED
    except Exception:  # decoders fall over broken files in every way
        return 0, 0
    width, height = picture.size
    return (height, width) if is_turned else (width, height)


def opaque(picture: Image.Image, ground: Colour) -> Image.Image:
    """Lay a picture on a ground, RGB bytes, where it is transparent; give it as RGB."""
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*ground, 255)), picture.convert("RGBA"))
    return picture.convert("RGB")


def _decoded(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadSample("decompression bomb", f"{width}x{height} pixels, at most {MAX_PIXELS:,}")
    picture.load()
    return ImageOps.exif_transpose(picture)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Bring grey of 16 bits to 8, which PIL would clip."""
    if picture.mode == "F":
        raise BadSample("unknown range", "an image of floating-point numbers")
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture)
    if levels.min() < 0 or levels.max() > 65535:
        raise BadSample("unknown range", f"an image of integers from {levels.min()} to {levels.max()}")
    return Image.fromarray(np.round(levels / 257).astype(np.uint8))

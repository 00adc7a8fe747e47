"""Images between tensors and PNG files, and grids with captions.

Inside the house an image is a float tensor (3, H, W) or (b, 3, H, W), RGB, -1 black and 1 white. Here it becomes bytes
and comes back; ``to_uint8`` is the only clamp in the house, so what a metric judges is what a file shows. Loading data
sets, cropping and resizing belong to ``lab.data``.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lab.errors import BadData, NonFinite, Refused
from lab.storage import write_whole

Shape = tuple[int, int]
"""Height and width in pixels."""

# Modes of PIL; where "I" is read, it holds 16 bits.
_GREY = frozenset(["1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"])
_CAPTION_PX = 12
_CAPTION_LINES = 6
_GAP_PX = 8


def to_uint8(images: Tensor) -> Tensor:
    """Round images to bytes; values outside [-1, 1] are clamped here and nowhere else.

    Args:
        images: (..., 3, H, W), any floating type, [-1, 1].

    Returns:
        (..., 3, H, W) uint8: -1 is 0, 1 is 255, the nearest level in between.

    Raises:
        TypeError: not floating point.
        ValueError: not three channels.
        NonFinite: a NaN or an infinity.
    """
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [-1, 1], got {images.dtype}")
    _check_channels(images)
    if not images.isfinite().all():
        raise NonFinite(f"{int((~images.isfinite()).sum())} of {images.numel()} values of the images are not finite")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """The inverse of ``to_uint8``: (..., 3, H, W) uint8 -> float32 in [-1, 1].

    Raises:
        TypeError: not uint8.
        ValueError: not three channels.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    _check_channels(images)
    return images.float() / 127.5 - 1


def save_png(path: str | Path, image: Tensor | Image.Image, metadata: Mapping[str, str] | None = None) -> None:
    """Write one picture as PNG, whole or not at all; the same picture and metadata give the same bytes.

    Args:
        path: where; an existing file is replaced.
        image: (3, H, W) float in [-1, 1], or a PIL image such as a grid.
        metadata: text chunks; keys of 1 to 79 Latin-1 characters, values any text.

    Raises:
        StorageFailed: the disk is full or refuses.
    """
    chunks = PngInfo()
    for key, value in (metadata or {}).items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else _to_pil(image)
    picture.save(buffer, format="PNG", pnginfo=chunks, compress_level=6)
    write_whole(Path(path), buffer.getvalue())


class Layers(NamedTuple):
    """A picture apart from its transparency.

    Attributes:
        image: (3, H, W) float32 in [-1, 1], what it looks like on white.
        opacity: (1, H, W) in [0, 1]; ``None`` where it has none of its own.
        is_grey: whether it has no colours.
    """

    image: Tensor
    opacity: Tensor | None
    is_grey: bool


def read_layers(path: str | Path) -> Layers:
    """Read a picture with its transparency.

    Args:
        path: the file; what ``read_image`` reads, but for animations.

    Raises:
        Refused: no such file, or it is animated.
        BadData: as from ``read_image``.
    """
    picture = _opened(path, refuse_animations=True)
    opacity = None
    if picture.has_transparency_data:
        levels = np.array(picture.convert("RGBA").getchannel("A"))
        opacity = rearrange(torch.from_numpy(levels).float() / 255, "h w -> 1 h w")
    return Layers(_on_ground(picture, (255, 255, 255)), opacity, picture.mode in _GREY)


def layered(layers: Layers) -> Image.Image:
    """The inverse of ``read_layers``, in bytes: on white it looks as ``layers.image``, whatever the opacity."""
    white, mode = 1.0, "L" if layers.is_grey else "RGB"
    if layers.opacity is None:
        return _to_pil(layers.image).convert(mode)
    opacity = (255 * layers.opacity).round().clamp(0, 255)
    colour = white - (white - layers.image) * 255 / opacity.clamp(min=1)
    picture = _to_pil(colour.where(opacity > 0, white)).convert(mode)
    picture.putalpha(Image.fromarray(opacity[0].to(torch.uint8).cpu().numpy()))
    return picture


def read_image(path: str | Path, ground: tuple[int, int, int] = (255, 255, 255)) -> Tensor:
    """Read a picture of any common format.

    Args:
        path: the file; palette, CMYK, transparent and grey pictures, these of 16 bits too, are read, turned as EXIF
            says.
        ground: RGB bytes that show through where the picture is transparent.

    Returns:
        (3, H, W) float32 in [-1, 1].

    Raises:
        Refused: no such file.
        BadData: it is not a picture, is cut short, is absurdly large, or has 32 bits a value.
    """
    return _on_ground(_opened(path), ground)


def _opened(path: str | Path, *, refuse_animations: bool = False) -> Image.Image:
    try:
        with Image.open(path) as picture:
            frames = getattr(picture, "n_frames", 1)
            if refuse_animations and frames > 1 and picture.format != "MPO":  # a photograph with its own preview
                raise Refused(f"{path}: has {frames} frames: save the one that you want as a picture")
            if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
                raise BadData(f"{path}: has 32 bits a value, and nothing says which is white: save it with 8 or 16")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise Refused(f"{path}: no such image file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadData(f"{path}: is not a readable image ({error})") from None


def _on_ground(picture: Image.Image, ground: tuple[int, int, int]) -> Tensor:
    if picture.mode.startswith("I"):  # 16 bits of grey, which PIL would clip to 8
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32) / 32767.5 - 1)
        return repeat(grey, "h w -> 3 h w").contiguous()
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*ground, 255)), picture.convert("RGBA"))
    levels = torch.from_numpy(np.array(picture.convert("RGB")))
    return from_uint8(rearrange(levels, "h w c -> c h w").contiguous())


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG file, as given to ``save_png``.

    Raises:
        Refused: no such file.
        BadData: it is not a PNG file.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            return {key: str(value) for key, value in getattr(picture, "text", {}).items()}
    except FileNotFoundError:
        raise Refused(f"{path}: no such image file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadData(f"{path}: is not a readable PNG file ({error})") from None


def grid(
    images: Tensor, captions: Sequence[str] | None = None, columns: int | None = None, tile_px: int = 128
) -> Image.Image:
    """Lay pictures out in rows, each with its caption under it.

    Args:
        images: (b, 3, H, W) float in [-1, 1], b at least 1.
        captions: one text per picture, wrapped under it; an empty one leaves its place blank.
        columns: pictures per row; about as many as rows by default.
        tile_px: pictures narrower than this are magnified by a whole factor, nearest neighbour, up to it.

    Returns:
        The sheet, on white.

    Raises:
        ValueError: no pictures, or not one caption for each.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a grid takes images (b, 3, H, W) with b >= 1, got {tuple(images.shape)}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    factor = max(1, tile_px // images.shape[-1])
    tiles = [_to_pil(tile) for tile in repeat(images, "b c h w -> b c (h y) (w x)", y=factor, x=factor)]
    width, height = tiles[0].size
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    font = ImageFont.load_default(_CAPTION_PX)
    texts = [_wrap(caption, font, width) for caption in captions or [""] * len(tiles)]
    line_px = _CAPTION_PX + 3
    starts = range(0, len(tiles), columns)
    heights = [height + _GAP_PX + line_px * max(map(len, texts[start : start + columns])) for start in starts]
    sheet = Image.new("RGB", (columns * (width + _GAP_PX) + _GAP_PX, sum(heights) + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
        row, column = divmod(index, columns)
        x, y = _GAP_PX + column * (width + _GAP_PX), _GAP_PX + sum(heights[:row])
        sheet.paste(tile, (x, y))
        for number, line in enumerate(lines):
            draw.text((x, y + height + 2 + number * line_px), line, fill="black", font=font)
    return sheet


def _to_pil(image: Tensor) -> Image.Image:
    if image.ndim != 3:
        raise ValueError(f"one image is (3, H, W), got {tuple(image.shape)}")
    return Image.fromarray(rearrange(to_uint8(image), "c h w -> h w c").cpu().numpy())


def _check_channels(images: Tensor) -> None:
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"images must be (..., 3, H, W), got {tuple(images.shape)}")


def _wrap(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a caption into lines no wider than ``width`` pixels; an ellipsis says that more was written."""
    lines: list[str] = []
    for word in caption.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
            continue
        while font.getlength(word) > width and len(word) > 1:
            fit = max(1, next(n for n in range(1, len(word) + 1) if font.getlength(word[:n]) > width) - 1)
            lines.append(word[:fit])
            word = word[fit:]
        lines.append(word)
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], f"{lines[_CAPTION_LINES - 1][:-1]}…"]
    return lines

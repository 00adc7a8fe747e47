"""Pictures of every kind become square images, and what is broken is named."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from lab.data import pictures
from lab.data.pictures import PictureConfig
from lab.data.source import BadSample, Frame
from lab.randomness import key


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def image(data: bytes, size: int = 8, caption: str = "", slot: int = 0, **settings: Any) -> Tensor:
    return pictures.image(data, PictureConfig(**settings), (size, size), key(0, "picture", slot), caption)[0]


def frame(data: bytes, slot: int = 0, **settings: Any) -> Frame:
    return pictures.image(data, PictureConfig(**settings), (8, 8), key(0, "picture", slot), "")[1]


def plain(colour: Any, mode: str = "RGB", size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.new(mode, size, colour)


def levels(image: Tensor) -> list[float]:
    """The one colour of an image, in bytes."""
    assert (image == image[:, :1, :1]).all()
    return ((image[:, 0, 0] + 1) * 127.5).tolist()


def sixteen_bits(level: int) -> Image.Image:
    return Image.fromarray(np.full((12, 12), level, dtype=np.uint16))


@pytest.mark.parametrize(
    ("picture", "form", "expected"),
    [
        (plain((10, 20, 30)), "PNG", (10, 20, 30)),
        (plain((10, 20, 30)), "PPM", (10, 20, 30)),
        (plain((10, 20, 30)), "BMP", (10, 20, 30)),
        (plain(77, "L"), "PNG", (77, 77, 77)),
        (plain(1, "1"), "PNG", (255, 255, 255)),
        (plain((10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", (10, 20, 30)),
        (plain((0, 255, 0, 0), "CMYK"), "TIFF", (255, 0, 255)),
        (sixteen_bits(0x8000), "PNG", (128, 128, 128)),
        (sixteen_bits(65535), "PNG", (255, 255, 255)),
        (plain((50, 100), "LA"), "PNG", (175, 175, 175)),  # 100/255 of 50, the rest white
        (plain((0, 0, 0, 0), "RGBA"), "PNG", (255, 255, 255)),
        (plain((10, 20, 30, 255), "RGBA"), "WEBP", (10, 20, 30)),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "mode", None),
)
def test_every_kind_of_picture_keeps_its_colour(
    picture: Image.Image, form: str, expected: tuple[int, int, int]
) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    assert levels(image(encoded(picture, form, **options))) == pytest.approx(expected, abs=1)


def test_of_an_animation_the_first_picture_is_shown() -> None:
    frames = [plain((200, 0, 0)), plain((0, 200, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert levels(image(data)) == pytest.approx((200, 0, 0), abs=1e-3)


def test_a_picture_is_turned_as_exif_says() -> None:
    picture = plain((0, 0, 0), size=(8, 8))
    picture.paste((255, 255, 255), (0, 0, 8, 4))  # above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = image(encoded(picture, "PNG", exif=exif))
    assert (turned[:, :, 4:] == 1).all()
    assert (turned[:, :, :4] == -1).all()


@pytest.mark.parametrize("size", [5, 7, 8, 31, 64])
@pytest.mark.parametrize("side", [(33, 33), (40, 23), (9, 57)])
def test_a_constant_picture_stays_constant(size: int, side: tuple[int, int]) -> None:
    assert levels(image(encoded(plain((3, 141, 250), size=side)), size)) == pytest.approx((3, 141, 250), abs=1e-3)


@pytest.mark.parametrize(("side", "size"), [(64, 8), (64, 16), (16, 64), (96, 8)])
def test_an_edge_keeps_its_place(side: int, size: int) -> None:
    """A step at a quarter of the width: the sum over a row is what the areas say, whatever the sizes."""
    picture = plain((0, 0, 0), size=(side, side))
    picture.paste((255, 255, 255), (0, 0, side // 4, side))
    row = (image(encoded(picture), size)[0, 0] + 1) / 2
    assert row.sum().item() == pytest.approx(size / 4, abs=0.02 * size)
    assert torch.equal(row[: size // 4 - 1] > 0.9, torch.ones(size // 4 - 1, dtype=torch.bool))
    assert (row[size // 4 + 1 :] < 0.1).all()


def test_fine_stripes_become_grey_instead_of_a_pattern() -> None:
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = image(encoded(Image.fromarray(stripes)), 9)
    assert small.abs().max() < 0.06


def test_what_is_hidden_by_transparency_does_not_shine_through_when_resized() -> None:
    """An opaque red half beside a transparent green one: no pixel between them becomes green on black."""
    picture = plain((0, 255, 0, 0), "RGBA", (64, 64))
    picture.paste((255, 0, 0, 255), (0, 0, 32, 64))
    small = image(encoded(picture), 9, ground="black")
    assert (small[1] == -1).all()
    assert small[0].max() == 1
    assert -0.5 < small[0, 0, 4] < 0.5


@pytest.mark.parametrize(
    ("ground", "expected"), [("white", [255, 255, 255]), ("black", [0, 0, 0]), ((1, 2, 3), [1, 2, 3])]
)
def test_the_ground_shows_through(ground: Any, expected: list[float]) -> None:
    assert levels(image(encoded(plain((9, 9, 9, 0), "RGBA")), ground=ground)) == pytest.approx(expected, abs=1e-3)


def test_a_random_ground_is_another_colour_for_each_slot_and_the_same_for_the_same() -> None:
    data = encoded(plain((9, 9, 9, 0), "RGBA"))
    colours = [tuple(levels(image(data, ground="random", slot=slot))) for slot in (0, 1, 2, 0)]
    assert len(set(colours)) == 3
    assert colours[0] == colours[3]


def test_the_centre_or_a_random_part_is_cut_out_and_named() -> None:
    across, along = encoded(plain(0, "L", (20, 12))), encoded(plain(0, "L", (12, 20)))
    assert (frame(across), frame(along)) == (Frame(12, 20, 0, 4), Frame(20, 12, 4, 0))
    random = [frame(across, slot, crop="random") for slot in range(200)]
    assert {part.left for part in random} == set(range(9))
    assert {part.top for part in random} == {0}


def test_the_frame_says_what_is_shown() -> None:
    ramp = Image.fromarray(np.tile(np.arange(20, dtype=np.uint8) * 10, (8, 1)))
    part = frame(encoded(ramp), slot=3, crop="random")
    shown = image(encoded(ramp), slot=3, crop="random")
    assert part.left != 6
    assert (shown[0, 0] + 1).mul(12.75).round().tolist() == list(range(part.left, part.left + 8))


def test_mirror_images_only_on_demand_and_never_where_the_caption_speaks_of_sides() -> None:
    ramp = encoded(Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 10, (8, 1))))
    straight = image(ramp)
    assert torch.equal(image(ramp, flip=1.0, caption="a ramp"), straight.flip(2))
    assert torch.equal(image(ramp, flip=1.0, caption="bright on the Right"), straight)
    mirrored = sum(torch.equal(image(ramp, flip=0.3, slot=slot), straight.flip(2)) for slot in range(300))
    assert 60 < mirrored < 120


def test_draws_do_not_depend_on_the_picture() -> None:
    """Crop and ground of a slot are the same fractions whatever the size and the settings."""
    wide, wider = encoded(plain(0, "L", (20, 12))), encoded(plain(0, "L", (108, 12)))
    fractions = [
        [frame(data, slot, crop="random").left / n for slot in range(50)] for data, n in ((wide, 9), (wider, 97))
    ]
    assert np.abs(np.subtract(*fractions)).max() < 1 / 9


def bomb(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims a size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(999)))]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NOISE = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8))
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE)
FLIPPED = bytearray(PNG)
FLIPPED[len(PNG) // 2] ^= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"a red circle\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),  # would start another program
        (JPEG[: len(JPEG) // 2], "broken image"),
        (PNG[: len(PNG) // 2], "broken image"),
        (bytes(FLIPPED), "broken image"),
        (bomb(10_000, 10_000), "decompression bomb"),
        (bomb(20_000, 10_000), "decompression bomb"),
        (bomb(8_001, 8_000), "decompression bomb"),
        (encoded(plain(0, "L", (1, 1))), "image too small"),
        (encoded(plain(0, "L", (100, 7))), "image too small"),
        (encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "unknown range"),
    ],
    ids=["empty", "text", "postscript", "half JPEG", "half PNG", "flipped PNG", "100 MP", "200 MP", "64 MP", *"abc"],
)
def test_what_cannot_be_used_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        image(data)
    assert caught.value.reason == reason


def test_every_flipped_bit_of_a_picture_is_found() -> None:
    found = 0
    for place in range(0, len(PNG), 97):
        spoilt = bytearray(PNG)
        spoilt[place] ^= 0x10
        with pytest.raises(BadSample):
            image(bytes(spoilt))
        found += 1
    assert found > 40


@pytest.mark.parametrize("ground", [(0, 0), (0, 0, 256), "red", (-1, 0, 0)])
def test_a_ground_is_a_colour(ground: Any) -> None:
    with pytest.raises(ValidationError):
        PictureConfig(ground=ground)

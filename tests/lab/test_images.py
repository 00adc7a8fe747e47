import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lab.errors import BadData, NonFinite, Refused, StorageFailed
from lab.images import from_uint8, grid, layered, read_image, read_layers, read_metadata, save_png, to_uint8


def constant(value: float, height: int = 2, width: int = 3) -> torch.Tensor:
    return torch.full((3, height, width), float(value))


def every_level() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)


def test_bytes_survive_the_way_there_and_back() -> None:
    assert torch.equal(to_uint8(from_uint8(every_level())), every_level())
    assert torch.equal(to_uint8(from_uint8(every_level()).double()), every_level())


@pytest.mark.parametrize(("value", "level"), [(-1, 0), (1, 255), (0.99, 254), (-0.99, 1), (-1.5, 0), (7, 255)])
def test_rounding_is_to_the_nearest_level_and_clamps(value: float, level: int) -> None:
    assert to_uint8(constant(value)).unique().tolist() == [level]


def test_bfloat16_is_widened_before_it_is_scaled() -> None:
    assert to_uint8(constant(-0.490234375).bfloat16()).unique().tolist() == [65]  # 64 in bfloat16


def test_batches_keep_their_shape() -> None:
    images = torch.zeros(5, 3, 2, 7)
    assert to_uint8(images).shape == from_uint8(to_uint8(images)).shape == images.shape


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (torch.zeros(3, 2, 2, dtype=torch.uint8), TypeError),
        (torch.zeros(2, 2), ValueError),
        (torch.zeros(1, 2, 2), ValueError),
        (torch.zeros(2, 2, 3), ValueError),
        (constant(float("nan")), NonFinite),
        (constant(float("inf")), NonFinite),
    ],
)
def test_to_uint8_refuses(images: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        to_uint8(images)


def test_from_uint8_refuses() -> None:
    with pytest.raises(TypeError):
        from_uint8(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="3, H, W"):
        from_uint8(torch.zeros(4, 2, 2, dtype=torch.uint8))


def test_a_png_holds_the_levels_and_the_metadata(tmp_path: Path) -> None:
    image = from_uint8(every_level())
    metadata = {"prompt": "a réd círcle 日本\nabove", "seed": "0", "empty": ""}
    path = tmp_path / "deep" / "a.png"
    save_png(path, image, metadata)
    assert torch.equal(read_image(path), image)
    assert read_metadata(path) == metadata


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300))
def test_any_prompt_survives_as_metadata(tmp_path_factory: pytest.TempPathFactory, prompt: str) -> None:
    path = tmp_path_factory.getbasetemp() / "prompt.png"
    save_png(path, constant(0), {"prompt": prompt})
    assert read_metadata(path) == {"prompt": prompt}


def test_the_same_picture_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_png(tmp_path / name, constant(0.3, 33, 17), {"seed": "1"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_png(tmp_path / "a.png", constant(0))
    before = (tmp_path / "a.png").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match=r"a\.png: cannot be written: No space left on device; free"):
        save_png(tmp_path / "a.png", constant(1))
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_the_file_and_then_the_folder_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(handle: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    save_png(tmp_path / "a.png", constant(0))
    assert events == ["file", "rename", "folder"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", constant(0))
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(
    ("picture", "levels"),
    [
        (Image.new("L", (3, 2), 128), (128, 128, 128)),
        (Image.new("1", (3, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (200, 100, 0, 0)), (10, 20, 30)),
        (Image.new("RGBA", (3, 2), (200, 100, 0, 255)), (200, 100, 0)),
        (Image.new("LA", (3, 2), (200, 0)), (10, 20, 30)),
        (Image.new("RGB", (3, 2), (7, 8, 9)).convert("P", palette=Image.Palette.ADAPTIVE), (7, 8, 9)),
        (Image.fromarray(np.full((2, 3), 128 * 257, np.uint16)), (128, 128, 128)),
    ],
)
def test_every_kind_of_png_is_read_as_rgb(tmp_path: Path, picture: Image.Image, levels: tuple[int, int, int]) -> None:
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", ground=(10, 20, 30))
    assert image.shape == (3, 2, 3)
    assert image.dtype == torch.float32
    assert to_uint8(image)[:, 0, 0].tolist() == list(levels)


def test_half_transparent_is_half_ground(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert to_uint8(read_image(tmp_path / "a.png"))[:, 0, 0].tolist() == [255, 127, 127]


def test_cmyk_and_exif_orientation(tmp_path: Path) -> None:
    Image.new("CMYK", (3, 2), (0, 0, 0, 255)).save(tmp_path / "a.jpg")
    assert to_uint8(read_image(tmp_path / "a.jpg")).unique().tolist() == [0]
    turned = Image.new("RGB", (3, 2)).getexif()
    turned[0x0112] = 6
    Image.new("RGB", (3, 2)).save(tmp_path / "b.jpg", exif=turned)
    assert read_image(tmp_path / "b.jpg").shape == (3, 3, 2)


def test_what_32_bits_mean_is_not_guessed(tmp_path: Path) -> None:
    for name, levels in (("int.tif", np.int32([[0, 70_000]])), ("float.tif", np.float32([[0, 1]]))):
        Image.fromarray(levels).save(tmp_path / name)
        with pytest.raises(BadData, match="32 bits a value"):
            read_image(tmp_path / name)


def test_lab_colours_are_no_greys(tmp_path: Path) -> None:
    Image.new("LAB", (2, 2), (128, 80, 30)).save(tmp_path / "a.tif")
    assert not read_layers(tmp_path / "a.tif").is_grey


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such image"):
        read_image(tmp_path / "none.png")
    with pytest.raises(Refused, match="no such image"):
        read_metadata(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, format="PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:1000])
    for name in ("text.png", "cut.png"):
        with pytest.raises(BadData, match=f"{name}: is not a readable"):
            read_image(tmp_path / name)
        with pytest.raises(BadData, match=f"{name}: is not a readable"):
            read_metadata(tmp_path / name)


def test_a_grid_magnifies_whole_pixels_and_puts_captions_under_them() -> None:
    images = torch.stack([constant(value, 32, 32) for value in (-1.0, 0.0, 1.0)])
    images[0, :, 0, 0] = 1
    sheet = np.asarray(grid(images, ["one", "", "a red circle left of a very small green star " * 2], columns=2))
    assert sheet.shape[1] == 2 * (128 + 8) + 8
    assert (sheet[8:12, 8:12] == 255).all()
    assert (sheet[8:12, 12:16] == 0).all()
    assert (sheet[8 : 8 + 128, 144 : 144 + 128] == 128).all()
    under_first, under_second = sheet[137:151, 8:136], sheet[137:151, 144:272]
    assert (under_first < 128).any()
    assert (under_second == 255).all()


def test_a_long_caption_is_wrapped_inside_its_tile() -> None:
    images = torch.zeros(2, 3, 32, 32)
    long = "supercalifragilisticexpialidocious " * 30
    sheet = np.asarray(grid(images, [long, ""], columns=2))
    assert (sheet[137:, 144:] == 255).all()
    assert (sheet[137:, 8:136] < 128).any()
    assert sheet.shape[0] < 128 + 8 * 16


def test_large_pictures_are_not_magnified() -> None:
    assert grid(torch.zeros(1, 3, 200, 150)).size == (150 + 16, 200 + 16)


@pytest.mark.parametrize(
    ("images", "captions"),
    [(torch.zeros(0, 3, 4, 4), None), (torch.zeros(3, 4, 4), None), (torch.zeros(2, 3, 4, 4), ["a"])],
)
def test_a_grid_refuses(images: torch.Tensor, captions: list[str] | None) -> None:
    with pytest.raises(ValueError, match="image"):
        grid(images, captions)


# Pictures with their transparency


def layered_picture(mode: str) -> Image.Image:
    y, x = np.mgrid[0:16, 0:16]
    levels = np.stack([16 * x, 16 * y, 255 - 8 * x - 8 * y, np.minimum(20 * x, 255)], axis=-1).astype(np.uint8)
    return Image.fromarray(levels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_a_picture_in_layers_comes_back(tmp_path: Path, mode: str) -> None:
    layered_picture(mode).save(tmp_path / "a.png")
    layers = read_layers(tmp_path / "a.png")
    assert layers.is_grey == mode.startswith("L")
    assert (layers.opacity is None) == (not mode.endswith("A"))
    assert torch.equal(layers.image, read_image(tmp_path / "a.png"))
    made = layered(layers)
    assert made.mode == mode
    save_png(tmp_path / "b.png", made)
    again = read_layers(tmp_path / "b.png")
    assert (to_uint8(again.image).int() - to_uint8(layers.image).int()).abs().max() <= 2
    if layers.opacity is not None:
        assert again.opacity is not None
        assert torch.equal(again.opacity, layers.opacity)


def test_colours_shine_on_other_grounds_as_they_did(tmp_path: Path) -> None:
    """A red of any opacity stays red, and does not become pink."""
    picture = Image.new("RGBA", (4, 1), (200, 30, 10, 255))
    picture.putalpha(Image.fromarray(np.array([[0, 60, 128, 255]], dtype=np.uint8)))
    picture.save(tmp_path / "a.png")
    found = np.array(layered(read_layers(tmp_path / "a.png")))
    assert np.abs(found[0, 1:, :3].astype(int) - [200, 30, 10]).max() <= 4
    assert found[0, :, 3].tolist() == [0, 60, 128, 255]


def test_an_animation_has_no_layers_but_a_photograph_with_a_preview_has(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(Refused, match="has 2 frames: save the one that you want"):
            read_layers(tmp_path / name)
        assert read_image(tmp_path / name).shape == (3, 4, 4)
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_layers(tmp_path / "a.jpg").image.shape == (3, 4, 4)

"""Pictures of many ratios: the shape of each, and epochs whose batches have one shape."""

import io
import itertools
import math
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from lab.config import parse
from lab.data import buckets, pictures
from lab.data.buckets import Buckets, BucketsConfig
from lab.data.finite import Finite
from lab.data.folder import Folder
from lab.data.index import open_index
from lab.data.loader import Batch, Loader
from lab.data.mixture import MixtureConfig
from lab.data.pictures import PictureConfig
from lab.data.stream import StreamConfig
from lab.errors import Refused
from lab.images import Shape
from lab.randomness import key

SIZES = [(12, 12), (24, 12), (12, 24), (40, 10), (13, 12)]  # width and height
SHAPES = {(12, 12): (8, 8), (24, 12): (4, 16), (12, 24): (16, 4), (40, 10): (4, 16), (13, 12): (8, 8)}
BATCH = 6


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))


def make(folder: Path, num: int = 53) -> Path:
    """A folder of pictures of several ratios, the size of each in its text."""
    folder.mkdir()
    for k in range(num):
        width, height = SIZES[k * k % 7 % 5]
        Image.new("L", (width, height), k).save(folder / f"{k:03}.png")
        (folder / f"{k:03}.txt").write_text(f"{width} {height}")
    return folder


def opened(path: Path, batch: int = BATCH, **settings: Any) -> Finite:
    told = {"path": str(path), "size": 8, "split": {"heldout": 0.0}, "buckets": {"step": 4, "ratio": 4.0}, **settings}
    config = parse(told, Folder)
    return Finite(config, open_index(config), batch=batch)


def taken(source: Finite, start: int, sizes: list[int], num: int, workers: int = 0) -> list[Batch]:
    batches = Loader(source, seed=3, workers=workers).batches(start, sizes)
    found = list(itertools.islice(batches, num))
    batches.close()
    return found


@pytest.mark.parametrize(
    ("size", "step", "ratio", "expected"),
    [
        (64, 16, 2.0, [(80, 48), (64, 64), (48, 80)]),
        (64, 8, 2.0, [(80, 48), (72, 56), (64, 64), (56, 72), (48, 80)]),
        (64, 32, 4.0, [(128, 32), (64, 64), (32, 128)]),
        (8, 4, 4.0, [(16, 4), (8, 8), (4, 16)]),
        (64, 16, 1.0, [(64, 64)]),
    ],
)
def test_shapes_are_those_of_about_one_area(size: int, step: int, ratio: float, expected: list[Shape]) -> None:
    assert BucketsConfig(step=step, ratio=ratio).shapes(size) == expected


@pytest.mark.parametrize(("size", "step"), [(64, 4), (256, 32), (512, 64), (96, 8)])
def test_no_shape_is_larger_than_the_square_and_each_is_as_large_as_can_be(size: int, step: int) -> None:
    shapes = BucketsConfig(step=step, ratio=3.0).shapes(size)
    assert len(set(shapes)) == len(shapes)
    assert {(width, height) for height, width in shapes} == set(shapes)
    for height, width in shapes:
        assert height % step == width % step == 0
        assert size**2 - step * min(height, width) < height * width <= size**2
        assert max(height, width) <= 3 * min(height, width)


def test_a_picture_goes_to_the_nearest_ratio_in_logarithms() -> None:
    shapes = BucketsConfig(step=8, ratio=2.0).shapes(64)
    sizes = key(0, "sizes", 0).integers(1, 4000, size=(500, 2))
    found = buckets.nearest(sizes, shapes)
    for (width, height), number in zip(sizes.tolist(), found.tolist(), strict=True):
        distances = [abs(math.log(width / height) - math.log(w / h)) for h, w in shapes]
        assert distances[number] == pytest.approx(min(distances))
    assert [shapes[k] for k in buckets.nearest(np.array([[0, 0], [0, 9], [7, 7]]), shapes)] == [(64, 64)] * 3
    wide, high = buckets.nearest(np.array([[141, 100], [100, 141]]), [(16, 8), (8, 8), (8, 16)])
    assert (wide, high) == (1, 1)  # as far as the root of 2, where an arithmetic middle would be 1.5
    assert buckets.nearest(np.array([[142, 100], [100, 142]]), [(16, 8), (8, 8), (8, 16)]).tolist() == [2, 0]


@pytest.mark.parametrize("num", [1, 7, 48, 53, 1000])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_an_epoch_holds_each_row_once_and_most_steps_are_of_one_shape(num: int, batch: int) -> None:
    shapes = [(3, 1), (2, 1), (1, 1), (1, 2)]
    numbers = key(0, "numbers", num).choice(4, size=2 * num, p=[0.1, 0.2, 0.3, 0.4]).astype(np.uint16)
    rows = np.arange(1, 2 * num, 2)
    made = Buckets(shapes, numbers, batch)
    epochs = [made.order(rows, epoch, key(5, "order", epoch)) for epoch in range(2 * batch + 1)]
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    steps = np.concatenate(epochs)[: num * len(epochs) // batch * batch].reshape(-1, batch)
    mixed = sum(len(set(numbers[step])) > 1 for step in steps)
    assert mixed <= len(epochs) * len(shapes)  # less than a batch is left of each shape
    assert num < 100 or len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_batches_come_in_random_order_and_hold_random_rows() -> None:
    numbers = np.repeat(np.arange(2, dtype=np.uint16), 500)
    epoch = Buckets([(2, 1), (1, 2)], numbers, 10).order(np.arange(1000), 0, key(0, "order", 0))
    steps = epoch.reshape(-1, 10)
    first = [numbers[step[0]] for step in steps]
    changes = sum(one != other for one, other in itertools.pairwise(first))
    assert 30 < changes < 70  # of 99, where a coin would say 50
    assert np.abs(np.diff(steps, axis=1)).mean() > 100
    assert abs(steps[: len(steps) // 2].mean() - 499.5) < 60


def test_a_million_rows_are_arranged_at_once() -> None:
    numbers = key(0, "numbers", 0).integers(9, size=10**6).astype(np.uint16)
    made, rows = Buckets([(k, 1) for k in range(9)], numbers, 256), np.arange(10**6, dtype=np.uint32)
    epoch = made.order(rows, 3, key(0, "order", 3))
    assert epoch.dtype == np.uint32
    assert np.array_equal(np.sort(epoch), rows)


def test_every_picture_is_delivered_once_in_its_shape(tmp_path: Path) -> None:
    source = opened(make(tmp_path / "data"))
    for epoch in range(3):
        samples = [source.sample(0, slot) for slot in range(epoch * source.num, (epoch + 1) * source.num)]
        assert {sample.id for sample in samples} == {f"{k:03}.png" for k in range(53)}
        for sample in samples:
            width, height = map(int, sample.caption.split())
            assert tuple(sample.image.shape) == (3, *SHAPES[width, height])
            assert sample.frame is not None
            assert (sample.frame.width, sample.frame.height) == (width, height)
    counts = Counter(SHAPES[SIZES[k * k % 7 % 5]] for k in range(53))
    told = ", ".join(f"{counts[shape]} of {shape[1]}x{shape[0]}" for shape in ((16, 4), (8, 8), (4, 16)))
    assert source.summary.endswith(f"0 bad; {told}")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_batches_of_one_shape(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    alone, *others = (taken(opened(folder), 6, [4, 2], 20, workers) for workers in (0, 1, 2))
    assert {batch.images.shape[2:] for batch in alone} == {(16, 4), (8, 8), (4, 16)}
    slots = [slot for batch in alone for slot in batch.slots]
    assert slots == list(range(6, 6 + len(slots)))
    for many in others:
        for one, other in zip(alone, many, strict=True):
            assert torch.equal(one.images, other.images)
            assert replace(one, images=other.images) == other


def test_micro_batches_and_shares_cut_the_same_samples(tmp_path: Path) -> None:
    source = opened(make(tmp_path / "data"))
    whole = {slot: id for batch in taken(source, 0, [6], 40) for slot, id in zip(batch.slots, batch.ids, strict=True)}
    for start, sizes in ((0, [4, 2]), (0, [1]), (3, [3])):
        for batch in taken(source, start, sizes, 40):
            assert all(whole[slot] == id for slot, id in zip(batch.slots, batch.ids, strict=True) if slot in whole)


def test_a_loader_cuts_a_batch_where_the_shape_changes(tmp_path: Path) -> None:
    loader = Loader(opened(make(tmp_path / "data")), seed=3)
    mixed = range(48, 54)
    parts = loader.parts(mixed)
    assert len(parts) > 1
    assert [slot for part in parts for slot in part.slots] == list(mixed)
    assert all(one.images.shape != other.images.shape for one, other in itertools.pairwise(parts))
    with pytest.raises(ValueError, match="too many values to unpack"):
        loader.batch(mixed)


def test_a_bad_sample_is_replaced_by_one_of_its_shape(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    clean = opened(folder)
    before = [clean.sample(0, slot) for slot in range(53)]
    for k in range(0, 53, 3):
        data = (folder / f"{k:03}.png").read_bytes()
        (folder / f"{k:03}.png").write_bytes(data[:-20] + bytes(20))  # of the same size, and no picture
    spoilt = opened(folder)
    faulty = 0
    for slot, sample in enumerate(before):
        after = spoilt.sample(0, slot)
        assert after.image.shape == sample.image.shape
        width, height = map(int, after.caption.split())
        assert SHAPES[width, height] == tuple(after.image.shape[1:])
        faulty += bool(after.faults)
        assert after.faults or after.id == sample.id
    assert faulty == 18


def test_a_bad_sample_that_is_alone_in_its_shape_is_replaced_by_one_of_another(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", num=3)
    Image.new("L", (12, 24)).save(folder / "high.png")
    (folder / "high.txt").write_text("12 24")
    assert "; 1 of 4x16, " in opened(folder).summary
    data = (folder / "high.png").read_bytes()
    (folder / "high.png").write_bytes(data[:-20] + bytes(20))
    source = opened(folder)
    (found,) = (sample for sample in (source.sample(0, slot) for slot in range(4)) if sample.faults)
    assert {fault.id for fault in found.faults} == {"high.png"}
    assert found.image.shape == (3, *SHAPES[12, 24])


def test_who_names_no_batch_sees_squares_and_the_same_data_as_without(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    sorted_so, squares, plain = opened(folder), opened(folder, batch=0), opened(folder, buckets=None)
    assert squares.fingerprint == plain.fingerprint
    assert {squares.sample(0, slot).image.shape for slot in range(53)} == {(3, 8, 8)}
    others = [opened(folder, batch=5), opened(folder, buckets={"step": 4, "ratio": 2.0})]
    assert len({each.fingerprint for each in (plain, sorted_so, *others)}) == 4


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    source = opened(make(tmp_path / "data"))
    other = pickle.loads(pickle.dumps(source))
    assert [other.sample(0, slot).id for slot in range(53, 70)] == [source.sample(0, slot).id for slot in range(53, 70)]


def test_sizes_are_read_once_and_again_when_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "data")
    index = opened(folder).index
    sizes = index.sizes()
    assert sizes.tolist() == [list(SIZES[k * k % 7 % 5]) for k in range(53)]
    monkeypatch.setattr(type(index), "_size", lambda *_: pytest.fail("read again"))
    assert np.array_equal(opened(folder).index.sizes(), sizes)
    monkeypatch.undo()
    Image.new("L", (99, 98)).save(folder / "000.png")
    (folder / "001.png").write_bytes(b"no picture")
    (folder / "002.png").unlink()
    found = opened(folder).index.sizes().tolist()
    assert found[:2] == [[99, 98], [0, 0]]
    assert len(found) == 52


def encoded(form: str, orientation: int, width: int = 300, height: int = 200) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    noise = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_in_the_header_is_that_of_the_picture(form: str, orientation: int) -> None:
    data = encoded(form, orientation)
    assert pictures.size_of(data) == pictures.decode(data).size


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_in_xmp_counts_too(form: str) -> None:
    told = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    more: dict[str, Any] = {"xmp": told.encode()}
    if form == "PNG":
        more = {"pnginfo": PngInfo()}
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", told)
    buffer = io.BytesIO()
    Image.new("L", (30, 20)).save(buffer, form, **more)
    assert pictures.size_of(buffer.getvalue()) == pictures.decode(buffer.getvalue()).size == (20, 30)


def test_the_head_of_a_picture_says_its_size() -> None:
    for form in ("PNG", "JPEG"):
        data = encoded(form, 6)
        assert pictures.size_of(data[:2000]) == (200, 300)
        assert pictures.size_of(data[:10]) == (0, 0)
    assert pictures.size_of(b"no picture") == (0, 0)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (12, 8), (7, 5)])
@pytest.mark.parametrize("size", [(12, 12), (101, 37), (37, 101), (9, 8), (3000, 8)])
def test_the_largest_part_of_the_ratio_is_shown_undistorted(shape: Shape, size: tuple[int, int]) -> None:
    """On a picture whose levels say where they were, the image says which part it is."""
    height, width = shape
    across = np.tile(np.linspace(0, 255, size[0], dtype=np.float32), (size[1], 1))
    down = np.tile(np.linspace(0, 255, size[1], dtype=np.float32)[:, None], (1, size[0]))
    for levels, axis in ((across, 2), (down, 1)):
        buffer = io.BytesIO()
        Image.fromarray(levels.round().astype(np.uint8)).save(buffer, "PNG")
        image, frame = pictures.image(buffer.getvalue(), PictureConfig(), shape, key(0, "picture", 0), "")
        assert image.shape == (3, height, width)
        found = (image.mean(dim=(0, 3 - axis)) + 1) * 127.5
        scale = min(size[0] / width, size[1] / height)  # pixels of the original per pixel
        begin, extent = (frame.left, size[0]) if axis == 2 else (frame.top, size[1])
        places = begin + (np.arange(shape[axis - 1]) + 0.5) * scale - 0.5
        inner = slice(2, -2) if shape[axis - 1] > 5 else slice(1, -1)
        expected = torch.from_numpy(places / (extent - 1) * 255).float()
        torch.testing.assert_close(found[inner], expected[inner], atol=3.0, rtol=0.02)
        assert abs(begin + shape[axis - 1] * scale / 2 - extent / 2) <= 1


def test_random_parts_stay_within_the_picture() -> None:
    buffer = io.BytesIO()
    Image.new("L", (101, 37), 200).save(buffer, "PNG")
    frames = set()
    for slot in range(200):
        settings = PictureConfig(crop="random")
        image, frame = pictures.image(buffer.getvalue(), settings, (5, 7), key(0, "picture", slot), "")
        assert (image.max() - image.min()).item() == 0
        assert frame.left + 37 * 7 / 5 <= 101
        frames.add((frame.left, frame.top))
    assert frames == {(left, 0) for left in range(50)}


@pytest.mark.parametrize(
    ("schema", "told", "words"),
    [
        (Folder, {"path": "x", "size": 60, "buckets": {"step": 16}}, "step=16 does not divide size=60"),
        (StreamConfig, {"path": "x", "buckets": {}}, "fetch the tars into a folder and set kind to shards"),
        (
            MixtureConfig,
            {"parts": {"a": {"kind": "folder", "path": "x", "buckets": {}}}, "weights": {"a": 1.0}},
            r"parts\.a\.buckets would make batches of one shape",
        ),
    ],
)
def test_what_cannot_be_sorted_is_refused_with_the_remedy(schema: Any, told: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        parse(told, schema)


@pytest.mark.parametrize("settings", [{"step": 0}, {"ratio": 0.5}])
def test_a_step_and_a_ratio_are_positive(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BucketsConfig(**settings)

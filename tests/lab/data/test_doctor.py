"""The doctor finds what was planted, and nothing else."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lab.data import doctor
from lab.data.doctor import Finding, Report
from lab.data.folder import Folder
from lab.data.index import open_index
from lab.data.shapes import Shapes, ShapesConfig
from lab.data.split import place, plain

EACH, SIZE = 20, 32


class Planter:
    """Writes pictures into a folder and keeps what the doctor should say of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.rows: list[dict[str, object]] = []
        self.planted: dict[str, set[frozenset[str]]] = {}
        self.number = 0

    def picture(self) -> Image.Image:
        """A picture like no other: soft blobs of colour."""
        levels = self.rng.integers(40, 216, size=(6, 6, 3), dtype=np.uint8)
        return Image.fromarray(levels).resize((48, 40), Image.Resampling.BICUBIC)

    def caption(self, *, heldout: bool = False) -> str:
        """A caption that nobody else has, on the side wanted."""
        while True:
            self.number += 1
            caption = f"picture number {self.number}"
            if (place(plain(caption)) < 0.1) == heldout:
                return caption

    def put(self, data: bytes | Image.Image, caption: str | list[str] | None, suffix: str = "png") -> str:
        name = f"{len(self.rows):04d}.{suffix}"
        if isinstance(data, Image.Image):
            data.save(self.folder / name)
        else:
            (self.folder / name).write_bytes(data)
        said = {} if caption is None else {"captions": caption if isinstance(caption, list) else [caption]}
        self.rows.append({"file_name": name, **said})
        return name

    def note(self, kind: str, *names: str) -> None:
        self.planted.setdefault(kind, set()).add(frozenset(names))

    def plant_everything(self) -> None:
        """Twenty of each kind of fault, in several shapes, among sixty good ones."""
        for k in range(60):
            self.put(self.picture(), self.caption(heldout=k % 10 == 0))
        for k in range(EACH):
            encoded = encode(self.picture())
            broken = (encoded[: len(encoded) // 2], b"", b"a text, no picture", flipped(encoded))[k % 4]
            self.note("broken", self.put(broken, self.caption()))
            self.note("empty", self.put(self.picture(), ["", self.caption()][: 1 + k % 2]))
            self.note("long", self.put(self.picture(), " ".join([self.caption(), *["word"] * 20])))
            self.note("small", self.put(self.picture().resize((SIZE - 1, 40)), self.caption()))
            self.note("blank", self.put(Image.new("RGB", (40, 40), (k, 2 * k, 250 - k * 12)), self.caption()))
            shared = self.caption()
            self.note("repeated", self.put(self.picture(), shared), self.put(self.picture(), shared))
            for kind, other in (("duplicate", same), ("near", near)):
                picture, is_leak = self.picture(), k % 4 == 0
                twins = [self.put(picture, self.caption())]
                twins.append(self.put(other(picture, k), self.caption(heldout=is_leak), "png"))
                self.note(kind, *twins)
                if is_leak:
                    self.note("leak", *twins)
        for _ in range(EACH - 10):
            picture = self.picture()
            twins = [self.put(picture, self.caption()), self.put(picture, self.caption(heldout=True))]
            self.note("duplicate", *twins)
            self.note("leak", *twins)
        lines = [json.dumps(row) for row in self.rows]
        (self.folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def flipped(data: bytes) -> bytes:
    spoilt = bytearray(data)
    spoilt[len(spoilt) // 2] ^= 255
    return bytes(spoilt)


def same(picture: Image.Image, k: int) -> Image.Image:
    return picture.copy()


def near(picture: Image.Image, k: int) -> Image.Image:
    """The same scene saved by somebody else: other compression, another size, a little darker or softer."""
    if k % 4 == 0:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=70)
        return Image.open(buffer)
    if k % 4 == 1:
        return picture.resize((96, 80), Image.Resampling.BICUBIC)
    if k % 4 == 2:
        return picture.point(lambda level: max(level - 2, 0))
    return picture.filter(ImageFilter.GaussianBlur(0.7))


@pytest.fixture(scope="module")
def planter(tmp_path_factory: pytest.TempPathFactory) -> Planter:
    planter = Planter(tmp_path_factory.mktemp("planted"), seed=0)
    planter.plant_everything()
    return planter


@pytest.fixture(scope="module")
def report(planter: Planter, tmp_path_factory: pytest.TempPathFactory) -> Report:
    cache = str(tmp_path_factory.mktemp("cache"))
    collection = Folder(path=str(planter.folder), size=SIZE, cache=cache)
    seen = doctor.look(collection, open_index(collection))
    return doctor.examine(seen, [(SIZE, SIZE)], count=words, window=16)


@pytest.mark.parametrize("kind", ["broken", "duplicate", "near", "leak", "empty", "repeated", "long", "small", "blank"])
def test_every_planted_fault_is_found_and_no_other(planter: Planter, report: Report, kind: doctor.Kind) -> None:
    found = Counter(frozenset(finding.ids) for finding in report.of(kind))
    assert set(found) == planter.planted[kind]
    assert max(found.values()) == 1
    assert len(found) >= EACH


def test_the_report_counts_everything(planter: Planter, report: Report) -> None:
    assert sum(report.samples.values()) == len(planter.rows)
    firsts = [str(row["captions"][0]) for row in planter.rows]  # type: ignore[index]
    assert report.samples["heldout"] == sum(place(plain(first)) < 0.1 for first in firsts)
    assert len(report.sizes) == len(planter.rows) - EACH


def test_an_endless_world_has_no_errors() -> None:
    world = ShapesConfig(size=SIZE)
    seen = [
        each for split in ("train", "heldout") for each in doctor.look_at_slots(Shapes(world, split), split, 0, 150)
    ]
    report = doctor.examine(seen, [(SIZE, SIZE)], count=words, window=32, finite=False)
    assert report.findings == []
    assert report.captions[0] == 300 > report.captions[1]
    assert report.alike == 0


@pytest.mark.parametrize("limit", [1.5, 4.0, 9.0])
def test_no_near_pair_is_missed(limit: float) -> None:
    """Against every pair, computed."""
    rng = np.random.default_rng(1)
    base = rng.integers(40, 200, size=(12, 16, 16, 3))
    noise = rng.normal(size=(10, 12, 16, 16, 3)) * np.linspace(0.4, 8, 10)[:, None, None, None, None]
    levels = (base + noise).round().astype(np.uint8).reshape(-1, 16, 16, 3)
    flat = levels.reshape(len(levels), -1).astype(float)
    wanted = {
        (i, j)
        for i in range(len(flat))
        for j in range(i + 1, len(flat))
        if np.sqrt(np.mean((flat[i] - flat[j]) ** 2)) < limit
    }
    assert {(i, j) for i, j, _ in doctor.near_pairs(list(levels), limit)} == wanted
    assert len(wanted) > 0


def test_alike_images_are_one_finding() -> None:
    rng = np.random.default_rng(2)
    thumbnail = rng.integers(0, 200, size=(16, 16, 3), dtype=np.uint8)
    seen = [
        doctor.Seen(f"{k}", "train", (f"{k}",), (40, 40), bytes([k // 2]), thumbnail + np.uint8(k // 2))
        for k in range(6)
    ]
    report = doctor.examine(seen, [(32, 32)])
    assert [(finding.kind, finding.ids) for finding in report.findings if finding.kind != "blank"] == [
        ("duplicate", ("0", "1")),
        ("duplicate", ("2", "3")),
        ("duplicate", ("4", "5")),
        ("near", ("0", "1", "2", "3", "4", "5")),
    ]
    assert isinstance(report.findings[0], Finding)
    endless = doctor.examine(seen, [(32, 32)], finite=False)
    assert (endless.findings, endless.alike) == ([], 6)

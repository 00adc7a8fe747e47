"""Each kind of data set is listed as it is: what it holds is delivered, what is broken is named and counted."""

import gzip
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.config import parse
from lab.data.coco import Coco
from lab.data.collection import Collection
from lab.data.finite import Finite
from lab.data.idx import Idx
from lab.data.index import Index, open_index
from lab.data.parquet import Parquet
from lab.data.source import Frame
from lab.data.torchvision_set import Torchvision
from lab.errors import BadData, Refused
from tests.lab.data.test_pictures import encoded, levels, plain

WHOLE = {"split": {"heldout": 0.0}, "size": 12}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))


def opened(kind: type[Collection], path: Path, **settings: Any) -> Finite:
    config = parse({"path": str(path), **WHOLE, **settings}, kind)
    return Finite(config, open_index(config))


def delivered(source: Finite) -> dict[str, tuple[str, list[float]]]:
    """Caption and colour of what comes in an epoch, by id."""
    samples = [source.sample(0, slot) for slot in range(source.num)]
    return {sample.id: (sample.caption, np.round(levels(sample.image)).tolist()) for sample in samples}


def reasons(index: Index) -> Counter[str]:
    return Counter(fault.reason for row in range(len(index)) if (fault := index.record(row).fault))


def write_idx(folder: Path, num: int = 5, labels: bytes = b"\0\1\0\1\2", packed: bool = True) -> Path:
    """Pictures of one grey each: 0, 10, 20 ..."""
    folder.mkdir()
    pixels = b"".join(bytes([10 * k]) * 12 * 14 for k in range(num))
    pictures = struct.pack(">IIII", 0x0803, num, 14, 12) + pixels
    for name, data in (
        ("train-images-idx3-ubyte", pictures),
        ("train-labels-idx1-ubyte", struct.pack(">II", 0x0801, len(labels)) + labels),
    ):
        (folder / f"{name}.gz").write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_speak_by_the_names_of_their_classes(tmp_path: Path, packed: bool) -> None:
    source = opened(
        Idx,
        write_idx(tmp_path / "idx", packed=packed),
        classes=["coat", "bag"],
        captions={"templates": ["a {caption}"]},
    )
    assert reasons(source.index) == {"no such class": 1}
    found = delivered(source)
    assert found["train-images-idx3-ubyte-3"] == ("a bag", [30, 30, 30])
    assert found["train-images-idx3-ubyte-2"] == ("a coat", [20, 20, 20])
    assert set(source.captions()) == {"a coat", "a bag"}
    assert source.sample(0, 0).frame == Frame(height=14, width=12, top=1, left=0)
    assert len(source.sample(0, 0).faults) + len(source.sample(0, 1).faults) <= 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-500], "cut short after 2 of 5 samples: 3 are lost"),
        (lambda data: b"\0\0\x08\x01" + data[4:], "is no idx file of bytes in 3 dimensions"),
        (lambda data: data[:7], "is no idx file"),
        (lambda data: data[:4] + struct.pack(">I", 6) + data[8:], "6 pictures in .* but 5 labels"),
        (lambda data: data[:4] + struct.pack(">I", 4) + data[8:], "4 pictures in .* but 5 labels"),
    ],
)
def test_an_idx_file_that_is_not_whole_is_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = write_idx(tmp_path / "idx", packed=False)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadData, match=words):
        opened(Idx, folder, classes=["a"])
    path.unlink()
    with pytest.raises(Refused, match=r"no such file; set data\.images"):
        opened(Idx, folder, classes=["a"])


def test_a_broken_gzip_file_is_named(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "idx")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadData, match=r"cut short after \d of 5 samples"):
        opened(Idx, folder, classes=["a"])


def write_coco(folder: Path) -> Path:
    (folder / "pictures").mkdir(parents=True)
    for k in range(3):
        plain(10 * k, "L").save(folder / "pictures" / f"{k}.png")
    tree = {
        "images": [{"id": 70 + k, "file_name": f"{k}.png"} for k in range(3)] + [{"id": 9, "file_name": "../../etc"}],
        "annotations": [
            *({"id": k, "image_id": 70 + k % 2, "caption": f"caption {k}\n"} for k in range(6)),
            {"image_id": 9, "caption": "elsewhere"},
        ],
    }
    (folder / "captions.json").write_text(json.dumps(tree))
    return folder


def test_coco_has_several_captions_for_a_picture(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco")
    source = opened(Coco, folder / "captions.json", folder=str(folder / "pictures"))
    assert reasons(source.index) == {"no such file": 1, "no caption": 1}
    assert source.index.record(1).captions == tuple(("caption", f"caption {k}") for k in (1, 3, 5))
    said = {source.sample(0, slot).caption for slot in range(400)}
    assert said == {f"caption {k}" for k in range(6)}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"images": [], "annotations": [3]}', '{"images": [{}], "annotations": []}']
)
def test_a_file_that_is_not_cocos_is_named(tmp_path: Path, text: str) -> None:
    folder = write_coco(tmp_path / "coco")
    (folder / "captions.json").write_text(text)
    with pytest.raises(BadData, match="is no file of captions as COCO's"):
        opened(Coco, folder / "captions.json", folder=str(folder / "pictures"))
    with pytest.raises(Refused, match=r"data\.folder=.*: no such folder"):
        opened(Coco, folder / "captions.json", folder=str(folder / "missing"))
    with pytest.raises(Refused, match="no such file; name the JSON file"):
        opened(Coco, folder / "missing.json", folder=str(folder / "pictures"))


def test_any_data_set_of_torchvision_is_read_by_name(tmp_path: Path) -> None:
    for name, grey in (("cat", 10), ("dog", 200)):
        (tmp_path / "set" / name).mkdir(parents=True)
        plain((grey, 0, 0)).save(tmp_path / "set" / name / "0.png")
    (tmp_path / "set" / "dog" / "1.png").write_bytes(b"no picture")
    source = opened(Torchvision, tmp_path / "set", name="ImageFolder")
    assert delivered(source)["ImageFolder-1"] == ("dog", [200, 0, 0])
    assert reasons(source.index) == {"broken image": 1}
    named = opened(Torchvision, tmp_path / "set", name="ImageFolder", classes=["pussy-cat"])
    assert delivered(named)["ImageFolder-0"] == ("pussy-cat", [10, 0, 0])
    assert reasons(named.index) == {"broken image": 1, "no such class": 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "CIFAR11"}, r"data\.name=CIFAR11: torchvision has no such data set; did you mean CIFAR10?"),
        ({"name": "wrap_dataset_for_transforms_v2"}, "no such data set"),
        ({"name": "CIFAR10"}, r"does not find it in .* \(Dataset not found or corrupted.*nothing is downloaded"),
        ({"name": "CIFAR10", "options": {"train": True, "split": "x"}}, "unexpected keyword"),
        ({"name": "CIFAR10", "options": {"download": True}}, "download is no option here"),
    ],
)
def test_what_torchvision_does_not_have_is_refused(tmp_path: Path, settings: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        opened(Torchvision, tmp_path, **settings)


def write_table(path: Path, image: Any, **columns: list[Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": image, **columns}), path, row_group_size=2)
    return path


GREYS = [encoded(plain(10 * k, "L")) for k in range(4)]


@pytest.mark.parametrize("nested", [True, False])
def test_tables_hold_the_bytes_of_pictures(tmp_path: Path, nested: bool) -> None:
    images = [{"bytes": data, "path": "x"} for data in GREYS] if nested else GREYS
    write_table(tmp_path / "a.parquet", images, caption=[f"grey {k}" for k in range(4)])
    write_table(tmp_path / "b.parquet", images[:1], caption=[["one", "two"]])
    source = opened(Parquet, tmp_path)
    found = delivered(source)
    assert found["a.parquet:3"] == ("grey 3", [30, 30, 30])
    assert found["b.parquet:0"][0] in ("one", "two")
    assert delivered(opened(Parquet, tmp_path / "a.parquet")).keys() == {f"a.parquet:{k}" for k in range(4)}


def test_rows_without_a_picture_or_a_caption_are_bad(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", [*GREYS[:3], None], text=["one", None, "", "four"], group=[1, 1, 2, 2])
    source = opened(Parquet, path, caption="text", split={"heldout": 0.0, "group": "group"})
    assert reasons(source.index) == {"no caption": 1, "no image": 1}
    assert source.index.facts["empty"] == 1
    assert len(set(source.index.places)) == 2
    with pytest.raises(
        Refused, match=r"has no column title; set data\.image and data\.caption to two of image, text, group"
    ):
        opened(Parquet, path, caption="title")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadData, match="is no readable Parquet file"):
        opened(Parquet, path, caption="text")
    path.unlink()
    with pytest.raises(Refused, match=r"holds no \.parquet file"):
        opened(Parquet, tmp_path, caption="text")


def test_only_the_column_that_is_named_is_spoken(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", GREYS[:1], caption=["one"], text=["two"])
    for column, said in (("text", "two"), ("caption", "one")):  # the second is another list of the same file
        assert list(opened(Parquet, path, caption=column).captions()) == [said]


def test_other_names_of_classes_make_another_list(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "idx", labels=bytes(5))
    for name in ("coat", "bag"):
        assert set(opened(Idx, folder, classes=[name]).captions()) == {name}


def test_what_is_unpacked_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", GREYS[:2], caption=["one", "two"])
    first = opened(Parquet, path)
    assert torch.equal(first.sample(0, 0).image, opened(Parquet, path).sample(0, 0).image)
    write_table(path, GREYS[1::-1], caption=["one", "two"])
    assert opened(Parquet, path).fingerprint != first.fingerprint

"""Tar files in any order: every bad sample is counted, every cut shard is named, and nothing in a tar is trusted."""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lab.config import parse
from lab.data.finite import Finite
from lab.data.index import open_index
from lab.data.shards import Shards
from lab.errors import BadData, Refused
from tests.lab.data.test_pictures import bomb, encoded, plain

PER_SHARD = 50


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))


def opened(folder: Path, **settings: Any) -> Finite:
    config = parse({"path": str(folder), "size": 12, "split": {"heldout": 0.0}, **settings}, Shards)
    return Finite(config, open_index(config))


def write(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def picture(k: int, form: str = "PNG") -> bytes:
    noise = np.random.default_rng(k).integers(256, size=(16, 20, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), form)


def pairs(folder: Path, spoilt: Mapping[int, Mapping[str, bytes | None]] | None = None) -> Path:
    """200 pairs in four shards, some with members replaced, or left out where there is None."""
    for shard in range(4):
        members: dict[str, bytes] = {}
        for k in range(PER_SHARD * shard, PER_SHARD * (shard + 1)):
            own: dict[str, bytes | None] = {
                "png": picture(k),
                "txt": f"number {k}".encode(),
                **(spoilt or {}).get(k, {}),
            }
            members |= {f"{k:03}.{suffix}": data for suffix, data in own.items() if data is not None}
        write(folder / f"shard-{shard}.tar", members)
    return folder


def broken() -> dict[int, dict[str, bytes | None]]:
    """One pair for each way to be bad that a listing may meet, and two that only look strange."""
    flipped = bytearray(picture(9))
    flipped[len(flipped) // 2] ^= 4
    frames = [plain((200, 0, 0), size=(20, 16)), plain((0, 200, 0), size=(20, 16))]
    return {
        3: {"png": None, "jpg": picture(3, "JPEG")[:300]},
        57: {"png": None, "jpg": picture(57, "JPEG")[:-200]},
        9: {"png": bytes(flipped)},
        60: {"png": b""},
        111: {"png": None, "jpg": b"not a picture at all"},
        112: {"txt": None},
        113: {"txt": b"caf\xe9"},
        114: {"png": encoded(plain(0, "L", (1, 1)))},
        160: {"png": bomb(10_000, 10_000)},
        199: {"png": bomb(20_000, 10_000)},
        20: {"png": None, "jpg": encoded(plain((0, 99, 0, 0), "CMYK", (20, 16)), "JPEG")},
        21: {"png": None, "gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])},
    }


def test_of_200_pairs_those_that_are_bad_are_set_aside_and_every_other_comes_once(tmp_path: Path) -> None:
    clean = opened(pairs(tmp_path / "clean"), picture={"crop": "random"})
    before = [clean.sample(1, slot) for slot in range(200)]
    folder = pairs(tmp_path / "data", broken())
    source = opened(folder, picture={"crop": "random"})
    rot(folder / "shard-3.tar", "180.png")
    after = [source.sample(1, slot) for slot in range(200)]
    faults = {fault.id: fault for sample in after for fault in sample.faults}
    good = [sample for slot, sample in enumerate(after) if not sample.faults]
    assert len(good) + len(faults) == 200
    assert len({sample.id for sample in good}) == len(good) == 189
    numbers = {int(name[-3:]): fault for name, fault in faults.items()}
    assert {k: fault.reason for k, fault in numbers.items()} == {
        3: "broken image",
        57: "broken image",
        9: "broken image",
        60: "empty file",
        111: "not an image",
        112: "no caption",
        113: "caption is not UTF-8",
        114: "image too small",
        160: "decompression bomb",
        199: "decompression bomb",
        180: "bytes differ from the index",
    }
    assert numbers[111].id == "shard-2.tar/111"
    assert numbers[111].sha256 == hashlib.sha256(b"not a picture at all").hexdigest()
    for one, other in zip(before, after, strict=True):
        if not other.faults and one.id[-3:] not in ("020", "021"):
            assert torch.equal(one.image, other.image)
            assert (one.id, one.caption, one.frame) == (other.id, other.caption, other.frame)


def rot(path: Path, member: str, at: int = 40) -> None:
    """Flip a bit of a member, as a bad disk does: neither size nor time of the file change."""
    state = path.stat()
    with tarfile.open(path) as tar:
        offset = tar.getmember(member).offset_data + at
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("more", [0, 300, 700, 1100])
def test_a_shard_that_was_cut_short_is_named_with_what_is_lost(tmp_path: Path, more: int) -> None:
    folder = pairs(tmp_path / "data")
    assert opened(folder).num == 200
    path = folder / "shard-1.tar"
    with tarfile.open(path) as tar:
        ends = {info.name[:3]: info.offset_data + info.size for info in tar}
    cut = path.stat().st_size // 2 + more
    os.truncate(path, cut)
    lost = sum(end > cut for end in ends.values())
    assert 10 < lost < 40
    with pytest.raises(BadData, match=rf"shard-1.tar: is cut short.*: {lost} of its 50 samples are lost; restore it"):
        opened(folder)


@pytest.mark.parametrize("member", ["010.png", "010.txt"])
def test_a_sample_is_lost_when_one_of_its_files_is(tmp_path: Path, member: str) -> None:
    folder = pairs(tmp_path / "data")
    opened(folder)
    rot(folder / "shard-0.tar", member, at=3)
    os.utime(folder / "shard-0.tar", (1, 1))  # so that it is looked at again
    with pytest.raises(BadData, match=r"shard-0.tar: .*: 1 of its 50 samples are lost"):
        opened(folder)


@pytest.mark.parametrize("shard", [0, 2])
def test_a_byte_flipped_in_a_header_is_found_at_the_start(tmp_path: Path, shard: int) -> None:
    folder = pairs(tmp_path / "data")
    opened(folder)
    flip_header(folder / f"shard-{shard}.tar", f"{PER_SHARD * shard + 20:03}.png")
    with pytest.raises(BadData, match=rf"shard-{shard}.tar: is cut short, damaged or another"):
        opened(folder)


def flip_header(path: Path, member: str) -> None:
    with tarfile.open(path) as tar:
        offset = tar.getmember(member).offset
    data = bytearray(path.read_bytes())
    data[offset + 100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "num"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), 25),
        (lambda path: flip_header(path, "010.png"), 10),  # tarfile itself stops here, and says nothing
        (lambda path: os.truncate(path, 0), 0),
    ],
)
def test_a_shard_that_was_broken_from_the_beginning_is_named(tmp_path: Path, spoil: Any, num: int) -> None:
    folder = pairs(tmp_path / "data")
    spoil(folder / "shard-0.tar")
    with pytest.raises(BadData, match=r"shard-0.tar: is cut short or damaged behind (\d+) samples") as caught:
        opened(folder)
    assert abs(int(str(caught.value).split("behind ")[1].split()[0]) - num) <= 2


def test_a_shard_that_was_only_copied_is_as_good_as_before(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "data")
    first = opened(folder)
    os.utime(folder / "shard-0.tar", (1, 1))
    assert opened(folder).fingerprint == first.fingerprint


def test_members_of_a_sample_stand_together(tmp_path: Path) -> None:
    members = {
        "a/1.png": picture(1),
        "a/1.txt": b"one\neins",
        "a/1.json": json.dumps({"caption": "one", "tags": "number"}).encode(),
        "a/1.npy": b"\x93NUMPY",
        "b/1.seg.png": picture(2),
        "b/1.PNG": picture(2),
        "b/1.json": b'{"captions": ["two"]}',
        "2.txt": b"nothing to see",
        "3.jpg": picture(3, "JPEG"),
        "3.json": b"{broken",
    }
    write(tmp_path / "data" / "x.tar", members)
    source = opened(tmp_path / "data", captions={"kinds": {"caption": 1.0, "tags": 1.0}})
    records = {record.id: record for record in (source.index.record(row) for row in range(len(source.index)))}
    assert records["x.tar/a/1"].captions == (("caption", "one"), ("caption", "eins"), ("tags", "number"))
    assert source.index.read(records["x.tar/b/1"]) == picture(2)
    faults = Counter(record.fault.reason for record in records.values() if record.fault)
    assert faults == {"no image": 1, "no caption": 1}


def special(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (special("../outside.png"), "its name leaves the folder"),
        (special("a/../../outside.png"), "its name leaves the folder"),
        (special("/etc/outside.png"), "its name leaves the folder"),
        (special("1.png", tarfile.SYMTYPE, link="/etc/passwd"), "it is a link, a device or sparse"),
        (special("1.png", tarfile.LNKTYPE, link="0.png"), "it is a link, a device or sparse"),
        (special("1.png", tarfile.CHRTYPE), "it is a link, a device or sparse"),
        (special("1.png", tarfile.FIFOTYPE), "it is a link, a device or sparse"),
        (special("1.png", tarfile.GNUTYPE_SPARSE), "it is a link, a device or sparse"),
        (special("1.png", size=10 * 2**30), "it has 10,737,418,240 bytes"),
        (special("1.png", size=2**28 + 1), "it has 268,435,457 bytes, more than 268,435,456"),
        *((special(f"1.{suffix}"), "pickled data can run code") for suffix in ("pkl", "pyd", "pth", "cls.PICKLE")),
    ],
    ids=lambda value: value.name + value.type.decode() if isinstance(value, tarfile.TarInfo) else None,
)
def test_members_that_are_not_to_be_trusted_are_refused(tmp_path: Path, info: tarfile.TarInfo, words: str) -> None:
    folder = tmp_path / "data"
    write(folder / "x.tar", {"0.png": picture(0), "0.txt": b"zero"})
    path = folder / "x.tar"
    with tarfile.open(path, "a") as tar:
        tar.addfile(info)
        end = tar.offset
    if info.size:
        os.truncate(path, end + info.size + 10240)  # sparse on the disk: takes no room
    before = set(tmp_path.rglob("*"))
    with pytest.raises(Refused, match=words) as caught:
        opened(folder)
    assert repr(info.name) in str(caught.value)
    assert {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in (path, *path.parents)} == before


def test_a_folder_without_tar_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(Refused, match=r"holds no \.tar file \(packed ones"):
        opened(tmp_path)

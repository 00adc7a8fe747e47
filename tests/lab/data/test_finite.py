"""A finite data set is a function of (seed, slot): each sample once in an epoch, what is bad set aside."""

import gc
import hashlib
import itertools
import json
import os
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lab.data.finite import Finite
from lab.data.folder import Folder
from lab.data.index import open_index
from lab.data.loader import Batch, Loader
from lab.data.split import Split
from lab.errors import BadData, Refused, StorageFailed

NUM = 40


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDBRUSH_CACHE", str(tmp_path / "cache"))


def make(folder: Path, num: int = NUM, captions: Sequence[str] = ("number {}",)) -> Path:
    """A folder of pictures, each of another grey and width, with captions in a text file."""
    folder.mkdir()
    for k in range(num):
        grey = np.tile(np.linspace(2 * k, 2 * k + 40, 12 + k % 5, dtype=np.uint8), (12, 1))
        Image.fromarray(grey).save(folder / f"{k:03}.png")
        (folder / f"{k:03}.txt").write_text("\n".join(caption.format(k) for caption in captions))
    return folder


def opened(path: Path, side: Split = "train", **settings: Any) -> Finite:
    config = Folder.model_validate({"path": str(path), "size": 8, "split": {"heldout": 0.25}, **settings}, strict=False)
    return Finite(config, open_index(config), side)


def ids(source: Finite, slots: range, seed: int = 0) -> list[str]:
    return [source.sample(seed, slot).id for slot in slots]


def test_an_epoch_holds_each_sample_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    source = opened(make(tmp_path / "data"))
    num = source.num
    epochs = [ids(source, range(k * num, (k + 1) * num)) for k in range(3)]
    assert [len(set(epoch)) for epoch in epochs] == [num] * 3
    assert set(epochs[0]) == set(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(source._orders) == 2
    assert ids(source, range(num), seed=1) != epochs[0]
    assert ids(opened(tmp_path / "data"), range(num)) == epochs[0]


def test_the_sides_are_apart_complete_and_the_same_whatever_is_added(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    sides = [set(ids(source, range(source.num))) for source in (opened(folder), opened(folder, "heldout"))]
    assert sides[0] | sides[1] == {f"{k:03}.png" for k in range(NUM)}
    assert not sides[0] & sides[1]
    assert 3 <= len(sides[1]) <= 17
    added = {"a.png", "b.jpg", "C.PNG"}
    for name in added:
        Image.new("L", (12, 12)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(name)
    later = [set(ids(source, range(source.num))) for source in (opened(folder), opened(folder, "heldout"))]
    assert all(before <= after for before, after in zip(sides, later, strict=True))
    assert added <= later[0] | later[1]


@pytest.mark.parametrize(("group", "num_groups"), [("caption", 1), ("id", NUM)])
def test_samples_of_one_group_are_on_one_side(tmp_path: Path, group: str, num_groups: int) -> None:
    folder = make(tmp_path / "data", captions=["Man at work"])
    found = len(opened(folder, split={"heldout": 0.25, "group": group})._rows)
    assert (found in (0, NUM)) == (num_groups == 1)


def test_captions_and_crops_change_from_epoch_to_epoch(tmp_path: Path) -> None:
    source = opened(
        make(tmp_path / "data", captions=["first {}", "second {}"]),
        captions={"positions": ["a", "b"], "templates": ["{caption}", "see {caption}"]},
        picture={"crop": "random"},
    )
    samples = [source.sample(0, slot) for slot in range(30 * source.num)]
    mine = [sample for sample in samples if sample.id == samples[0].id]
    number = int(mine[0].id[:3])
    said = {"first {}", "second {}", "see first {}", "see second {}"}
    assert {sample.caption for sample in mine} == {text.format(number) for text in said}
    assert {(sample.kind, "first" in sample.caption) for sample in mine} == {("a", True), ("b", False)}
    assert len({sample.frame for sample in mine}) == number % 5 + 1
    assert set(source.captions()) >= {sample.caption for sample in samples}


def test_it_is_listed_once_and_again_when_something_changes(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    first = opened(folder)
    made = sorted((tmp_path / "cache").iterdir())
    assert opened(folder).fingerprint == first.fingerprint
    assert sorted((tmp_path / "cache").iterdir()) == made
    (folder / "003.txt").write_text("another text")
    assert opened(folder).fingerprint != first.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 2 * len(made)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_listing_leaves_garbage_collection_as_it_was(tmp_path: Path, frozen: bool) -> None:
    """Also in a worker of the loader, which keeps what it has from its parent frozen."""
    before = gc.get_freeze_count() > 0
    (gc.freeze if frozen else gc.unfreeze)()
    try:
        opened(make(tmp_path / "data"))
        assert (gc.get_freeze_count() > 0) == frozen
    finally:
        (gc.freeze if before else gc.unfreeze)()


def test_the_fingerprint_is_that_of_the_data_and_not_of_its_place(tmp_path: Path) -> None:
    first = opened(make(tmp_path / "data"))
    os.utime(tmp_path / "data" / "000.png", (1, 1))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert opened(tmp_path / "moved", max_bad=0.5).fingerprint == first.fingerprint
    others = [opened(tmp_path / "moved", "heldout"), opened(tmp_path / "moved", picture={"flip": 0.5})]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 3


def take(source: Finite, workers: int, num: int) -> list[Batch]:
    batches = Loader(source, seed=3, workers=workers).batches(5, [4, 3])
    taken = list(itertools.islice(batches, num))
    batches.close()
    return taken


def spoil(folder: Path) -> set[str]:
    """Spoil every fifth picture, and the text beside the next."""
    for k in range(0, NUM, 5):
        (folder / f"{k:03}.png").write_bytes(b"no picture")
        (folder / f"{k + 1:03}.txt").write_bytes(b"caf\xe9")
    return {f"{k + more:03}.png" for k in range(0, NUM, 5) for more in (0, 1)}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_batches_and_faults(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    spoil(folder)
    alone, *others = (take(opened(folder, picture={"crop": "random"}), workers, 20) for workers in (0, 1, 2))
    assert sum(len(batch.faults) for batch in alone) > 10
    for many in others:
        for one, other in zip(alone, many, strict=True):
            assert torch.equal(one.images, other.images)
            assert replace(one, images=other.images) == other


def test_a_bad_sample_is_replaced_and_nothing_else_moves(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    settings: Any = {"split": {"heldout": 0.25, "group": "id"}, "picture": {"crop": "random"}}
    source = opened(folder, **settings)
    clean = [source.sample(0, slot) for slot in range(source.num)]
    bad = spoil(folder)
    spoilt = opened(folder, **settings)
    found: dict[str, str] = {}
    for slot, before in enumerate(clean):
        after = spoilt.sample(0, slot)
        assert after.id not in bad
        if before.id in bad:
            found |= {fault.id: fault.reason for fault in after.faults}
            assert after.faults[0].id == before.id
            assert after.faults[0].slot == slot
        else:
            assert torch.equal(after.image, before.image)
            assert (after.caption, after.frame, after.faults) == (before.caption, before.frame, ())
    assert set(found) == bad & {sample.id for sample in clean}
    assert {found[name] for name in found} == {"not an image", "caption is not UTF-8"}


def test_a_fault_names_the_bytes_that_were_found(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", num=5)
    for k in range(4):
        (folder / f"{k:03}.png").write_bytes(b"no picture")
    source = opened(folder, split={"heldout": 0.0})
    faults = [fault for slot in range(5) for fault in source.sample(0, slot).faults]
    assert {fault.id for fault in faults} == {f"00{k}.png" for k in range(4)}
    assert {fault.sha256 for fault in faults} == {hashlib.sha256(b"no picture").hexdigest()}
    (folder / "004.png").write_bytes(b"x")
    with pytest.raises(BadData, match=r"none of 17 samples in a row can be used; the last: 00.*not an image"):
        opened(folder, split={"heldout": 0.0}).sample(0, 0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_hopeless_data_set_is_one_line_also_from_a_worker(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", num=3, captions=["a"])
    for path in folder.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(BadData) as caught:
        take(opened(folder, split={"heldout": 0.0}), 1, 1)
    assert str(caught.value).startswith(f"{folder}: none of 17")
    assert "\n" not in str(caught.value)


def test_what_changes_after_the_listing_is_bad(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    source = opened(folder)
    names = [source.sample(0, slot).id for slot in range(2)]
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes(b"")
    faults = [source.sample(0, slot).faults[0] for slot in range(2)]
    assert [(fault.reason, fault.detail[:4]) for fault in faults] == [
        ("file cannot be read", "No s"),
        ("file cut short", "0 of"),
    ]


def test_a_process_of_another_kind_reads_the_same(tmp_path: Path) -> None:
    source = opened(make(tmp_path / "data"))
    source.sample(0, 0)
    sent = pickle.dumps(source)
    assert len(pickle.dumps(source.index)) < 500  # its place, not its rows
    assert pickle.loads(sent).sample(0, 7).id == source.sample(0, 7).id


def test_the_summary_counts_what_is_empty_and_bad(tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    (folder / "000.txt").write_text("")
    (folder / "001.txt").unlink()
    source = opened(folder)
    assert source.summary == f"{source.num} of 40 samples, 1 of them all with an empty caption, 1 bad"


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"path": "missing"}, Refused, "data.path=.*missing: no such folder"),
        ({"path": "empty"}, BadData, "holds no sample"),
        ({"split": {"group": "colour"}}, Refused, "data.split.group=colour: 000.png has no such field"),
        ({"split": {"heldout": 0.0}, "side": "heldout"}, Refused, "heldout=0.0 leaves none of the 40 samples"),
        ({"cache": "data/000.png"}, StorageFailed, "cannot be written"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path: Path, settings: Any, error: type[Exception], words: str) -> None:
    make(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    given = {name: tmp_path / value if name in ("path", "cache") else value for name, value in settings.items()}
    if "cache" in given:
        given["cache"] = str(given["cache"])
    with pytest.raises(error, match=words) as caught:
        opened(given.pop("path", tmp_path / "data"), given.pop("side", "train"), **given)
    assert "\n" not in str(caught.value)


def write_rows(folder: Path, rows: Sequence[object]) -> None:
    lines = (json.dumps(row) if isinstance(row, dict) else str(row) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def reasons(source: Finite) -> Counter[str]:
    records = (source.index.record(row) for row in range(len(source.index)))
    return Counter(record.fault.reason for record in records if record.fault)


def test_metadata_of_one_line_each_names_pictures_captions_and_groups(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", num=4)
    write_rows(
        folder,
        [
            {"file_name": "000.png", "caption": "one", "colour": "red"},
            {"file_name": "./001.png", "captions": ["two", "zwei"], "colour": "red"},
            "",
            {"file_name": "002.png", "caption": "", "colour": "blue"},
            {"file_name": "gone.png", "caption": "gone", "colour": "blue"},
            {"file_name": "../data/003.png", "caption": "outside", "colour": "blue"},
            {"file_name": str(folder / "003.png"), "caption": "absolute", "colour": "blue"},
            {"file_name": "003.png", "colour": "blue"},
            {"caption": "no file", "colour": "blue"},
            "{broken",
            "[1]",
        ],
    )
    source = opened(folder, split={"heldout": 0.0})
    assert (len(source.index), source.index.facts["empty"]) == (10, 1)
    assert reasons(source) == {"no such file": 3, "no caption": 1, "broken line of metadata": 3}
    assert source.index.record(1).captions == (("caption", "two"), ("caption", "zwei"))
    assert source.index.record(9).id == "metadata.jsonl:11"
    write_rows(folder, [{"file_name": f"00{k}.png", "caption": str(k), "colour": "red"} for k in range(4)])
    assert len(set(opened(folder, split={"heldout": 0.0, "group": "colour"}).index.places)) == 1


def test_metadata_may_be_a_table(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", num=3)
    table = b'\xef\xbb\xbffile_name,caption,tags\n000.png,"one, two",x\n001.png,caf\xe9,y\n002.png,,z\n'
    (folder / "metadata.csv").write_bytes(table)
    source = opened(folder, split={"heldout": 0.0}, captions={"kinds": {"caption": 0.5, "tags": 0.5}})
    assert source.index.record(0).captions == (("caption", "one, two"), ("tags", "x"))
    assert reasons(source) == {"caption is not UTF-8": 1}
    assert source.index.record(2).captions == (("caption", ""), ("tags", "z"))
    (folder / "metadata.csv").write_text("name,caption\na,b\n")
    with pytest.raises(BadData, match="names no column file_name"):
        opened(folder)


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", num=1)
    for suffix in (b".png", b".txt"):
        os.rename(os.fsencode(folder / "000") + suffix, os.fsencode(folder) + b"/\xe9\n" + suffix)
    source = opened(folder, split={"heldout": 0.0})
    assert source.sample(0, 0).caption == "number 0"
    assert source.sample(0, 0).id == "\\udce9\n.png"

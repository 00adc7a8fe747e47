"""Real data sets load whole: ``pytest -m real``, with their folder in WORDBRUSH_DATA or at ../shared/data."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.config import parse
from lab.data.collection import Collection
from lab.data.finite import Finite
from lab.data.folder import Folder
from lab.data.idx import Idx
from lab.data.index import open_index
from lab.data.split import Split, plain
from tests.faults import ROOT

pytestmark = pytest.mark.real
DATA = Path(os.environ.get("WORDBRUSH_DATA", ROOT.parent / "shared" / "data"))
CLASSES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
EMOJI = {"captions": {"positions": ["short", "long"], "kinds": {"short": 0.5, "long": 0.5}}}


def opened(kind: type[Collection], name: str, cache: Path, side: Split = "train", **settings: Any) -> Finite:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there: set WORDBRUSH_DATA to the folder that holds {name}")
    config = parse({"path": str(DATA / name), "cache": str(cache), **settings}, kind)
    return Finite(config, open_index(config), side)


@pytest.mark.parametrize(("name", "num", "size"), [("emoji64", 1412, 64), ("emoji256", 1376, 256)])
def test_every_emoji_is_delivered_and_twins_are_on_one_side(tmp_path: Path, name: str, num: int, size: int) -> None:
    seen: dict[Split, set[str]] = {}
    for side in ("train", "heldout"):
        source = opened(Folder, name, tmp_path, side, size=size, **EMOJI)
        assert source.index.facts["bad"] == 0
        samples = [source.sample(0, slot) for slot in range(source.num)]
        assert len({sample.id for sample in samples}) == source.num
        assert not any(sample.faults for sample in samples)
        assert all(sample.image.shape == (3, size, size) and sample.image.abs().max() <= 1 for sample in samples)
        assert {sample.kind for sample in samples} == {"short", "long"}
        rows = (source.index.record(row) for row in source._rows.tolist())
        seen[side] = {plain(record.captions[0][1]) for record in rows}
        num -= source.num
    assert num == 0
    assert not seen["train"] & seen["heldout"]


def test_every_garment_is_delivered(tmp_path: Path) -> None:
    source = opened(Idx, "fashion-mnist", tmp_path, size=28, classes=CLASSES, captions={"templates": ["a {caption}"]})
    assert len(source.index) == 60_000
    assert 53_000 < source.num < 55_000
    samples = [source.sample(0, slot) for slot in range(500)]
    assert {sample.caption for sample in samples} == {f"a {name}" for name in CLASSES}
    assert torch.stack([sample.image for sample in samples]).mean().item() == pytest.approx(-0.43, abs=0.03)

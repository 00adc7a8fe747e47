"""What is measured while a run trains on data that has no verifier: the loss of a fixed grid, of both sides."""

import json
from pathlib import Path

import pytest
import torch

from lab.images import save_png
from lab.randomness import normal
from tests.faults import TINY, Scripts


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        image = normal(0, "picture", [number], (3, 1, 1))[0].clamp(-1, 1).expand(3, 16, 16)
        save_png(folder / f"{number}.png", image)
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def figures(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith("loss/")} for line in lines if "loss/train" in line]


def test_both_sides_are_measured_on_the_same_grid_every_time(script: Scripts, pictures: Path, tmp_path: Path) -> None:
    data = f"data={{kind: folder, path: {pictures}, size: 16, split: {{heldout: 0.4}}, cache: {tmp_path}}}"
    words = (data, "train.steps=4", "evaluate={every_steps: 2, num: 6}", "train.preview_every=0", "--run")
    for name in ("one", "two"):
        done = script("train", TINY, *words, tmp_path / name)
        assert done.code == 0, done.err
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert one == two
    assert len(one) == 2
    assert one[0] != one[1]
    for side in ("train", "heldout"):
        levels = [value for name, value in one[0].items() if name.startswith(f"loss/{side}/logsnr ")]
        assert len(levels) == 8
        assert sum(levels) / 8 == pytest.approx(one[0][f"loss/{side}"])
        assert one[0][f"loss/{side}/half_width"] > 0
    assert one[0]["loss/train"] != one[0]["loss/heldout"]


def test_where_nothing_is_held_out_one_side_is_measured(script: Scripts, pictures: Path, tmp_path: Path) -> None:
    data = f"data={{kind: folder, path: {pictures}, size: 16, split: {{heldout: 0}}, cache: {tmp_path}}}"
    words = (data, "train.steps=2", "evaluate={every_steps: 2, num: 6}", "train.preview_every=0", "--run")
    assert script("train", TINY, *words, tmp_path / "run").code == 0
    (measured,) = figures(tmp_path / "run")
    assert not any("heldout" in name for name in measured)
    assert torch.tensor(list(measured.values())).isfinite().all()

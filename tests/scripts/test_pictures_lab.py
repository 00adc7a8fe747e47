"""What is measured of a model of somebody's own pictures, with models whose every figure is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.pipeline import Request
from lab.data.collection import Collection
from lab.data.folder import Folder
from lab.data.split import SplitConfig
from lab.errors import Refused
from lab.evaluation.features import Extractor
from lab.images import from_uint8, save_png
from lab.randomness import normal
from scripts.evaluation import heldout, panel, pictures_lab
from tests.faults import TINY, Scripts

NUM = 160


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(NUM):
        save_png(folder / f"{number:03}.png", normal(0, "picture", [number], (3, 8, 8))[0].clamp(-1, 1))
        (folder / f"{number:03}.txt").write_text(f"picture {number}")
    return Folder(path=str(folder), size=8, split=SplitConfig(heldout=0.4), cache=str(folder.parent))


def copying(data: Collection) -> pictures_lab.Draw:
    """Knows every picture of both sides by heart, but for held-out captions only those that it was trained on."""
    sides = {side: heldout.pictures(data, side, NUM) for side in ("train", "heldout")}  # type: ignore[arg-type]

    def draw(requests: Sequence[Request], what: str) -> Tensor:
        train = sides["train"]
        if what == "train captions":
            return from_uint8(torch.stack([train.images[train.captions.index(each.prompt)] for each in requests]))
        return from_uint8(train.images[: len(requests)])

    return draw


def fresh(requests: Sequence[Request], what: str) -> Tensor:
    return normal(1, what, range(len(requests)), (3, 8, 8)).clamp(-1, 1)


def measured(
    data: Collection, draw: pictures_lab.Draw, *metrics: panel.Metric, extractors: Mapping[str, Extractor] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure without any network of another's."""
    networks = {"distances": "lite0", "precision_recall": "lite0", "diversity": "lite0"} if extractors else {}
    asked = panel.Panel(frozenset(metrics), networks, extractors or {}, Path(data.cache or "") / "features")
    kept = Path(data.cache or "") / "kept"
    return pictures_lab.everything(data, 40, draw, asked, kept, lambda: None)


def test_a_model_that_copies_is_told_so_and_recalls_what_it_was_trained_on(data: Collection) -> None:
    figures, sheets = measured(data, copying(data), "prompt", "memorization")
    found = figures["spaces"]["pixels"]
    assert found["recalled"]["train"]["value"] == 1
    assert found["recalled"]["train"]["chance"] == pytest.approx(1 / figures["pictures"]["train"]["num"])
    assert found["recalled"]["heldout"]["value"] < 0.2
    assert found["copies"]["share"] == 1
    assert "100% of the samples are copies" in pictures_lab.table(figures)
    assert set(sheets) == {"train", "heldout", "closest-pixels"}


def test_recall_is_told_of_each_kind_of_caption() -> None:
    nothing = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    pictures = heldout.Pictures(nothing, ("a cat", "a dog", "a dog", "a bird"), ("short", "long", "short", "long"), {})
    found = pictures_lab._recall(pictures, [0, 2, 3])  # of the first three, the last is taken for the bird
    assert (found["value"], found["n"]) == (pytest.approx(2 / 3), 3)
    shares = {kind: (share["value"], share["n"], share["chance"]) for kind, share in found["kinds"].items()}
    assert shares == {"long": (1, 1, 0.5), "short": (0.5, 2, 0.375)}


def test_new_pictures_are_no_copies_and_carry_captions_by_chance(data: Collection) -> None:
    figures, _ = measured(data, fresh, "prompt", "memorization")
    found = figures["spaces"]["pixels"]
    assert found["copies"]["low"] == 0
    assert found["recalled"]["train"]["value"] < 0.15
    assert "no sign of copies" in pictures_lab.table(figures)


class Corner:
    """Eight features that are pixels."""

    name, width, weights_sha256, resize = "corner", 8, "0" * 64, "none"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :8].float()


def test_only_what_is_asked_for_is_measured(data: Collection) -> None:
    extractors = {"lite0": Corner()}
    figures, sheets = measured(data, fresh, "distances", "precision_recall", "diversity", extractors=extractors)
    assert figures.keys() == {"pictures", "spaces", "distances", "support", "vendi"}
    assert figures["spaces"] == {}
    assert sheets.keys() == {"train", "heldout"}
    told = pictures_lab.table(figures)
    for name in ("kernel_distance", "frechet_distance", "precision", "recall", "density", "coverage", "vendi_score"):
        assert f"{name} (corner)" in told
    for figure in (figure for section in panel.SECTIONS for figure in figures.get(section, [])):
        assert figure["weights_sha256"] == "0" * 64
        assert len(figure["reference_sha256"]) == 64
        assert figure["resize"] == "none"
        assert figure["interval"]
        assert figure["target"]
        assert (figure["n"], figure["m"]) in {(40, 64), (40, 0)}
    recalled, _ = measured(data, fresh, "prompt")
    assert recalled["spaces"]["pixels"].keys() == {"recalled"}


def test_too_few_held_out_pictures_are_refused(data: Collection) -> None:
    few = data.model_copy(update={"split": SplitConfig(heldout=0.1)})
    with pytest.raises(Refused, match="heldout side are too few"):
        measured(few, fresh, "prompt")


def test_a_run_is_evaluated_once_with_its_sheets(script: Scripts, data: Collection, tmp_path: Path) -> None:
    told = f"data={{kind: folder, path: {data.path}, size: 16, split: {{heldout: 0.4}}, cache: {data.cache}}}"
    run = tmp_path / "run"
    assert script("train", TINY, told, "train.steps=2", "train.preview_every=0", "--run", run).code == 0
    command = ("evaluate", run, "--num", 8, "--no-distances")
    done = script(*command)
    assert done.code == 0, done.err
    assert "the nearest train picture carries the caption that was asked for" in done.out
    (figures,) = run.glob("evaluation-*.json")
    assert {path.name for path in run.glob(f"{figures.stem}-*.png")} == {
        f"{figures.stem}-{name}.png" for name in ("train", "heldout", "closest-pixels")
    }
    assert not list(run.glob("*.drawn"))
    again = script(*command)
    assert again.out == done.out
    assert "picture" not in again.err.replace("pictures", "")

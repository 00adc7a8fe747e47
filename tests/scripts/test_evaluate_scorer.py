"""scripts/evaluate.py of a scorer: what it finds of what is held out, and what nobody could."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lab.data.shapes import ShapesConfig
from lab.data.shapes_captions import meaning
from lab.data.shapes_near import KINDS
from lab.evaluation.prompt_accuracy import judge
from lab.images import from_uint8, to_uint8
from lab.scorer.judge import Judge
from scripts.assembly import saved
from scripts.evaluation import heldout, scorer_lab
from tests.faults import TINY_SCORER, Scripts

WAYS = ["text of the picture", "picture of the text"]


@pytest.fixture(scope="module")
def run(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scorer") / "run"
    assert script("train", TINY_SCORER, "train.preview_every=0", "--run", made).code == 0
    return made


def test_figures_come_out_the_same_again_and_say_what_they_are_of(script: Scripts, run: Path, tmp_path: Path) -> None:
    done = script("evaluate", run, "--num", 55, "--json", tmp_path / "a.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["origin"] == dict(saved.read(run).origin)
    assert figures["pictures"]["split"] == "heldout"
    assert list(figures["first_of_50"]) == WAYS
    assert list(figures["first_of_16"]) == [*WAYS, "told apart"]
    for group in ("first_of_50", "first_of_16"):
        for way in WAYS:
            share = figures[group][way]
            assert share["n"] == 55
            assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
    told = figures["first_of_16"]["told apart"]
    assert set(told) <= set(KINDS)
    assert sum(share["n"] for share in told.values()) == 55 * 15
    assert "text of the picture, first of 16 (near misses)" in done.out
    assert {path.name for path in tmp_path.glob("*.png")} == {"a-first-of-50.png", "a-first-of-16.png"}
    again = scorer_lab.everything(saved.read(run), 55, lambda: None, with_networks=True)[0]
    assert json.loads(json.dumps(again)) == figures


def test_a_judge_that_knows_the_answer_finds_all_and_one_that_knows_nothing_finds_none(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One direction for each text, and for each held-out picture that of its own text: near misses fit nothing."""
    found = saved.read(run)
    pictures = heldout.pictures(found.experiment.data, "heldout", 60)
    place = {caption: number for number, caption in enumerate(dict.fromkeys(pictures.captions))}
    known = {image.numpy().tobytes(): text for image, text in zip(pictures.images, pictures.captions, strict=True)}

    def direction(text: str | None) -> Tensor:
        made = torch.zeros(64)
        made[place.get(text or "", 63)] = 1.0
        return made

    def of_images(self: Judge, images: Tensor) -> Tensor:
        return torch.stack([direction(known.get(image.numpy().tobytes())) for image in to_uint8(images)])

    monkeypatch.setattr(Judge, "texts", lambda self, texts: torch.stack([direction(text) for text in texts]))
    monkeypatch.setattr(Judge, "images", of_images)
    figures, _ = scorer_lab.everything(found, 60, lambda: None, with_networks=False)
    values = [figures[group][way]["value"] for group in ("first_of_50", "first_of_16") for way in WAYS]
    assert values == [1.0] * 4
    monkeypatch.setattr(Judge, "images", lambda self, images: torch.ones(len(images), 64))
    figures, _ = scorer_lab.everything(found, 60, lambda: None, with_networks=False)
    assert figures["first_of_16"]["text of the picture"]["value"] == 0  # all are alike to it


def test_too_few_pictures_are_refused(script: Scripts, run: Path) -> None:
    done = script("evaluate", run, "--num", 20)
    assert done.code == 2
    assert "20 pictures on the heldout side are too few for these figures, which need 50" in done.err.splitlines()[-1]


def test_a_scorer_draws_nothing(script: Scripts, run: Path, tmp_path: Path) -> None:
    done = script("sample", run, "a red circle", "--out", tmp_path / "out")
    assert done.code == 2
    assert "trains a scorer, which draws nothing from prompts" in done.err.splitlines()[-1]
    done = script("train", TINY_SCORER, "data={kind: folder, path: nowhere, size: 16}", "--run", tmp_path / "other")
    assert done.code == 2
    assert "stage.near_misses=1 changes one thing of a caption" in done.err.splitlines()[-1]


def test_a_text_that_is_true_of_a_picture_fits_it_whatever_its_own_picture_is() -> None:
    """Held against the verifier, which reads pixels: "a ring" is true of a large ring."""
    data = ShapesConfig(mixture={"single": 0.5, "full": 0.5})
    pictures = heldout.pictures(data, "heldout", 150, least=2)
    fits, images, captions = scorer_lab._fits(data, pictures), from_uint8(pictures.images), pictures.captions
    found = [(i, j) for i in range(150) for j in range(150) if fits(i, j)]
    assert {(i, i) for i in range(150)} <= set(found)
    others = [(i, j) for i, j in found if meaning(captions[i]) != meaning(captions[j])]
    assert others
    assert all(judge(images[i], captions[j]).right for i, j in others)

"""What scripts/prepare.py says, writes and computes ahead."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.encoders import make
from tests.faults import TINY, Done, Scripts


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """A preset of nine pictures, one of them broken and one given twice, with a frozen text encoder."""
    art, rng = tmp_path / "art", np.random.default_rng(0)
    art.mkdir()
    rows = []
    for number in range(9):
        picture = Image.fromarray(rng.integers(0, 256, size=(5, 5, 3), dtype=np.uint8)).resize((24, 24))
        picture.save(art / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [f"a red thing {number}", "blue " * number]})
    (art / "3.png").write_bytes(b"spoilt")
    (art / "5.png").write_bytes((art / "4.png").read_bytes())
    (art / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "bert"
    make("bert", folder)
    told = {
        "base": str(TINY),
        "name": "art",
        "data": {"kind": "folder", "path": str(art), "size": 16, "cache": str(tmp_path / "index")},
        "text": {"kind": "auto", "pretrained": str(folder), "context": 8, "cache": str(tmp_path / "states")},
    }
    path = tmp_path / "art.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def prepared(script: Scripts, *arguments: object) -> Done:
    done = script("prepare", *arguments)
    assert done.code == 0, done.err
    return done


def test_everything_is_prepared_once(script: Scripts, preset: Path, tmp_path: Path) -> None:
    done = prepared(script, preset, "--out", tmp_path / "out")
    assert "text cache: 18 captions, 18 of them new, in " in done.out  # nine, eight of blue, and the empty one
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "findings.jsonl", "sheet.png"}
    findings = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    told = {(finding["kind"], *finding["ids"]) for finding in findings}
    assert {("broken", "3.png"), ("duplicate", "4.png", "5.png"), ("empty", "0.png"), ("long", "8.png")} <= told
    assert done.out.startswith((tmp_path / "out" / "report.md").read_text())
    assert "| broken | 1 |" in done.out
    assert "Broken: not an image: 1." in done.out
    assert "18 captions, 0 of them new" in prepared(script, preset, "--out", tmp_path / "out").out


def test_a_run_after_it_encodes_nothing(script: Scripts, preset: Path, tmp_path: Path) -> None:
    prepared(script, preset, "--out", tmp_path / "out")
    shards = sorted((tmp_path / "states").rglob("*.safetensors"))
    done = script("train", preset, "train.steps=2", "data.max_bad=1", "--run", tmp_path / "run")
    assert done.code == 0, done.err
    assert sorted((tmp_path / "states").rglob("*.safetensors")) == shards


def test_the_doctor_alone_computes_nothing(script: Scripts, preset: Path, tmp_path: Path) -> None:
    done = prepared(script, "doctor", preset, "--out", tmp_path / "out")
    assert "text cache" not in done.out
    assert not list((tmp_path / "states").rglob("*.safetensors"))


def test_a_world_without_an_end_is_looked_at_in_part(script: Scripts, tmp_path: Path) -> None:
    done = prepared(script, TINY, "--num", "12", "--out", tmp_path / "out")
    assert "24 samples: 12 to train on, 12 held out." in done.out
    assert "text encoder: trained with the model, so there is nothing to compute ahead" in done.out
    assert (tmp_path / "out" / "findings.jsonl").read_text() == ""


def test_each_part_of_a_mixture_has_a_report(script: Scripts, preset: Path, tmp_path: Path) -> None:
    told = yaml.safe_load(preset.read_text())
    parts = {"art": told["data"], "shapes": {"kind": "shapes", "size": 16}}
    told["data"] = {"kind": "mixture", "size": 16, "parts": parts, "weights": {"art": 1, "shapes": 1}}
    preset.write_text(yaml.safe_dump(told))
    done = prepared(script, "doctor", preset, "--num", "5", "--out", tmp_path / "out")
    assert "# shapes" in done.out
    assert {path.parent.name for path in (tmp_path / "out").rglob("report.md")} == {"art", "shapes"}


@pytest.mark.parametrize("words", [(), ("doctor",), (TINY, TINY)])
def test_it_wants_one_preset(script: Scripts, words: tuple[object, ...]) -> None:
    assert script("prepare", *words).code == 2


def test_missing_data_is_one_line(script: Scripts, preset: Path) -> None:
    done = script("prepare", preset, "data.path=/nowhere")
    assert done.code == 2
    assert "data.path=/nowhere: no such folder" in done.err.splitlines()[-1]

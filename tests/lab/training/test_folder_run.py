"""A run on a folder of pictures: resumed bit for bit in the middle of an epoch, with bad samples set aside."""

import json
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from lab.rundir import RunDir
from tests.faults import TINY, Scripts, signal_at
from tests.lab.data.test_finite import make
from tests.lab.training.test_processes import EXACT, together
from tests.lab.training.test_resume import differences, measured

NUM = 20  # the tiny preset's 54 samples are 2.7 epochs


def words(folder: Path, **settings: object) -> list[str]:
    given = {
        "kind": "folder",
        "path": folder,
        "size": 16,
        "split.heldout": 0,
        "cache": folder.parent / "cache",
    } | settings
    return [*(f"data.{name}={value}" for name, value in given.items()), "train.preview_every=0"]


def spoilt(path: Path, bad: int, num: int = NUM) -> Path:
    """A folder of pictures, the first of which are none."""
    folder = make(path, num)
    for k in range(bad):
        (folder / f"{k:03}.png").write_bytes(b"no picture")
    return folder


def quarantined(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_in_the_middle_of_an_epoch_it_goes_on_bit_for_bit(script: Scripts, tmp_path: Path, workers: int) -> None:
    folder = spoilt(tmp_path / "data", 3)
    command = ("train", TINY, *words(folder), f"train.workers={workers}", "--run")
    assert script(*command, tmp_path / "whole").code == 0
    for place, nth in (("loss", 7), ("after_rename", 2)):
        assert script(*command, tmp_path / "cut", fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    done = script(*command, tmp_path / "cut")
    assert done.code == 0, done.err
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    assert quarantined(tmp_path / "cut") == quarantined(tmp_path / "whole")
    assert {line["id"] for line in quarantined(tmp_path / "cut")} == {"000.png", "001.png", "002.png"}
    assert measured(tmp_path / "cut")[-1]["data/bad"] == 3


def test_two_processes_set_the_same_samples_aside_as_one(script: Scripts, tmp_path: Path) -> None:
    folder = spoilt(tmp_path / "data", 4)
    command = (*EXACT, *words(folder), "--run")
    assert script("train", TINY, *command, tmp_path / "one").code == 0
    assert [done.code for done in together(script, 2, *command, tmp_path / "two")] == [0, 0]
    assert quarantined(tmp_path / "two") == quarantined(tmp_path / "one")
    assert len(quarantined(tmp_path / "one")) == 4
    assert measured(tmp_path / "two")[-1]["data/bad"] == 4


def test_too_much_bad_data_ends_the_run_within_an_epoch(script: Scripts, tmp_path: Path) -> None:
    """5 % bad, where 1 % is allowed."""
    folder, run = spoilt(tmp_path / "data", 7, num=140), tmp_path / "run"
    (folder / "000.txt").write_bytes(b"\xff")
    done = script("train", TINY, *words(folder), "train.steps=60", "--run", run)
    assert done.code == 65
    status = RunDir.view(run).status()
    assert status is not None
    assert (status.state, status.seen <= 140) == ("failed", True)
    *_, first, one, other = done.err.splitlines()
    bad = len(quarantined(run))
    assert f"{bad} of {status.seen} samples are bad, more than data.max_bad=0.01 allows" in first
    assert bad >= 5
    counts = sorted(line.split(maxsplit=1) for line in (one, other))
    assert counts in ([["1", "caption is not UTF-8"], [str(bad - 1), "not an image"]], [[str(bad), "not an image"]])
    again = script("train", "--resume", run, "data.max_bad=0.2", f"train.steps={status.step + 2}")
    assert again.code == 0, again.err


def test_changed_data_is_refused_and_moved_data_is_not(script: Scripts, tmp_path: Path) -> None:
    folder, run = make(tmp_path / "data", NUM), tmp_path / "run"
    assert script("train", TINY, *words(folder), "train.steps=2", "--run", run).code == 0
    (folder / "000.txt").write_text("something else")
    done = script("train", "--resume", run, "train.steps=4")
    assert (done.code, "the data is not what the checkpoint was trained on" in done.err) == (2, True)
    (folder / "000.txt").write_text("number 0")
    folder.rename(tmp_path / "moved")
    done = script("train", "--resume", run, "train.steps=4", f"data.path={tmp_path / 'moved'}")
    assert done.code == 0, done.err


def test_best_of_needs_the_verifier_of_the_shapes(script: Scripts, tmp_path: Path) -> None:
    folder, run = make(tmp_path / "data", NUM), tmp_path / "run"
    assert script("train", TINY, *words(folder), "train.steps=2", "--run", run).code == 0
    done = script("evaluate", run, "--best-of", "1,2")
    assert (done.code, "--best-of needs a judge beside --scorer where data.kind is not shapes" in done.err) == (2, True)
    assert script("sample", run, "number 3", "--out", tmp_path / "out").code == 0

"""What was trained and saved on an earlier day comes out the same today, and a later day's checkpoint is refused."""

import json
import shutil
from pathlib import Path

import pytest

from lab.training import checkpoint
from tests import golden
from tests.faults import Scripts, forget

STEP = "step-00000003"


def largest_difference(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_thirty_steps_have_the_recorded_losses(script: Scripts, tmp_path: Path) -> None:
    expected = golden.recorded(golden.LOSSES)
    assert len(expected) == 30
    assert largest_difference(golden.thirty_steps(script, tmp_path / "run"), expected) <= 1e-5


def test_a_checkpoint_of_format_1_goes_on_with_the_recorded_losses(script: Scripts, tmp_path: Path) -> None:
    run = golden.unpack(tmp_path / "run")
    assert json.loads((run / "ckpt" / STEP / "MANIFEST.json").read_text())["format_version"] == 1
    assert script("sample", run, "a red circle", "--out", tmp_path / "out").code == 0
    done = script("train", "--resume", run)
    assert done.code == 0, done.err
    assert largest_difference(golden.losses(run), golden.recorded(golden.CHECKPOINT / "losses.txt")) <= 1e-6


@pytest.mark.parametrize("part", ["optim", "step"])
def test_the_losses_show_what_a_resume_forgets(script: Scripts, tmp_path: Path, part: str) -> None:
    run = golden.unpack(tmp_path / "run")
    assert script("train", "--resume", run, fault=(forget, part)).code == 0
    assert largest_difference(golden.losses(run)[-3:], golden.recorded(golden.CHECKPOINT / "losses.txt")) > 1e-4


def test_a_later_format_is_refused_with_both_versions(script: Scripts, tmp_path: Path) -> None:
    run = golden.unpack(tmp_path / "run")
    manifest = run / "ckpt" / STEP / "MANIFEST.json"
    later = checkpoint.FORMAT_VERSION + 1
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": later}))
    for code, command in (
        (65, ("train", "--resume", run)),
        (65, ("sample", run, "a red circle")),
        (2, ("sample", run, "a red circle", "--checkpoint", STEP)),
    ):
        done = script(*command)
        assert done.code == code
        line = done.err.splitlines()[-1]
        assert f"written in format {later}, this version reads up to {checkpoint.FORMAT_VERSION}: update" in line
    assert not (run / "metrics.jsonl").exists()


def test_the_golden_files_are_small_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(path.stat().st_size for path in golden.CHECKPOINT.iterdir()) < 200_000
    copies = {name: tmp_path / name for name in ("LOSSES", "CHECKPOINT")}
    shutil.copytree(golden.CHECKPOINT, copies["CHECKPOINT"])
    shutil.copy(golden.LOSSES, copies["LOSSES"])
    for name, copy in copies.items():
        monkeypatch.setattr(golden, name, copy)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    golden.main()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

"""A run that stores snapshots of its averages continues bit for bit too, and so do they.

The presets and faults are those of test_resume.py.
"""

from pathlib import Path
from signal import SIGKILL

import pytest

from lab.training import checkpoint
from tests.faults import TINY, Scripts, signal_at, small_disk
from tests.lab.training.test_resume import differences


def kept(run: Path) -> dict[str, bytes]:
    """What the snapshots of a run hold, by path; their manifests name the run and differ."""
    files = (run / "snapshots").rglob("*")
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in files
        if path.is_file() and path.name != checkpoint.MANIFEST
    }


@pytest.mark.parametrize(
    "places",
    [
        pytest.param([("tensors", 2), ("after_tensors", 3), ("after_state", 5)], marks=pytest.mark.slow),
        pytest.param([("after_manifest", 4), ("before_rename", 1), ("after_rename", 2)], marks=pytest.mark.slow),
        [("loss", 8), ("before_retention", 3), ("loss", 5)],
    ],
    ids=lambda places: "-".join(name for name, _ in places),
)
def test_with_snapshots_of_the_averages(script: Scripts, tmp_path: Path, places: list[tuple[str, int]]) -> None:
    """At steps 2, 3, 5, 6, 8 and 9, so most resumes begin between a snapshot and the checkpoint before it."""
    command = ("train", TINY, "train.snapshots=6", "--run")
    assert script(*command, tmp_path / "whole").code == 0
    for place, nth in places:
        assert script(*command, tmp_path / "cut", fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    assert script(*command, tmp_path / "cut").code == 0
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    assert kept(tmp_path / "whole") == kept(tmp_path / "cut")
    assert len(kept(tmp_path / "whole")) == 6 * len({"ema_0.050", "ema_0.100", "state"})
    assert all(checkpoint.defect(folder) is None for folder in (tmp_path / "cut" / "snapshots").iterdir())


def test_a_snapshot_that_cannot_be_written_ends_the_run_which_then_goes_on(script: Scripts, tmp_path: Path) -> None:
    command = ("train", TINY, "train.snapshots=3", "--run", tmp_path)
    done = script(*command, fault=(small_disk, 300_000))
    assert done.code == 74
    assert "snapshots/step-00000003 could not be written" in done.err.splitlines()[-1]
    assert not list((tmp_path / "snapshots").iterdir())
    assert script(*command).code == 0
    assert len(list((tmp_path / "snapshots").iterdir())) == 3


def test_an_extended_run_keeps_its_snapshots_and_goes_on_wider(script: Scripts, tmp_path: Path) -> None:
    assert script("train", TINY, "train.snapshots=3", "--run", tmp_path).code == 0
    before = kept(tmp_path)
    assert script("train", "--resume", tmp_path, "train.steps=18").code == 0
    steps = sorted(folder.name for folder in (tmp_path / "snapshots").iterdir())
    assert steps == [f"step-{step:08d}" for step in (3, 6, 9, 12, 18)]
    assert before.items() <= kept(tmp_path).items()

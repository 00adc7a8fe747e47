"""The same command again continues bit for bit, however the run was stopped.

The tiny preset makes 9 steps of 6 samples in micro-batches of 4 and 2, so a loss with an even number lies inside an
accumulation window; it saves at steps 2, 4, 6, 8 and 9 and logs at 3, 6 and 9, so most checkpoints hold a mean that has
only begun.
"""

import itertools
import random
import shutil
import time
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from lab.rundir import RunDir
from lab.training import checkpoint
from tests.faults import TINY, Scripts, forget, kill_after, kill_in_file, signal_at

LAST = -1
FILES = {"model.safetensors", "ema_0.050.safetensors", "ema_0.100.safetensors", "optim.safetensors"}


def measured(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the times, which are nobody's to repeat."""
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in RunDir.view(run).metrics()]


def differences(one: Path, other: Path) -> set[str]:
    """The files of the last checkpoint that are not bitwise equal, and "metrics" if a figure, or the steps that have
    one, differ."""
    ends = [checkpoint.latest(run / "ckpt") for run in (one, other)]
    assert None not in ends
    names = {path.name for end in ends if end for path in end.glob("*.safetensors")}
    found = {name for name in names if len({(end / name).read_bytes() for end in ends if end}) > 1}
    return found | ({"metrics"} if measured(one) != measured(other) else set())


def test_a_run_saves_logs_and_finishes(reference: Path) -> None:
    assert sorted(folder.name for folder in (reference / "ckpt").iterdir()) == ["step-00000008", "step-00000009"]
    assert {path.name for path in (reference / "ckpt" / "step-00000009").iterdir()} == FILES | {
        "state.json",
        "MANIFEST.json",
    }
    assert [(line["step"], line["seen"]) for line in measured(reference)] == [(3, 18), (6, 36), (9, 54)]
    assert sorted(path.name for path in (reference / "previews").glob("samples-*")) == [
        "samples-00000005.png",
        "samples-00000009.png",
    ]
    status = RunDir.view(reference).status()
    assert status is not None
    assert (status.state, status.step, status.checkpoint) == ("finished", 9, "step-00000009")


@pytest.mark.parametrize(
    "places",
    [
        [("tensors", 1), ("after_tensors", 1), ("after_state", 2)],
        [("after_manifest", 2), ("before_rename", 1), ("after_rename", 2)],
        [("before_retention", 2), ("in_retention", 1), ("loss", 1)],
        [("loss", 2), ("loss", 8), ("loss", 4)],
        [("after_rename", 5)],  # the last checkpoint stands, but nobody was told
    ],
    ids=lambda places: "-".join(name for name, _ in places),
)
def test_killed_at_any_place(script: Scripts, reference: Path, tmp_path: Path, places: list[tuple[str, int]]) -> None:
    command = ("train", TINY, "--run", tmp_path / "run")
    for place, nth in places:
        assert script(*command, fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
        checkpoint.latest(tmp_path / "run" / "ckpt")  # raises if all that is there is broken
    done = script(*command)
    assert (done.code, "skipped" in done.err) == (0, False)
    assert differences(reference, tmp_path / "run") == set()
    assert list((tmp_path / "run" / "ckpt").glob(".tmp-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, LAST], ids=["first", "second", "last"])
@pytest.mark.parametrize(
    "place",
    [
        "file",
        "after_tensors",
        "after_state",
        "after_manifest",
        "before_rename",
        "after_rename",
        "fsync",
        "in_retention",
        "loss",
    ],
)
def test_killed_at_each_place_at_each_time(
    script: Scripts, reference: Path, tmp_path: Path, place: str, nth: int
) -> None:
    """A step has two losses, a save four files of tensors and, with its folder and parent, eight syncs."""
    times = {"file": 4, "loss": 2, "fsync": 8, "in_retention": 1}
    nth = {"loss": 9, "in_retention": 3}.get(place, 5) * times.get(place, 1) if nth == LAST else nth
    fault = (kill_in_file, nth) if place == "file" else (signal_at, place, nth, SIGKILL)
    command = ("train", TINY, "--run", tmp_path / "run")
    assert script(*command, fault=fault).code == -SIGKILL
    found = checkpoint.latest(tmp_path / "run" / "ckpt")  # raises if all that is there is broken
    assert found is None or checkpoint.defect(found) is None
    assert script(*command).code == 0
    assert differences(reference, tmp_path / "run") == set()
    assert list((tmp_path / "run" / "ckpt").glob(".tmp-*")) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_time(script: Scripts, reference: Path, tmp_path: Path) -> None:
    """Fifteen kills or more over runs that are killed up to four times each, at times drawn from a run's own length."""
    began, kills = time.monotonic(), 0
    assert script("train", TINY, "--run", tmp_path / "timed").code == 0
    length, draw = time.monotonic() - began, random.Random(0)
    for number in itertools.count():
        command = ("train", TINY, "--run", tmp_path / str(number))
        for _ in range(4):
            code = script(*command, fault=(kill_after, draw.uniform(0.02, 0.9 * length))).code
            assert code in (0, -SIGKILL)
            kills += code != 0
        assert script(*command).code == 0
        assert differences(reference, tmp_path / str(number)) == set()
        if kills >= 15:
            break


@pytest.mark.slow
def test_with_bf16_and_channels_last(script: Scripts, tmp_path: Path) -> None:
    command = ("train", TINY, "runtime.precision=bf16", "runtime.channels_last=true", "--run")
    assert script(*command, tmp_path / "whole").code == 0
    assert script(*command, tmp_path / "cut", fault=(signal_at, "loss", 10, SIGKILL)).code == -SIGKILL
    assert script(*command, tmp_path / "cut").code == 0
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()


LEARNING = ("stage.times.kind=loss_second_moment", "stage.times.bins=3", "stage.times.history=2")


@pytest.mark.slow
def test_with_times_that_learn_where_to_lie(script: Scripts, tmp_path: Path) -> None:
    """After 18 samples at the latest every bin has its history, so what is drawn hangs on the table."""
    command = ("train", TINY, *LEARNING, "--run")
    assert script(*command, tmp_path / "whole").code == 0
    for place, nth in (("loss", 2), ("after_tensors", 2), ("after_rename", 1), ("loss", 4)):
        assert script(*command, tmp_path / "cut", fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    assert script(*command, tmp_path / "cut").code == 0
    end = checkpoint.latest(tmp_path / "cut" / "ckpt")
    assert end is not None
    assert {path.name for path in end.glob("*.safetensors")} == FILES | {"memory.safetensors"}
    assert checkpoint.load(end).tensors["memory"]["counts"].sum() == 54
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    assert script(*command, tmp_path / "forgetful", fault=(signal_at, "loss", 14, SIGKILL)).code == -SIGKILL
    assert script(*command, tmp_path / "forgetful", fault=(forget, "memory")).code == 0
    assert {"memory.safetensors", "model.safetensors"} <= differences(tmp_path / "whole", tmp_path / "forgetful")


@pytest.fixture(scope="module")
def cut(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed inside the accumulation window of step 5; only to be copied."""
    run = tmp_path_factory.mktemp("cut") / "run"
    assert script("train", TINY, "--run", run, fault=(signal_at, "loss", 10, SIGKILL)).code == -SIGKILL
    return run


@pytest.mark.parametrize(
    ("part", "visible"),
    [
        ("optim", "optim.safetensors"),
        ("ema", "ema_0.050.safetensors"),
        ("step", "model.safetensors"),
        ("meter", "metrics"),
    ],
)
def test_the_comparison_sees_what_a_resume_forgets(
    script: Scripts, reference: Path, cut: Path, tmp_path: Path, part: str, visible: str
) -> None:
    run = Path(shutil.copytree(cut, tmp_path / "run"))
    assert script("train", TINY, "--run", run, fault=(forget, part)).code == 0
    assert visible in differences(reference, run)


def test_a_broken_newest_checkpoint_is_skipped_with_a_warning(
    script: Scripts, reference: Path, cut: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(cut, tmp_path / "run"))
    spoil(run / "ckpt" / "step-00000004" / "optim.safetensors")
    done = script("train", TINY, "--run", run)
    assert done.code == 0
    assert "step-00000004 is skipped: optim.safetensors is not what was written" in done.err
    assert differences(reference, run) == set()


def test_when_every_checkpoint_is_broken_nothing_is_started_and_nothing_deleted(
    script: Scripts, cut: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(cut, tmp_path / "run"))
    for folder in (run / "ckpt").iterdir():
        spoil(folder / "model.safetensors")
    for again in (("train", TINY, "--run", run), ("sample", run, "a red circle")):
        done = script(*again)
        assert done.code == 65
        assert "every checkpoint in" in done.err.splitlines()[-1]
    assert len(list((run / "ckpt").iterdir())) == 2


def spoil(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

"""A run that a signal, a loss or a full disk ends in good order goes on bit for bit, and its record has no gap.

The presets and faults are those of test_resume.py.
"""

import time
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR1

import pytest

from lab.rundir import RunDir
from tests.faults import TINY, Scripts, nan_at, signal_at, signal_group_at, small_disk, stall_at
from tests.lab.training.test_resume import differences, measured


@pytest.mark.parametrize("number", [SIGTERM, pytest.param(SIGUSR1, marks=pytest.mark.slow)])
def test_a_polite_signal_saves_at_the_step_boundary(
    script: Scripts, reference: Path, tmp_path: Path, number: int
) -> None:
    command = ("train", TINY, "--run", tmp_path / "run")
    done = script(*command, fault=(signal_at, "loss", 6, number))
    assert done.code == 128 + number
    assert "stopped by a signal at step 3, saved; the same command goes on" in done.out
    status = RunDir.view(tmp_path / "run").status()
    assert status is not None
    assert (status.state, status.step, status.checkpoint) == ("preempted", 3, "step-00000003")
    assert script(*command).code == 0
    assert differences(reference, tmp_path / "run") == set()


def test_a_signal_to_the_whole_group_leaves_the_workers_alive_until_the_save(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    command = ("train", TINY, "train.workers=1", "--run", tmp_path / "run")
    for nth in (2, 6):  # while the trainer waits for the batch that the worker is at
        assert script(*command, fault=(signal_group_at, "sample", nth, SIGTERM)).code == 128 + SIGTERM
    assert script(*command).code == 0
    assert differences(reference, tmp_path / "run") == set()


def test_a_signal_is_obeyed_while_data_is_long_in_coming(script: Scripts, reference: Path, tmp_path: Path) -> None:
    command = ("train", TINY, "train.workers=2", "--run", tmp_path / "run")
    began = time.monotonic()
    done = script(*command, fault=(stall_at, 10, SIGTERM))  # one was looked at first; the 4 of step 3, of one worker
    assert done.code == 128 + SIGTERM
    assert time.monotonic() - began < 12  # torch alone waits 10 for two workers that hang, and 2 of the stall
    status = RunDir.view(tmp_path / "run").status()
    assert status is not None
    assert (status.state, status.step, status.checkpoint) == ("preempted", 2, "step-00000002")
    assert script(*command).code == 0
    assert differences(reference, tmp_path / "run") == set()


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_no_trace(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    command = ("train", TINY, "--run", tmp_path / "run")
    done = script(*command, fault=(nan_at, 10))
    assert done.code == 70
    assert "error: step 5: the loss of 'model' is not finite for shapes-train-7-28, shapes-train-7-29" in done.err
    assert "the same command goes on from step 4" in done.err.splitlines()[-1]
    status = RunDir.view(tmp_path / "run").status()
    assert status is not None
    assert (status.state, status.checkpoint) == ("failed", "step-00000004")
    assert script(*command).code == 0
    assert differences(reference, tmp_path / "run") == set()


def test_a_full_disk_spares_what_is_there(script: Scripts, reference: Path, tmp_path: Path) -> None:
    command = ("train", TINY, "--run", tmp_path / "run")
    assert script(*command, fault=(signal_at, "loss", 7, SIGKILL)).code == -SIGKILL
    done = script(*command, fault=(small_disk, 300_000))
    assert done.code == 74
    assert done.err.count("the next try is in 2 steps") == 2
    assert "step-00000008 could not be written" in done.err.splitlines()[-1]
    assert [folder.name for folder in (tmp_path / "run" / "ckpt").iterdir()] == ["step-00000002"]
    assert script(*command).code == 0
    assert differences(reference, tmp_path / "run") == set()


def test_a_run_is_not_finished_before_its_last_checkpoint_stands(script: Scripts, tmp_path: Path) -> None:
    done = script("train", TINY, "train.checkpoint_every=100", "--run", tmp_path / "run", fault=(small_disk, 300_000))
    assert done.code == 74
    status = RunDir.view(tmp_path / "run").status()
    assert status is not None
    assert status.state == "failed"


def test_tensorboard_shows_each_step_once(script: Scripts, reference: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ("train", TINY, "train.log_every=1", "--run", tmp_path / "run")
    for place, nth in (("after_rename", 2), ("loss", 3)):  # just after the save of step 4; then in step 6
        assert script(*command, fault=(signal_at, place, nth, SIGKILL)).code == -SIGKILL
    assert script(*command).code == 0
    board = EventAccumulator(str(tmp_path / "run" / "tb"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 10))
    assert [line["step"] for line in measured(tmp_path / "run")] == list(range(1, 10))

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lab.config import Config, load
from lab.environment import describe_process
from lab.errors import BadData, Refused, StorageFailed
from lab.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]


class Settings(Config):
    steps: int = 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(path / "tb"))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_a_run_keeps_its_configuration_and_id(path: Path) -> None:
    with RunDir.create(path, Settings(steps=7)) as run:
        run_id = run.run_id
    run = RunDir.view(path)
    assert run.run_id == run_id
    assert len(run_id) == 16
    assert load(run.config_path, [], Settings) == Settings(steps=7)
    assert run.status() is None
    assert list(run.metrics()) == []


def test_an_extended_run_keeps_its_id(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        run_id = run.run_id
        with run.reconfigured(Settings(steps=20), ["steps: 10 -> 20"]):
            pass
        with run.reconfigured(Settings(steps=30), ["steps: 20 -> 30"]):
            pass
    assert load(path / "config.yaml", [], Settings) == Settings(steps=30)
    assert RunDir.view(path).run_id == run_id
    assert RunDir.view(path).environment()["changes"] == ["steps: 10 -> 20", "steps: 20 -> 30"]


def test_a_configuration_that_is_refused_is_taken_back(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        with pytest.raises(Refused), run.reconfigured(Settings(steps=20), ["steps: 10 -> 20"]):
            raise Refused("no")
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_run_that_is_refused_before_its_first_status_is_taken_back(path: Path) -> None:
    with pytest.raises(Refused, match="no"), RunDir.create(path, Config()):
        raise Refused("no")
    assert [entry.name for entry in path.iterdir()] == [".lock"]
    with RunDir.create(path, Config()) as run:
        run.set_status("running", 0, 0)
    with pytest.raises(Refused, match="no"), RunDir.open(path):
        raise Refused("no")
    assert RunDir.is_run(path)


def test_ids_differ(tmp_path: Path) -> None:
    ids = set()
    for name in "abc":
        with RunDir.create(tmp_path / name, Settings()) as run:
            ids.add(run.run_id)
    assert len(ids) == 3


def test_the_environment_says_what_matters_and_not_where(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        run.record_process("cpu", 2)
        run.record_process("cpu", 1)
    first, second = RunDir.view(path).environment()["processes"]
    assert (first["device"], first["threads"], second["threads"]) == ("cpu", 2, 1)
    assert {"torch", "numpy", "safetensors"} <= set(first["packages"])
    assert first["packages"]["torch"] is not None
    assert {"python", "commit", "dirty", "argv", "started"} <= set(first)
    assert os.uname().nodename not in [value for value in first.values() if isinstance(value, str)]
    json.dumps(describe_process("cpu", 1))


@pytest.mark.parametrize("leftover", ["checkpoint.pt", "tb/events", "notes.txt"])
def test_a_folder_with_something_else_is_refused_and_untouched(path: Path, leftover: str) -> None:
    (path / leftover).parent.mkdir(parents=True)
    (path / leftover).write_text("mine")
    with pytest.raises(Refused, match="holds something else than a run"):
        RunDir.create(path, Settings())
    assert (path / leftover).read_text() == "mine"
    assert not RunDir.is_run(path)


def test_a_run_is_not_created_twice(path: Path) -> None:
    RunDir.create(path, Settings(steps=7)).close()
    with pytest.raises(Refused, match="holds a run already; resume it or choose another folder"):
        RunDir.create(path, Settings())
    assert load(path / "config.yaml", [], Settings).steps == 7
    RunDir.open(path).close()  # the refused creation let go of the lock


def test_a_creation_that_was_cut_short_can_be_repeated(path: Path) -> None:
    path.mkdir(parents=True)
    for name in (".lock", "environment.json", ".config.yaml.0123abcd.tmp"):
        (path / name).write_text("")
    with RunDir.create(path, Settings()) as run:
        assert run.run_id


def test_a_file_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(Refused, match="is a file"):
        RunDir.create(tmp_path / "a", Settings())
    with pytest.raises(Refused, match="is a file"):
        RunDir.create(tmp_path / "a" / "b", Settings())


def test_opening_what_is_not_a_run(tmp_path: Path) -> None:
    for act in (RunDir.open, RunDir.view):
        with pytest.raises(Refused, match=r"is not a run directory .*scripts/train\.py"):
            act(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_status_is_replaced_whole(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        run.set_status("running", 3, 96)
        run.set_status("failed", 4, 128, checkpoint="step-00000003", reason="the loss is not a number")
        status = RunDir.view(path).status()
    assert status is not None
    assert (status.state, status.step, status.seen) == ("failed", 4, 128)
    assert (status.checkpoint, status.reason) == ("step-00000003", "the loss is not a number")
    assert status.updated.endswith("+00:00")
    assert [entry.name for entry in path.iterdir() if entry.name.endswith(".tmp")] == []


@pytest.mark.parametrize("text", ["", "[]", '{"stat": 1}'])
def test_a_spoilt_status(path: Path, text: str) -> None:
    RunDir.create(path, Settings()).close()
    (path / "STATUS.json").write_text(text)
    with pytest.raises(BadData, match=r"STATUS\.json"):
        RunDir.view(path).status()


def test_metrics_keep_every_bit_and_write_null_for_what_is_not_finite(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        run.log(1, 32, {"loss": 0.1 + 0.2, "lr": 1})
        run.log(2, 64, {"loss": float("nan"), "norm": float("inf")})
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert lines == [
        '{"step": 1, "seen": 32, "loss": 0.30000000000000004, "lr": 1.0}',
        '{"step": 2, "seen": 64, "loss": null, "norm": null}',
    ]
    assert list(RunDir.view(path).metrics()) == [json.loads(line) for line in lines]


def test_a_resume_keeps_each_step_once_also_in_tensorboard(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        for step in range(1, 10):
            run.log(step, 8 * step, {"loss": step / 10})
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "se')
    with RunDir.open(path) as run:
        run.rewind(6)
        assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
        for step in range(7, 12):
            run.log(step, 8 * step, {"loss": step / 10})
    assert [line["step"] for line in RunDir.view(path).metrics()] == list(range(1, 12))
    assert scalars(path)["loss"] == [(step, pytest.approx(step / 10)) for step in range(1, 12)]


def test_what_is_resumed_within_a_second_comes_after_what_was_there(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        for step in (1, 2):
            run.log(step, step, {"loss": step / 10})
    (events,) = (path / "tb").iterdir()
    events.rename(events.with_name(f"events.out.tfevents.{int(time.time()) + 1:010d}.zzz.9.9"))
    with RunDir.open(path) as run:
        run.rewind(1)
        run.log(2, 2, {"loss": 0.5})
    assert scalars(path)["loss"] == [(1, pytest.approx(0.1)), (2, 0.5)]


def test_a_resume_must_rewind_first(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        run.log(1, 1, {"loss": 1.0})
    with RunDir.open(path) as run, pytest.raises(AssertionError, match="rewind before the first log"):
        run.log(2, 2, {"loss": 1.0})


def test_without_a_checkpoint_everything_starts_again(path: Path) -> None:
    for _ in range(2):
        with RunDir.open(path) if RunDir.is_run(path) else RunDir.create(path, Settings()) as run:
            run.rewind(None)
            run.log(0, 0, {"loss": 1.0})
    assert [line["step"] for line in RunDir.view(path).metrics()] == [0]
    assert scalars(path)["loss"] == [(0, 1.0)]


def test_a_line_spoilt_in_the_middle_is_named(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        (path / "metrics.jsonl").write_text('{"step": 1, "seen": 1}\n{"st\n{"step": 3, "seen": 3}\n')
        with pytest.raises(BadData, match="line 2 is spoilt"):
            run.rewind(3)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 3


def test_metrics_reach_the_disk_before_the_status(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    with RunDir.create(path, Settings()) as run:
        run.log(1, 1, {"loss": 1.0})
        monkeypatch.setattr(os, "fsync", watched)
        run.set_status("running", 1, 1)
    assert synced[0] == "metrics.jsonl"
    assert "STATUS" in synced[1]


def test_pictures_are_kept_by_step_and_shown_in_tensorboard(path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunDir.create(path, Settings()) as run:
        kept = run.save_picture(30, "samples", Image.new("RGB", (9, 5), "red"))
    assert kept == path / "previews" / "samples-00000030.png"
    with Image.open(kept) as picture:
        assert picture.size == (9, 5)
    board = EventAccumulator(str(path / "tb"))
    board.Reload()
    assert [(event.step, event.width, event.height) for event in board.Images("samples")] == [(30, 9, 5)]


def test_training_goes_on_when_tensorboard_cannot_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with caplog.at_level(logging.WARNING), RunDir.create(path, Settings()) as run:
        for step in range(3):
            run.log(step, step, {"loss": 1.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "metrics.jsonl goes on" in caplog.text
    assert len(list(RunDir.view(path).metrics())) == 3


def test_a_full_disk_is_told_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with RunDir.create(path, Settings()) as run:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageFailed, match=r"metrics\.jsonl: cannot be written: No space left on device"):
            run.log(1, 1, {"loss": 1.0})
        monkeypatch.undo()


def test_a_viewed_run_is_not_written(path: Path) -> None:
    RunDir.create(path, Settings()).close()
    run = RunDir.view(path)
    for act in (
        lambda: run.log(1, 1, {}),
        lambda: run.rewind(None),
        lambda: run.set_status("running", 1, 1),
        lambda: run.reconfigured(Settings(), []).__enter__(),
        lambda: run.record_process("cpu", 1),
        lambda: run.save_picture(1, "a", Image.new("RGB", (1, 1))),
    ):
        with pytest.raises(AssertionError, match="open it to write"):
            act()


HOLDER = """
import os, sys, time
from lab.rundir import RunDir
run = RunDir.open(sys.argv[1])
child = os.fork() if "fork" in sys.argv else None
if child != 0:
    print(os.getpid(), child, flush=True)
time.sleep(60)
"""


def holder(path: Path, *extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), *extra], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_second_process_is_told_who_writes_and_a_dead_one_holds_nothing(path: Path) -> None:
    RunDir.create(path, Settings()).close()
    with holder(path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(str(process.pid))
        with pytest.raises(Refused, match=f"process {process.pid} is writing to it.*kill {process.pid}"):
            RunDir.open(path)
        RunDir.view(path).status()  # looking is free
        process.kill()
    with RunDir.open(path):
        assert (path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_worker_that_outlives_its_parent_does_not_hold_the_run(path: Path) -> None:
    RunDir.create(path, Settings()).close()
    with holder(path, "fork") as process:
        assert process.stdout is not None
        parent, child = map(int, process.stdout.readline().split())
        time.sleep(0.2)  # the child forgets the lock as it starts
        os.kill(parent, signal.SIGKILL)
        process.wait()
        try:
            RunDir.open(path).close()
            os.kill(child, 0)  # and it was alive all the time
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_same_process_cannot_write_twice(path: Path) -> None:
    with RunDir.create(path, Settings()) as run:
        with pytest.raises(Refused, match=f"process {os.getpid()} "):
            RunDir.open(path)
        run.close()
        run.close()
        RunDir.open(path).close()

"""scripts/sweep.py: every combination with every seed, each run once, whatever becomes of the others."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.errors import Refused
from lab.rundir import RunDir
from scripts import sweep
from scripts.assembly import experiments
from scripts.comparison import cells
from tests.faults import ENVIRONMENT, ROOT, TINY, Scripts, signal_at

QUICK = ("train.steps=2", "train.preview_every=0", "train.checkpoint_every=1", "--num", "2", "--no-distances")
VARY = ("--vary", "train.optimizer.rate=1e-3,3e-3")
NAMES = ["rate-1e-3-seed7", "rate-3e-3-seed7"]
Launched = list[tuple[str, str]]


@pytest.fixture
def launched(script: Scripts, monkeypatch: pytest.MonkeyPatch) -> tuple[Launched, dict[str, tuple[Any, ...]]]:
    """What was launched, (script, run), and faults by run; scripts start as forks, without the seconds of imports."""
    calls: Launched = []
    faults: dict[str, tuple[Any, ...]] = {}

    def launch(name: str, words: Sequence[str], stopper: object) -> int:
        run = Path(words[-1] if name == "train" else words[0]).name
        calls.append((name, run))
        done = script(name, *words, fault=faults.pop(run, ()))
        return done.code

    monkeypatch.setattr(sweep, "launch", launch)
    return calls, faults


def test_a_sweep_outlives_a_run_and_makes_each_once(
    launched: tuple[Launched, dict[str, tuple[Any, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, faults = launched
    first, second = NAMES
    faults[first] = (signal_at, "loss", 3, signal.SIGKILL)  # in the second step
    arguments = [str(TINY), *QUICK, *VARY, "--dir", str(tmp_path), "--seeds"]
    assert sweep.main([*arguments, "1"]) == 1
    told = capsys.readouterr().out
    assert f"[1/2] {first}: failed: train.py exited with -9" in told
    assert f"[2/2] {second}: to train" in told
    assert calls == [("train", first), ("train", second), ("evaluate", second)]
    calls.clear()
    assert sweep.main([*arguments, "1"]) == 0  # the same command goes on with it
    told = capsys.readouterr().out
    assert f"[1/2] {first}: to go on with" in told
    assert f"[2/2] {second}: done" in told
    assert calls == [("train", first), ("evaluate", first)]
    means, _, ranking = told.partition("by pair, the best first")
    rows = [line.split()[:2] for line in means.splitlines() if line.startswith("rate-")]
    assert rows[-2:] == [["rate-1e-3", "1"], ["rate-3e-3", "1"]]
    assert f"python scripts/compare.py --a {tmp_path}/rate-1e-3-seed* --b {tmp_path}/rate-3e-3-seed*" in told
    assert [experiments.load(tmp_path / name / "config.yaml", []).seed for name in NAMES] == [7, 7]
    assert "seed 7" in ranking
    assert {line.split()[0] for line in ranking.splitlines() if line.startswith("rate-")} == {"rate-1e-3", "rate-3e-3"}
    calls.clear()
    assert sweep.main([*arguments, "1", "--dry-run"]) == 0
    assert "to train: 0 runs, 0 images; to evaluate: 0 runs" in capsys.readouterr().out
    assert sweep.main([*arguments, "2", "--num", "3", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "to train: 2 runs, 24 images, about 0." in told
    assert "to evaluate: 4 runs" in told  # of so many prompts there is none
    assert calls == []


def test_what_will_not_be_measured_cannot_be_ranked_by(tmp_path: Path) -> None:
    words = [str(TINY), *QUICK, "--dir", str(tmp_path / "runs"), "--by"]
    with pytest.raises(Refused, match=r"kernel_distance: name one of pair, .*; leave out --no-distances"):
        sweep.main([*words, "kernel_distance"])
    with pytest.raises(Refused, match="beauty: name one of pair"):
        sweep.main([*words, "beauty"])
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_refused_is_named(
    launched: tuple[Launched, dict[str, tuple[Any, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base-seed7").mkdir()
    (tmp_path / "base-seed7" / "mine.txt").write_text("mine")
    assert sweep.main([str(TINY), *QUICK, "--seeds", "1", "--dir", str(tmp_path)]) == 1
    assert "base-seed7: failed: train.py exited with 2" in capsys.readouterr().out


def test_a_dry_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([str(TINY), *VARY, "--dir", str(tmp_path / "new"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "6 runs" in told
    assert "to train: 6 runs, 324 images (how long that takes is known after the first)" in told
    assert not (tmp_path / "new").exists()


def test_the_grid_is_of_all_combinations_and_equal_length() -> None:
    vary = ["train.batch=6,12", "stage.unet.widths=[16,32],[16, 48]"]
    grid = cells.grid(TINY, ["train.micro_batch=3"], vary, 2, 60)
    assert len(grid) == len({cell.name for cell in grid}) == 8
    assert [cell.seed for cell in grid] == [7] * 4 + [8] * 4
    assert {(cell.experiment.train.batch, cell.experiment.train.steps) for cell in grid} == {(6, 10), (12, 5)}
    assert {cell.images for cell in grid} == {60}
    assert {cell.experiment.train.micro_batch for cell in grid} == {3}
    assert grid[0].name == "batch-6_widths-16-32-seed7"
    assert grid[0].group == grid[4].group
    ends = ["train.optimizer.decay=wsd", "train.optimizer.decay_share=0.2", "train.budget=1m"]
    assert len(cells.grid(TINY, ends, ["train.batch=6,12"], 1, None)) == 2  # the same time is an equal budget too
    assert len(cells.grid(TINY, [], ["train.steps=6,12"], 1, None)) == 2  # it is what varies


@pytest.mark.parametrize(
    ("vary", "more", "answer"),
    [
        (
            ["train.batch=6,12"],
            {},
            "batch-6 would train on 54 images and batch-12 on 108: give all the same by --images N",
        ),
        (["train.batch=6,12"], {"images": 66}, "--images 66 is no multiple of train.batch=12: take 60"),
        (["train.batch"], {}, "--vary 'train.batch': must read key=value,value"),
        (["train.btach=6,12"], {}, "train.btach: unknown key"),
        (["train.optimizer.rate=1e-3,1e-3"], {}, "two runs would be called rate-1e-3-seed7"),
        (["seed=1,2"], {}, "--vary seed: the sweep sets it; say how many seeds by --seeds"),
        ([], {"seeds": 0}, "--seeds 0: at least 1; 3 to compare configurations"),
    ],
)
def test_mistakes_are_told_with_their_remedy(vary: list[str], more: dict[str, Any], answer: str) -> None:
    given = {"preset": TINY, "overrides": [], "vary": vary, "seeds": 1, "images": None, **more}
    with pytest.raises(Refused) as refused:
        cells.grid(**given)
    assert answer in str(refused.value)


def test_two_sweeps_do_not_share_a_folder(
    launched: tuple[Launched, dict[str, tuple[Any, ...]]], tmp_path: Path
) -> None:
    hold = "import sys; from pathlib import Path; from lab.lock import Lock; Lock(Path(sys.argv[1])); print(); input()"
    command = [sys.executable, "-u", "-c", hold, str(tmp_path / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Refused, match=f"process {other.pid} is writing to it"):
            sweep.main([str(TINY), *QUICK, "--dir", str(tmp_path)])
        other.kill()
    assert launched[0] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_in_work_which_saves(tmp_path: Path, number: int) -> None:
    words = [*QUICK[1:3], "train.steps=100000", "--num", "2", "--no-distances", "--dir", str(tmp_path)]
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), str(TINY), *words]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: any((tmp_path / "base-seed7" / "ckpt").glob("step-*")))
        process.send_signal(number)
        assert process.wait(120) == 128 + number
    status = RunDir.view(tmp_path / "base-seed7").status()
    assert status is not None
    assert status.state == "preempted"
    assert not (tmp_path / "base-seed8").exists()


def wait_for(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.1)

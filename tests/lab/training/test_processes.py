"""Several processes make the run that one makes: the same samples, the same noise, the same steps.

The tiny preset's 6 samples per step are 3 for each of two processes, one micro-batch.
"""

import json
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
import torch

from lab.errors import Refused
from lab.rundir import RunDir
from lab.runtime import Runtime
from lab.training import checkpoint
from lab.world import World
from tests.faults import (
    ENVIRONMENT,
    ROOT,
    TINY,
    TINY_SCORER,
    Done,
    Scripts,
    in_double,
    nan_at,
    out_of_memory,
    signal_at,
    sleep_at,
)
from tests.lab.training.test_resume import differences, measured
from tests.lab.training.test_trainer import trainer

EXACT = (
    "stage.unet.dropout=0",
    "train.optimizer.matrices=adamw",
    "train.steps=4",
    "train.batch=7",  # 3 samples and 4
    "train.micro_batch=2",
    "train.log_every=1",
    "train.preview_every=0",
)


def together(
    script: Scripts, size: int, *words: object, faults: dict[int, tuple[Any, ...]] | None = None
) -> list[Done]:
    """Train the tiny preset in several processes, some of them with a fault."""
    given = [[fault] if (fault := (faults or {}).get(rank)) else [] for rank in range(size)]
    return script.together("train", TINY, *words, faults=given)


def are_stopped(done: list[Done]) -> bool:
    """Whether a polite signal ended all; the launcher passes it on to one that has nothing left to do but to exit."""
    codes = [each.code for each in done]
    return 128 + SIGTERM in codes and set(codes) <= {128 + SIGTERM, -SIGTERM}


def end(run: Path) -> Path:
    folder = checkpoint.latest(run / "ckpt")
    assert folder is not None
    return folder


def distance(one: Path, other: Path) -> float:
    """The largest difference of a weight, an average or a moment at the end of two runs."""
    states = [checkpoint.load(end(run)).tensors for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    return max(
        float((tensor - states[1][stem][name]).abs().max())
        for stem, tensors in states[0].items()
        for name, tensor in tensors.items()
    )


def test_two_processes_make_the_steps_of_one_and_each_goes_on_with_the_other_s_run(
    script: Scripts, tmp_path: Path
) -> None:
    words = (*EXACT, "--run")
    double = [[(in_double,)], [(in_double,)]]
    assert script("train", TINY, *words, tmp_path / "one", fault=(in_double,)).code == 0
    done = script.together("train", TINY, *words, tmp_path / "two", faults=double)
    assert [each.code for each in done] == [0, 0]
    assert "finished at step 4" in done[0].out
    assert done[1].out == ""
    for name, first, then in (("one-two", double[:1], double), ("two-one", double, double[:1])):
        stop = [[(signal_at, "loss", 3, SIGTERM), *own] for own in first]
        assert are_stopped(script.together("train", TINY, *words, tmp_path / name, faults=stop))
        assert {each.code for each in script.together("train", TINY, *words, tmp_path / name, faults=then)} == {0}
    for name in ("two", "one-two", "two-one"):
        assert 0 <= distance(tmp_path / "one", tmp_path / name) <= 1e-12
        for line, same in zip(measured(tmp_path / "one"), measured(tmp_path / name), strict=True):
            assert line == pytest.approx(same, rel=1e-10)
    manifest = json.loads((end(tmp_path / "two") / "MANIFEST.json").read_text())
    assert manifest["processes"] == 2


@pytest.fixture(scope="module")
def pair(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes."""
    run = tmp_path_factory.mktemp("pair") / "run"
    assert [done.code for done in together(script, 2, "--run", run)] == [0, 0]
    return run


def test_a_run_of_two_continues_bit_for_bit(script: Scripts, pair: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = together(script, 2, "--run", run, faults={1: (signal_at, "loss", 7, SIGKILL)})
    assert [each.code for each in done] == [75, -SIGKILL]
    assert "process 0 lost the others" in done[0].err
    assert "last seen: process 1 at step 6" in done[0].err
    done = together(script, 2, "--run", run, faults={0: (signal_at, "after_tensors", 2, SIGKILL)})
    assert done[0].code == -SIGKILL
    assert [each.code for each in together(script, 2, "--run", run)] == [0, 0]
    assert differences(pair, run) == set()
    assert [each.code for each in together(script, 2, "--run", run)] == [0, 0]  # finished: nobody waits


def test_a_signal_to_one_process_stops_all_at_the_same_step(script: Scripts, pair: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = together(script, 2, "--run", run, faults={1: (signal_at, "loss", 5, SIGTERM)})
    assert are_stopped(done), [each.err for each in done]
    status = RunDir.view(run).status()
    assert status is not None
    assert (status.state, status.checkpoint) == ("preempted", f"step-{status.step:08d}")
    assert status.step == 5
    assert [each.code for each in together(script, 2, "--run", run)] == [0, 0]
    assert differences(pair, run) == set()


def test_a_process_that_hangs_is_given_up_and_named(script: Scripts, tmp_path: Path) -> None:
    done = together(script, 2, "runtime.timeout_s=3", "--run", tmp_path / "run", faults={1: (sleep_at, 5, 60.0)})
    assert [each.code for each in done] == [75, -SIGKILL]
    assert "last seen: process 1 at step 4; the same command goes on" in done[0].err.splitlines()[-1]
    status = RunDir.view(tmp_path / "run").status()
    assert status is not None
    assert status.state == "failed"


def test_a_loss_that_is_not_finite_on_one_process_stops_all(script: Scripts, pair: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = together(script, 2, "--run", run, faults={1: (nan_at, 6)})
    assert {each.code for each in done} <= {70, 143}
    assert 70 in {each.code for each in done}
    assert "for shapes-train-7-33, shapes-train-7-34, shapes-train-7-35 (first in the loss itself)" in done[1].err
    status = RunDir.view(run).status()
    assert status is not None
    assert (status.state, status.step, status.checkpoint) == ("failed", 5, "step-00000005")
    assert [each.code for each in together(script, 2, "--run", run)] == [0, 0]
    assert differences(pair, run) == set()


def test_when_memory_runs_out_on_one_process_all_begin_the_step_again(script: Scripts, tmp_path: Path) -> None:
    small = together(script, 2, "train.micro_batch=2", "stage.unet.dropout=0", "--run", tmp_path / "small")
    done = together(script, 2, "stage.unet.dropout=0", "--run", tmp_path / "halved", faults={1: (out_of_memory, 2)})
    assert [each.code for each in (*small, *done)] == [0, 0, 0, 0]
    assert all(each.err.count("the step begins again with train.micro_batch=2") == 1 for each in done)
    assert differences(tmp_path / "small", tmp_path / "halved") == set()


def test_processes_that_see_different_folders_refuse(script: Scripts, tmp_path: Path) -> None:
    class Disagreeing(World):
        def largest(self, number: int) -> int:
            return number + 1

    made = trainer(tmp_path / "run", runtime=Runtime(torch.device("cpu"), world=Disagreeing()))
    with made.rundir, pytest.raises(Refused, match="must be one that all processes see"):
        made.fit()
    assert torch.distributed.is_initialized() is False


SHARDED = (*EXACT[:3], "train.batch=6", "train.micro_batch=2", "train.log_every=1", "train.shard=true", "--run")


@pytest.mark.slow
def test_shards_make_the_same_run_and_any_number_of_processes_goes_on_with_it(script: Scripts, tmp_path: Path) -> None:
    sharded = ("train.preview_every=2", *SHARDED)
    assert script("train", TINY, *sharded, tmp_path / "one").code == 0  # a lone process has nothing to cut
    assert [done.code for done in together(script, 2, *sharded, tmp_path / "two")] == [0, 0]
    assert 0 < distance(tmp_path / "one", tmp_path / "two") <= 1e-5
    stopped = together(script, 2, *sharded, tmp_path / "cut", faults={1: (signal_at, "loss", 5, SIGTERM)})
    assert are_stopped(stopped)
    assert end(tmp_path / "cut").name == "step-00000003"
    assert [done.code for done in together(script, 2, *sharded, tmp_path / "cut")] == [0, 0]
    assert differences(tmp_path / "two", tmp_path / "cut") == set()
    pictures = [sorted((tmp_path / name / "previews").glob("samples-*")) for name in ("one", "two")]
    assert [[path.name for path in each] for each in pictures] == [["samples-00000002.png", "samples-00000004.png"]] * 2


@pytest.mark.slow
def test_one_process_goes_on_with_the_shards_of_two(script: Scripts, tmp_path: Path) -> None:
    sharded = ("train.preview_every=0", *SHARDED)
    assert script("train", TINY, *sharded, tmp_path / "one").code == 0
    stopped = together(script, 2, *sharded, tmp_path / "two", faults={0: (signal_at, "loss", 3, SIGTERM)})
    assert are_stopped(stopped)
    assert script("train", TINY, *sharded, tmp_path / "two").code == 0
    assert 0 < distance(tmp_path / "one", tmp_path / "two") <= 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train.shard=true",), "set optimizer.matrices to adamw"),
        (("train.shard=true", *EXACT[1:2], "train.batch=7"), "a train.batch that 2 processes share evenly"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    script: Scripts, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = together(script, 2, *words, "--run", tmp_path / "run")
    # Who is faster: the launcher, or the loss of the other?
    assert {each.code for each in done} <= {2, 75, -SIGTERM}, [each.err for each in done]
    assert any(each.code == 2 and message in each.err for each in done)


@pytest.mark.slow
def test_torchrun_starts_them_as_the_page_on_clusters_says(script: Scripts, pair: Path, tmp_path: Path) -> None:
    words = [
        "--standalone",
        "--nproc-per-node",
        "2",
        "--",
        "scripts/train.py",
        str(TINY),
        "--run",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert differences(pair, tmp_path / "run") == set()


def test_a_loss_of_the_whole_batch_is_the_same_in_two_processes(script: Scripts, tmp_path: Path) -> None:
    """Each compares its own samples with all: features are joined, and gradients find their way back exactly."""
    words = ("train.optimizer.matrices=adamw", "train.steps=4", "train.log_every=1", "--run")
    assert script("train", TINY_SCORER, *words, tmp_path / "one", fault=(in_double,)).code == 0
    done = script.together("train", TINY_SCORER, *words, tmp_path / "two", faults=[[(in_double,)], [(in_double,)]])
    assert [each.code for each in done] == [0, 0], done[1].err  # 3 samples and 4
    assert 0 < distance(tmp_path / "one", tmp_path / "two") <= 1e-10
    for line, same in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert line == pytest.approx(same, rel=1e-10)


@pytest.mark.slow
def test_a_scorer_can_be_sharded(script: Scripts, tmp_path: Path) -> None:
    words = ("train.optimizer.matrices=adamw", "train.batch=6", "train.steps=3", "train.shard=true", "--run")
    assert script("train", TINY_SCORER, *words, tmp_path / "one", fault=(in_double,)).code == 0
    done = script.together("train", TINY_SCORER, *words, tmp_path / "two", faults=[[(in_double,)], [(in_double,)]])
    assert [each.code for each in done] == [0, 0], done[0].err
    assert 0 < distance(tmp_path / "one", tmp_path / "two") <= 1e-10


def test_a_scorer_that_was_killed_goes_on_bit_for_bit(script: Scripts, tmp_path: Path) -> None:
    assert script("train", TINY_SCORER, "--run", tmp_path / "whole").code == 0
    kill = (signal_at, "after_tensors", 2, SIGKILL)
    assert script("train", TINY_SCORER, "--run", tmp_path / "cut", fault=kill).code == -SIGKILL
    assert script("train", TINY_SCORER, "--run", tmp_path / "cut").code == 0
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()

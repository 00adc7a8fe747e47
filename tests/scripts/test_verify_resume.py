"""scripts/verify_resume.py: it says "bit-identical" of a run that is, and names what differs in one that is not.

What kills from outside cannot place exactly is tested in lab/training/test_resume.py.
"""

import re
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
from torch import Tensor

from lab.errors import Refused
from lab.rundir import RunDir
from lab.training import checkpoint
from scripts import verify_resume
from tests.faults import TINY, Scripts, forget, signal_at
from tests.lab.training.test_processes import end
from tests.lab.training.test_resume import LEARNING

NUM_TENSORS = 470  # of the tiny preset: weights, two averages, moments


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_tiny_run_that_was_killed_is_bit_identical(script: Scripts, tmp_path: Path) -> None:
    done = script("verify_resume", TINY, "--steps", 6, "--kills", 1, "--dir", tmp_path)
    assert done.code == 0, done.err
    assert f"bit-identical: {NUM_TENSORS} tensors, 6 lines of metrics, 1 kills\n" in done.out
    assert re.search(r"killed after step [3-6](, within a save)?; newest checkpoint: step-0000000[36]\n", done.out)
    num_processes = [len(RunDir.view(tmp_path / run).environment()["processes"]) for run in ("whole", "cut")]
    assert num_processes == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_take_turns_and_settings_reach_both_runs(script: Scripts, tmp_path: Path) -> None:
    words = (*LEARNING, "train.workers=1", "train.preview_every=4")
    done = script("verify_resume", TINY, *words, "--steps", 16, "--kills", 3, "--dir", tmp_path)
    assert done.code == 0, done.err
    for place in verify_resume.PLACES:
        assert f"to be killed {place}, " in done.out
    assert done.out.count("\nkilled after step ") == 3
    assert f"bit-identical: {NUM_TENSORS + 2} tensors, 16 lines of metrics, 3 kills\n" in done.out
    assert len(list((tmp_path / "cut" / "previews").glob("samples-*"))) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_done_too_soon_proves_nothing(reference: Path) -> None:
    with pytest.raises(Refused, match="was done before it could be killed after a save: raise --steps"):
        verify_resume._killed(["--resume", str(reference)], reference, "after a save", 99)


def killed(script: Scripts, run: Path, part: str, *words: str) -> Path:
    """A run that was killed in step 5, after the checkpoint of step 4, and whose resume forgot a part of the state."""
    command = ("train", TINY, *words, "--run", run)
    assert script(*command, fault=(signal_at, "loss", 10, SIGKILL)).code == -SIGKILL
    assert script(*command, fault=(forget, part)).code == 0
    return run


def test_the_first_tensor_that_differs_is_named_with_its_largest_difference(
    script: Scripts, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = killed(script, tmp_path / "cut", "optim")
    assert verify_resume.judge(reference, cut, kills=1, untouched=4) == 1
    out = capsys.readouterr().out
    told = r"tensors; the first: (\S+)\.safetensors: (\S+) differs by up to (\S+)\n"
    found = re.search(rf"not identical: (\d+) of {NUM_TENSORS} {told}", out)
    assert found is not None
    assert found[2] == "ema_0.050"
    one, other = (checkpoint.load(end(run)).tensors[found[2]][found[3]] for run in (reference, cut))
    assert float(found[4]) == pytest.approx(float((one - other).abs().max()), rel=0.01)
    assert "torch.use_deterministic_algorithms(True)" in out
    assert "players and memory" in out
    assert "before anything was resumed" not in out


@pytest.mark.slow
def test_a_memory_that_was_forgotten_is_named(
    script: Scripts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("train", TINY, *LEARNING, "--run", tmp_path / "whole").code == 0
    cut = killed(script, tmp_path / "cut", "memory", *LEARNING)
    assert verify_resume.judge(tmp_path / "whole", cut, kills=1, untouched=4) == 1
    assert "bit-identical" not in capsys.readouterr().out
    _, found = verify_resume.differences(tmp_path / "whole", cut)
    assert [line for line in found if line.startswith("memory.safetensors: ")]


def test_figures_alone_can_differ(
    script: Scripts, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = killed(script, tmp_path / "cut", "meter")
    assert verify_resume.judge(reference, cut, kills=1, untouched=4) == 1
    out = capsys.readouterr().out
    assert "tensors" not in out
    assert "not identical: 1 of 3 lines of metrics; the first: step 6: train/loss is 0." in out


def test_runs_that_differ_from_the_start_are_not_blamed_on_the_resume(
    script: Scripts, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("train", TINY, "seed=8", "--run", tmp_path).code == 0
    assert verify_resume.judge(reference, tmp_path, kills=1, untouched=4) == 1
    out = capsys.readouterr().out
    assert "the first: step 3: train/loss is 0." in out
    assert "That is before anything was resumed (step 4)" in out


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), None),
        (torch.tensor(0.0), torch.tensor(-0.0), "differs by up to 0"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.25]), "differs by up to 0.5"),
        (torch.ones(2), torch.ones(3), "is torch.float32 [2] and torch.float32 [3]"),
        (torch.ones(2), torch.ones(2).double(), "is torch.float32 [2] and torch.float64 [2]"),
        (None, torch.ones(2), "is only in the killed run"),
        (torch.ones(2), None, "is only in the uninterrupted run"),
    ],
)
def test_tensors_are_compared_bit_by_bit(one: Tensor | None, other: Tensor | None, answer: str | None) -> None:
    assert verify_resume._difference(one, other) == answer


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--steps", 5, "--kills", 2), "--kills 2 must be at least 1, and need --steps 6 or more"),
        (("--kills", 0), "--kills 0 must be at least 1"),
        (("--kills", -1), "--kills -1 must be at least 1"),
        (("--dir", "."), "holds runs already: name another folder by --dir"),
        ((TINY,), "name one preset"),
    ],
)
def test_what_cannot_be_is_refused(script: Scripts, tmp_path: Path, words: tuple[object, ...], answer: str) -> None:
    (tmp_path / "cut").mkdir()
    done = script("verify_resume", TINY, *(tmp_path if word == "." else word for word in words))
    assert done.code == 2
    assert answer in done.err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mistake_in_the_settings_is_answered_by_train(script: Scripts, tmp_path: Path) -> None:
    done = script("verify_resume", TINY, "train.stepz=3", "--dir", tmp_path)
    assert done.code == 2
    assert "train.stepz: unknown key (given 3); did you mean train.steps?" in done.err
    assert "bit-identical" not in done.out

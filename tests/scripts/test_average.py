"""Averages of other lengths from a run's snapshots, from the command line to pictures."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from lab.rundir import RunDir
from lab.training import checkpoint
from tests.faults import TINY, Done, Scripts
from tests.lab.training.test_checkpoint import flip

OTHERS = (0.03, 0.04, 0.075, 0.12, 0.15)
QUIET = ("train.steps=64", "train.preview_every=0", "train.checkpoint_every=64")


@pytest.fixture(scope="module")
def run(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 steps of the tiny preset with 32 snapshots; only to be read."""
    path = tmp_path_factory.mktemp("runs") / "snapshots"
    assert script("train", TINY, *QUIET, "train.snapshots=32", "--run", path).code == 0
    return path


@pytest.fixture(scope="module")
def tracked(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """All lengths, as the trainer itself averages the same training; by file stem."""
    path = tmp_path_factory.mktemp("runs") / "tracked"
    lengths = ",".join(map(str, (0.05, 0.1, *OTHERS)))
    assert script("train", TINY, *QUIET, f"train.ema=[{lengths}]", "--run", path).code == 0
    newest = checkpoint.latest(path / "ckpt")
    assert newest is not None
    return {stem: dict(tensors) for stem, tensors in checkpoint.load(newest).tensors.items()}


@pytest.fixture(scope="module")
def short(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three snapshots, at steps 3, 6 and 9; only to be read."""
    path = tmp_path_factory.mktemp("runs") / "short"
    assert script("train", TINY, "train.preview_every=0", "train.snapshots=3", "--run", path).code == 0
    return path


@pytest.fixture
def copy(short: Path, tmp_path: Path) -> Path:
    """The short run, to be changed."""
    return Path(shutil.copytree(short, tmp_path / "run"))


def refusal(done: Done, code: int = 2) -> str:
    assert done.code == code
    assert "Traceback" not in done.err
    return done.err.splitlines()[-1]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum((one[key] - other[key]).double().square().sum().item() for key in other) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("length", OTHERS)
def test_a_made_average_is_within_1_percent_of_the_tracked_one(
    script: Scripts, run: Path, tracked: dict[str, dict[str, torch.Tensor]], tmp_path: Path, length: float
) -> None:
    """Of the distance between the tracked averages of 0.05 and 0.10."""
    done = script("average", run, "--length", length, "--out", tmp_path)
    assert done.code == 0, done.err
    name = f"ema_{length:.3f}"
    made = checkpoint.load(tmp_path / name / "step-00000064").tensors[name]
    assert made.keys() == tracked[name].keys()
    error = distance(dict(made), tracked[name]) / distance(tracked["ema_0.050"], tracked["ema_0.100"])
    assert error < 0.01


def test_a_stored_length_is_the_stored_average(script: Scripts, copy: Path) -> None:
    assert "expected error 0.00%" in script("average", copy, "--length", 0.1, "--step", 6).out
    made = checkpoint.load(copy / "averages" / "ema_0.100" / "step-00000006").tensors["ema_0.100"]
    stored = checkpoint.load(copy / "snapshots" / "step-00000006").tensors["ema_0.100"]
    torch.testing.assert_close(dict(made), dict(stored), rtol=0, atol=0)


def test_pictures_and_figures_are_of_the_average_and_their_recipes_name_it(script: Scripts, copy: Path) -> None:
    out = copy / "pictures"
    draw = ("sample", copy, "a ring", "--out", out, "--weights", "ema_0.075")
    for step in (6, 9):
        assert script("average", copy, "--length", 0.075, "--step", step).code == 0
    assert script(*draw, "--checkpoint", "step-00000006").code == 0
    assert script(*draw).code == 0
    assert "0 drawn" in script(*draw, "--checkpoint", "step-00000009").out
    origins = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    folders = [copy / "averages" / "ema_0.075" / f"step-0000000{step}" for step in (6, 9)]
    assert [entry["checkpoint"] for entry in origins] == [checkpoint.identity(folder) for folder in folders]
    assert {entry["weights"] for entry in origins} == {"ema_0.075"}
    assert len({(out / entry["file"]).read_bytes() for entry in origins}) == 2
    done = script("evaluate", copy, "--num", 2, "--no-distances", "--weights", "ema_0.075")
    assert done.code == 0
    assert json.loads(Path(done.out.splitlines()[-1]).read_text())["origin"]["weights"] == "ema_0.075"


def test_the_manifest_says_what_it_was_made_of(script: Scripts, copy: Path) -> None:
    assert script("average", copy, "--length", 0.12).code == 0
    manifest = json.loads((copy / "averages" / "ema_0.120" / "step-00000009" / "MANIFEST.json").read_text())
    assert (manifest["run_id"], manifest["length"]) == (RunDir.view(copy).run_id, 0.12)
    folders = sorted((copy / "snapshots").iterdir())
    assert manifest["snapshots"] == {folder.name: checkpoint.identity(folder) for folder in folders}


@pytest.mark.parametrize(("length", "warned"), [(0.03, False), (0.02, True), (0.2, False), (0.25, True)])
def test_the_expected_error_is_told_and_a_large_one_warned_of(
    script: Scripts, run: Path, tmp_path: Path, length: float, warned: bool
) -> None:
    done = script("average", run, "--length", length, "--out", tmp_path)
    assert done.code == 0
    (error,) = re.findall(rf"ema_{length:.3f} of step 64 from 64 stored averages: expected error (.*)%", done.out)
    assert (float(error) > 2) is warned
    assert ("warning: that is above 2%" in done.out) is warned


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--length", 0.0005), "--length 0.0005: from 0.001 to below 0.28, to three decimals"),
        (("--length", 0.0755), "--length 0.0755: from 0.001 to below 0.28, to three decimals"),
        (("--length", 0.3), "--length 0.3: from 0.001 to below 0.28"),
        (("--length", "nan"), "--length nan: from 0.001 to below 0.28"),
        (("--length", 0.005), "%; that would be another average: take a length nearer to [0.05, 0.1]"),
        (("--length", 0.075, "--step", 5), "no snapshot at step 5 (found: 2, 4, 6,"),
    ],
)
def test_mistakes_are_told_with_their_remedy(
    script: Scripts, run: Path, tmp_path: Path, arguments: tuple[object, ...], answer: str
) -> None:
    assert answer in refusal(script("average", run, *arguments, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_without_snapshots(script: Scripts, reference: Path) -> None:
    answer = refusal(script("average", reference, "--length", 0.075))
    assert "no snapshots there; a run keeps them while it trains, with train.snapshots=32" in answer


def test_a_broken_snapshot_is_refused_until_it_is_deleted(script: Scripts, copy: Path) -> None:
    broken = copy / "snapshots" / "step-00000006"
    flip(broken / "ema_0.050.safetensors")
    answer = refusal(script("average", copy, "--length", 0.075))
    assert "step-00000006 cannot be used: ema_0.050.safetensors is not what was written" in answer
    assert "delete the folder, and the average is made from the others" in answer
    assert not (copy / "averages").exists()
    shutil.rmtree(broken)
    assert "from 4 stored averages" in script("average", copy, "--length", 0.075).out


def test_a_broken_average_is_not_drawn_from(script: Scripts, copy: Path) -> None:
    assert script("average", copy, "--length", 0.075).code == 0
    flip(copy / "averages" / "ema_0.075" / "step-00000009" / "ema_0.075.safetensors")
    assert "every checkpoint in" in refusal(script("sample", copy, "a ring", "--weights", "ema_0.075"), code=65)


def test_weights_that_were_not_made(script: Scripts, copy: Path) -> None:
    assert script("average", copy, "--length", 0.075).code == 0
    answer = refusal(script("sample", copy, "a ring", "--weights", "ema_0.080"))
    found = "ema, raw, ema_0.050, ema_0.100, ema_0.075"
    assert f"no weights 'ema_0.080' there (found: {found}); scripts/average.py makes others" in answer

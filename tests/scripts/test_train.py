"""scripts/train.py as a person meets it: what it answers, above all to mistakes; resuming is tested in lab/training."""

import shutil
from pathlib import Path

import pytest

from lab.config import load
from lab.images import read_image, save_png
from lab.randomness import normal
from lab.rundir import RunDir
from lab.training import checkpoint
from scripts.assembly.experiments import DiffusionExperiment
from tests.faults import ROOT, TINY, Done, Scripts

LONGER = ("train.steps=80", "train.batch=16", "train.micro_batch=0", "train.log_every=20", "train.preview_every=0")


def refusal(done: Done) -> str:
    """The one line that a refused command answers with."""
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    return line


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    """A finished run to do things to."""
    return Path(shutil.copytree(reference, tmp_path / "copy"))


def times(run: Path) -> dict[Path, int]:
    """When each file of a run was last changed; the lock aside."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_tiny_model_learns(script: Scripts, tmp_path: Path) -> None:
    done = script("train", TINY, *LONGER, "--run", tmp_path / "run")
    assert done.code == 0
    losses = [line["train/loss"] for line in RunDir.view(tmp_path / "run").metrics()]
    assert losses[-1] < 0.6  # at birth, when the network says nothing, it is 0.83


def test_a_run_begins_with_the_picture_of_what_its_loss_weighs(reference: Path) -> None:
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert read_image(reference / "previews" / "effective_weight-00000000.png").shape == (3, 704, 880)
    board = EventAccumulator(str(reference / "tb"))
    board.Reload()
    assert [event.step for event in board.Images("effective_weight")] == [0]


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("train.stepz=3", "train.stepz: unknown key (given 3); did you mean train.steps?"),
        ("steps=3", "steps: unknown key (given 3)"),
        ("train.steps=ten", "train.steps: "),
        ("train.steps=1.5", "train.steps: "),
        ("train.steps=0", "train.steps: "),
        ("stage.unet.widths=[16, 20]", "stage.unet: widths must be positive multiples of 16, got [16, 20]"),
        ("stage.unet.attention=[2]", "attention names level 2, but the levels are 0 to 1"),
        ("train.keep_best=accuracy/pair/right", "but nothing is measured: set evaluate.every_steps"),
        ("train.micro_batch=7", "micro_batch 7 is larger than batch 6"),
        ("data.size=20", "data.size=20 is not divisible by 8, the network's factor"),
        ("text.heads=3", "heads 3 does not divide width 16"),
        ("stage.sampling.sampler=eular", "stage.sampling.sampler: "),
        ("stage.schedule.kind=cosin", "stage.schedule"),
        ("runtime.device=abacus", "runtime.device: "),
        ("train.steps", "name one preset"),
    ],
)
def test_mistakes_in_settings_are_one_line_and_leave_nothing(
    script: Scripts, tmp_path: Path, override: str, answer: str
) -> None:
    done = script("train", TINY, override, "--run", tmp_path / "run")
    assert done.code == 2
    assert answer in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    if answer != "name one preset":  # argparse adds the usage
        assert refusal(done).startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_data_that_lost_its_black_is_refused_unless_it_is_allowed(script: Scripts, tmp_path: Path) -> None:
    for number in range(4):
        save_png(tmp_path / "data" / f"{number}.png", normal(0, "bright", [number], (3, 16, 16))[0].clamp(0, 1))
        (tmp_path / "data" / f"{number}.txt").write_text(f"picture {number}")
    data = f"data={{kind: folder, path: {tmp_path / 'data'}, size: 16, split: {{heldout: 0}}, cache: {tmp_path}}}"
    command = ("train", TINY, data, "train.steps=1", "train.preview_every=0", "--run", tmp_path / "run")
    assert "none of the first 4 images goes below" in refusal(script(*command))
    assert not (tmp_path / "run").exists()
    assert script(*command, "--allow-range").code == 0
    assert "is finished at step 1" in script(*command).out  # it is asked when a run begins


def test_a_preset_that_is_not_there(script: Scripts, tmp_path: Path) -> None:
    assert "no such configuration file; did you mean" in refusal(
        script("train", ROOT / "configs" / "shape.yaml", "--run", tmp_path / "run")
    )


@pytest.mark.parametrize(
    "arguments", [(), (TINY, TINY), (TINY, "--resume", "runs/a"), ("--resume", "runs/a", "--run", "runs/b")]
)
def test_it_wants_one_preset_or_one_run(script: Scripts, arguments: tuple[object, ...]) -> None:
    done = script("train", *arguments)
    assert done.code == 2
    assert (
        "name one preset (configs/shapes.yaml, with --run for its folder) or one run (--resume runs/NAME)" in done.err
    )


def test_a_finished_run_says_so_and_how_to_extend_it(script: Scripts, copy: Path) -> None:
    before = times(copy)
    for command in (("train", TINY, "--run", copy), ("train", "--resume", copy)):
        done = script(*command)
        assert done.code == 0
        remedy = f"python scripts/train.py --resume {copy} train.steps=18"
        assert done.out == f"{copy} is finished at step 9; to extend it: {remedy}\n"
    assert times(copy) == before


def test_a_run_is_extended(script: Scripts, copy: Path) -> None:
    done = script("train", "--resume", copy, "train.steps=11")
    assert done.code == 0
    assert "finished at step 11" in done.out
    newest = checkpoint.latest(copy / "ckpt")
    assert newest is not None
    assert newest.name == "step-00000011"
    assert load(copy / "config.yaml", [], DiffusionExperiment).train.steps == 11
    assert [line["step"] for line in RunDir.view(copy).metrics()] == [3, 6, 9, 11]
    assert len(RunDir.view(copy).environment()["processes"]) == 2


def test_another_configuration_in_the_same_folder_is_refused_with_both_remedies(script: Scripts, copy: Path) -> None:
    before = (copy / "config.yaml").read_bytes()
    line = refusal(script("train", TINY, "train.steps=10", "seed=3", "--run", copy))
    assert f"{copy} holds another configuration (seed: 7 -> 3 and 1 more)" in line
    assert "--run runs/OTHER" in line
    assert f"--resume {copy}" in line
    assert (copy / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ("seed=3", "seed: 7 -> 3"),
        ("stage.schedule.kind=linear", 'stage.schedule.kind: "cosine" -> "linear"'),
        ("stage.parameterization.kind=x0", 'stage.parameterization.kind: "v" -> "x0"'),
        ("data.size=32", "data.size: 16 -> 32"),
        ("text.layers=2", "text.layers: 1 -> 2"),
        ("train.batch=8", "train.batch: 6 -> 8"),
        ("train.ema=[0.1]", "train.ema: [0.05, 0.1] -> [0.1]"),
        ("train.init_from=runs/other", 'train.init_from: "" -> "runs/other"'),
    ],
)
def test_a_resumed_run_keeps_its_identity(script: Scripts, reference: Path, change: str, answer: str) -> None:
    done = script("train", "--resume", reference, change)
    line = refusal(done)
    assert line.startswith(f"error: {reference}: {answer}")
    assert "would make it another experiment" in line


def test_only_a_run_can_be_resumed(script: Scripts, tmp_path: Path) -> None:
    assert "is not a run directory" in refusal(script("train", "--resume", tmp_path))


def test_a_folder_with_something_else_is_left_alone(script: Scripts, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds something else than a run (notes.txt)" in refusal(script("train", TINY, "--run", tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"notes.txt", ".lock"}


def test_one_process_writes(script: Scripts, copy: Path) -> None:
    with RunDir.open(copy):
        assert "is writing to it" in refusal(script("train", "--resume", copy, "train.steps=10"))


def test_the_run_says_what_it_ran_with(reference: Path) -> None:
    run = RunDir.view(reference)
    (process,) = run.environment()["processes"]
    assert process["argv"][0] == "scripts/train.py"
    assert process["threads"] == 1
    config = load(run.config_path, [], DiffusionExperiment)
    assert config.runtime.precision == "fp32"
    assert len(config.text.vocabulary) > 20


def test_another_experiment_goes_on_where_it_is_insisted_on_and_the_run_keeps_what_changed(
    script: Scripts, copy: Path
) -> None:
    changes = ("stage.caption_drop=0.5", "data.mixture.pair=0.1", "train.steps=10")
    line = refusal(script("train", "--resume", copy, *changes))
    assert "stage.caption_drop: 0.1 -> 0.5" in line
    assert "data.mixture.pair: 0.7 -> 0.1" in line
    assert "--allow-change" in line
    done = script("train", "--resume", copy, *changes, "--allow-change")
    assert done.code == 0
    assert "another experiment than the one begun: " in done.err
    kept = RunDir.view(copy).environment()["changes"]
    assert [change.split(":")[0] for change in kept] == ["stage.caption_drop", "data.mixture.pair", "train.steps"]
    assert load(copy / "config.yaml", [], DiffusionExperiment).stage.caption_drop == 0.5


@pytest.mark.parametrize("change", ["stage.unet.depth=2", "train.batch=8", "train.optimizer.matrices=adamw"])
def test_a_change_that_the_state_does_not_fit_is_refused_also_when_insisted_on(
    script: Scripts, copy: Path, change: str
) -> None:
    before = (copy / "config.yaml").read_bytes()
    assert script("train", "--resume", copy, change, "train.steps=10", "--allow-change").code == 2
    assert (copy / "config.yaml").read_bytes() == before


def test_insisting_needs_a_run(script: Scripts) -> None:
    assert "--allow-change goes with --resume" in script("train", TINY, "--allow-change").err

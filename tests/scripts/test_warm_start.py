"""A run that begins with another run's weights: exactly those, once, and only where they fit."""

import json
import shutil
from pathlib import Path
from signal import SIGKILL

import pytest
import torch

from lab.config import dump, load
from lab.errors import Refused
from lab.rundir import RunDir
from lab.training import checkpoint, snapshot
from lab.world import ALONE
from scripts import train
from scripts.assembly.experiments import DiffusionExperiment
from tests.faults import TINY, Done, Scripts, in_double, nan_at, signal_at
from tests.lab.training.test_processes import EXACT, distance, end
from tests.lab.training.test_resume import differences

STANDING = ("train.steps=1", "train.on_nonfinite=skip", "train.preview_every=0")  # with a loss of NaN nothing moves


def refusal(done: Done) -> str:
    """The one line that a refused command answers with."""
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("suffix", "weights", "average"),
    [
        ("", "ema", "ema_0.050"),
        (":ema", "ema", "ema_0.050"),
        (":raw", "raw", None),
        (":ema_0.100", "ema_0.100", "ema_0.100"),
    ],
)
def test_it_begins_with_the_weights_that_were_named(
    script: Scripts, reference: Path, tmp_path: Path, suffix: str, weights: str, average: str | None
) -> None:
    run = tmp_path / "run"
    words = (f"train.init_from={reference}{suffix}", "seed=8", *STANDING)
    assert script("train", TINY, *words, "--run", run, fault=(nan_at, 1)).code == 0
    wanted = snapshot.weights(checkpoint.load(end(reference)).tensors, average)
    begun = checkpoint.load(end(run)).tensors
    for stem in (None, "ema_0.050", "ema_0.100"):  # the averages begin there, too
        found = snapshot.weights(begun, stem)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    origin = {
        "run": RunDir.view(reference).run_id,
        "checkpoint": checkpoint.identity(end(reference)),
        "weights": weights,
    }
    assert RunDir.view(run).environment()["init_from"] == origin
    assert json.loads((end(run) / "MANIFEST.json").read_text())["init_from"] == origin


def test_it_goes_on_bit_for_bit_when_the_other_run_is_gone(script: Scripts, reference: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(reference, tmp_path / "source"))
    command = ("train", TINY, "seed=8", "train.preview_every=0", f"train.init_from={source}", "--run")
    assert script(*command, tmp_path / "whole").code == 0
    for nth in (2, 6):  # before the first checkpoint, and in the step after it
        assert script(*command, tmp_path / "cut", fault=(signal_at, "loss", nth, SIGKILL)).code == -SIGKILL
    shutil.rmtree(source)
    assert script(*command, tmp_path / "cut").code == 0
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    manifests = [json.loads((end(tmp_path / name) / "MANIFEST.json").read_text()) for name in ("whole", "cut")]
    assert manifests[0]["init_from"] == manifests[1]["init_from"]


@pytest.mark.parametrize(
    ("change", "answers"),
    [
        ("stage.unet.widths=[16, 48]", (" instead of [", "; and more. Begin with ")),
        ("text.layers=2", ("differences (12): model.text.transformer.transformer.resblocks.1.", " is missing; ")),
        ("stage.unet.attention=[]", (" is left over; ", "; and more. Begin with ")),
        (
            "text.vocabulary=[320, 49406, 49407]",
            (": text.vocabulary has ", " tokens there and 3 here, 0 of them alike; "),
        ),
    ],
)
def test_a_model_that_they_do_not_fit_is_refused_and_nothing_is_left(
    script: Scripts, reference: Path, tmp_path: Path, change: str, answers: tuple[str, ...]
) -> None:
    line = refusal(script("train", TINY, change, f"train.init_from={reference}", "--run", tmp_path / "run"))
    assert line.startswith(f"error: train.init_from={reference} does not fit; differences (")
    assert [answer for answer in answers if answer not in line] == []
    assert list(tmp_path.iterdir()) == []


def test_words_in_other_rows_are_refused_and_the_remedy_works(script: Scripts, reference: Path, tmp_path: Path) -> None:
    words = load(reference / "config.yaml", [], DiffusionExperiment).text.vocabulary
    turned = (*words[:2], *reversed(words[2:]))
    init, run = f"train.init_from={reference}", tmp_path / "run"
    line = refusal(script("train", TINY, f"text.vocabulary={list(turned)}", init, "--run", run))
    assert "does not fit; differences (1): text.vocabulary has " in line
    assert f"python scripts/train.py {reference}/config.yaml {init} --run runs/OTHER" in line
    assert script("train", reference / "config.yaml", init, "train.steps=1", "--run", run).code == 0


@pytest.mark.parametrize(
    ("suffix", "answer"),
    [
        (":best", "no weights 'best' there (found: ema, raw, ema_0.050, ema_0.100)"),
        (":model", "no weights 'model' there"),
        ("x", "x is not a run directory (runs beside it: "),
        ("/ckpt:raw", "ckpt is not a run directory (runs beside it: "),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_there(
    script: Scripts, reference: Path, tmp_path: Path, suffix: str, answer: str
) -> None:
    line = refusal(script("train", TINY, f"train.init_from={reference}{suffix}", "--run", tmp_path / "run"))
    assert answer in line
    assert suffix != "x" or str(reference) in line.split("(runs beside it: ")[1]
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_configuration_was_changed_by_hand_is_not_drawn_from(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    config = load(run / "config.yaml", ["text.layers=2"], DiffusionExperiment)
    (run / "config.yaml").write_text(dump(config))
    line = refusal(script("sample", run, "a red circle"))
    assert f"the checkpoint does not fit {run / 'config.yaml'} (model.text." in line


@pytest.mark.slow
def test_two_processes_begin_with_the_same_weights(script: Scripts, reference: Path, tmp_path: Path) -> None:
    words = (TINY, *EXACT, f"train.init_from={reference}:raw", "--run")
    for name, size in (("one", 1), ("two", 2)):
        done = script.together("train", *words, tmp_path / name, faults=[[(in_double,)]] * size)
        assert [each.code for each in done] == [0] * size
    assert 0 <= distance(tmp_path / "one", tmp_path / "two") <= 1e-12


def test_a_process_that_finds_another_checkpoint_than_the_first_refuses(reference: Path, tmp_path: Path) -> None:
    known = load(reference / "config.yaml", [f"train.init_from={reference}"], DiffusionExperiment)
    with RunDir.create(tmp_path / "run", known) as run:
        run.record_init({"run": "another", "checkpoint": "0", "weights": "ema"})
    with pytest.raises(Refused, match="got a new checkpoint meanwhile"):
        train._follow(tmp_path / "run", ALONE, allow=False)

"""scripts/doctor.py: every check is printed, findings with their remedies; nothing of the run is changed."""

import json
from pathlib import Path

from tests.faults import TINY, Scripts
from tests.lab.training.test_resume import differences


def test_a_fault_is_told_with_its_remedy(script: Scripts, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ("train.preview_every=0", "train.steps=4", "--run")
    assert script("train", TINY, "stage.caption_drop=0", *words, run).code == 0
    assert script("train", TINY, "stage.caption_drop=0", *words, tmp_path / "other").code == 0
    done = script("doctor", run)
    assert done.code == 0, done.err
    told = json.loads((run / "doctor.json").read_text())
    ill = {symptom["name"] for symptom in told if symptom["is_ill"]}
    assert "null condition" in ill
    assert {"data out of range", "signal at the last step", "the average lags"}.isdisjoint(ill)
    assert done.out.count("FINDING") == done.out.count("remedy: ") == len(ill)
    assert "remedy: the null condition was never trained: take --guidance 1" in done.out
    assert done.out.count("ok  ") == len(told) - len(ill)
    assert done.out.splitlines()[-1] == f"{len(ill)} findings in {len(told)} checks"
    assert differences(run, tmp_path / "other") == set()


def test_the_record_alone_is_looked_at_without_the_model(script: Scripts, reference: Path) -> None:
    done = script("doctor", reference, "--record")
    assert done.code == 0, done.err
    assert "starving" in done.out
    assert "deaf" not in done.out


def test_what_draws_nothing_has_its_record_looked_at(script: Scripts, tmp_path: Path) -> None:
    run = tmp_path / "vae"
    assert script("train", TINY.with_name("tiny_vae.yaml"), "train.preview_every=0", "--run", run).code == 0
    done = script("doctor", run)
    assert (done.code, "trains an autoencoder" in done.err, "--record" in done.err) == (2, True, True)
    done = script("doctor", run, "--record")
    assert (done.code, "updates left out" in done.out) == (0, True)


def test_what_is_no_run_is_refused(script: Scripts, tmp_path: Path) -> None:
    done = script("doctor", tmp_path)
    assert (done.code, "is not a run directory" in done.err) == (2, True)

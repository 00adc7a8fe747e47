"""evaluate.py --guidance A,B: the same evaluations as one by one, and curves of them."""

import json
import shutil
from pathlib import Path

import pytest

from scripts.evaluation import guidance_curve
from scripts.interface import settings
from tests.faults import Scripts


def test_the_curves_are_the_evaluations_of_each_scale(script: Scripts, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    words = ("evaluate", run, "--num", 3, "--no-distances")
    alone = script(*words, "--guidance", 2)
    assert alone.code == 0, alone.err
    done = script(*words, "--guidance", "1,2")
    assert done.code == 0, done.err
    (path,) = run.glob("guidance-*.json")
    found = json.loads(path.read_text())
    assert found["scales"] == [point["guidance"] for point in found["points"]] == [1, 2]
    evaluations = [json.loads(each.read_text()) for each in run.glob("evaluation-*.json")]
    assert len(evaluations) == 2  # that of scale 2 was there
    for point in found["points"]:
        guidance = point.pop("guidance")
        assert point in evaluations
        assert point["sampling"]["guidance"] == guidance
    assert path.with_suffix(".png").is_file()
    rows = done.out.splitlines()
    assert any(row.startswith("accuracy, pair ") for row in rows)
    assert any(row.startswith("diversity, position ") for row in rows)
    again = script(*words, "--guidance", "1,2")
    assert again.out == done.out
    assert "picture" not in again.err


POINTS = [
    {
        "guidance": scale,
        "prompt_accuracy": {"pair": {"value": 0.1 * scale, "low": 0.0, "high": 0.9}},
        "distances": [
            {"name": "frechet_distance (x)", "value": 9.0, "low": 8.0, "high": 10.0},
            {"name": "kernel_distance (x)", "value": 1 / scale, "low": 0.0, "high": 2.0},
        ],
        "diversity": {"prompt": "a red circle", "size": {"tv": 0.2, "low": 0.1, "high": 0.3, "n": 9}},
    }
    for scale in (1.0, 2.0, 4.0)
]


def test_each_group_of_figures_has_a_plot_with_its_intervals() -> None:
    plots = {plot.title: plot for plot in guidance_curve.plots(POINTS)}
    assert list(plots) == ["accuracy", "kernel distance", "diversity: distance to the world's law"]
    (line,) = plots["kernel distance"].lines
    assert (list(line.x), list(line.y), list(line.high)) == ([1, 2, 4], [1, 0.5, 0.25], [2, 2, 2])
    assert "0.400 [0.000, 0.900]" in guidance_curve.table(POINTS)


def test_of_other_pictures_it_tells_what_is_found_again_and_what_is_copied() -> None:
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    copies = {"share": 0.0, "low": 0.0, "high": 0.1}
    points = [{"guidance": 1.0, "spaces": {"pixels": {"recalled": {"heldout": share}, "copies": copies}}}]
    assert [plot.title for plot in guidance_curve.plots(points)] == ["accuracy", "share of copies"]


def test_scales_are_read() -> None:
    assert settings.scales("1.5") == 1.5
    assert settings.scales("1,1.5,8") == (1, 1.5, 8)
    for text in ("2,1", "1,1", "much", "1,"):
        with pytest.raises(ValueError, match=r"scales must increase|could not convert"):
            settings.scales(text)


def test_several_scales_are_for_evaluations_alone(script: Scripts, reference: Path) -> None:
    done = script("sample", reference, "a red circle", "--guidance", "1,2")
    assert done.code == 2
    done = script("evaluate", reference, "--guidance", "1,2", "--best-of", "1,2")
    assert done.code == 2
    assert "--guidance with several scales goes with neither" in done.err.splitlines()[-1]

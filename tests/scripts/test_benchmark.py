"""scripts/benchmark.py: costs are counted, errors are distances, and nothing is measured twice."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.pipeline import SamplingConfig, times_of
from diffusion.schedule import logsnr
from lab.errors import BadData, Refused
from scripts import benchmark
from scripts.assembly import drawing, experiments
from scripts.assembly.drawing import Trained
from scripts.benchmarks import (
    combinations,
    plots,
    samplers,
    tables,
)
from scripts.benchmarks import reference as command
from scripts.benchmarks.cells import Cell, plan
from scripts.benchmarks.figures import Sheet
from scripts.benchmarks.references import References
from scripts.benchmarks.setting import is_deterministic, sampling_of, setting
from scripts.benchmarks.walks import Counter, calls_of, in_precision, rms, steps_for, walk, wanted
from tests.faults import TINY, Scripts


@pytest.fixture(scope="module")
def trained(reference: Path) -> Trained:
    return drawing.trained(reference)


def options_of(*arguments: object) -> argparse.Namespace:
    return benchmark._parser().parse_args([str(argument) for argument in arguments])


def sampling(**changes: Any) -> SamplingConfig:
    return SamplingConfig.model_validate({"steps": 4, "chunk": 4, "guidance": 1.0, **changes})


# --- counts


@pytest.mark.parametrize(
    ("changes", "calls", "evaluations"),
    [
        ({}, 4, 4),
        ({"guidance": 2.0}, 4, 8),
        ({"sampler": "unipc_3", "guidance": 2.0}, 4, 8),
        ({"sampler": "plms"}, 4, 4),
        ({"sampler": "heun"}, 7, 7),
        ({"sampler": "heun", "guidance": 2.0}, 7, 14),
    ],
)
def test_calls_and_evaluations_are_counted(
    trained: Trained, changes: dict[str, Any], calls: int, evaluations: int
) -> None:
    requests, _ = wanted(3, seed=2)  # 6 images in chunks of 4: the second one is padded
    done = walk(trained.pipeline, requests, 2, sampling(**changes))
    assert (done.calls, done.evaluations, len(done.images)) == (calls, evaluations, 6)
    assert calls_of(sampling(**changes)) == calls


def test_where_guidance_is_off_there_is_one_evaluation_per_call(trained: Trained) -> None:
    limited = sampling(guidance=2.0, steps=8, guide={"interval": (-3.0, 3.0)})
    denoiser = trained.pipeline.model.denoiser
    times = times_of(limited, denoiser.schedule, denoiser.parameterization)
    levels = logsnr(*denoiser.schedule(times[:-1]))
    inside = int(((levels >= -3) & (levels <= 3)).sum())
    assert 0 < inside < 8
    assert walk(trained.pipeline, wanted(1, seed=2)[0], 2, limited).evaluations == 8 + inside


@pytest.mark.parametrize("calls", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("sampler", ["heun", "ddim"])
def test_as_many_steps_as_the_calls_allow(sampler: str, calls: int) -> None:
    steps = steps_for(sampler, calls)
    assert calls_of(sampling(sampler=sampler, steps=steps)) <= calls
    assert calls_of(sampling(sampler=sampler, steps=steps + 1)) > calls


def test_prompts_are_not_the_evaluations() -> None:
    requests, kinds = wanted(2, seed=2)
    assert kinds == ["pair", "single"] * 2
    assert len({request.number for request in requests}) == len({request.prompt for request in requests}) == 4
    assert wanted(5, seed=2)[0][:4] == requests  # more prompts keep the first, and so the references
    with pytest.raises(Refused, match="--seed 0 is the evaluation's"):
        wanted(2, seed=0)


# --- errors


def test_the_error_falls_with_the_steps_and_is_zero_against_itself(trained: Trained, tmp_path: Path) -> None:
    requests, _ = wanted(2, seed=2)
    for guidance in (1.0, 3.0):
        exact = References(trained, tmp_path, 2, steps=64).of(requests, sampling(guidance=guidance))
        errors = [
            rms(walk(trained.pipeline, requests, 2, sampling(guidance=guidance, steps=steps)).images, exact)
            for steps in (4, 8, 16, 32, 64)
        ]
        assert errors[:-1] == sorted(errors[:-1], reverse=True)
        assert errors[0] > 4 * errors[3] > 0
        assert errors[-1] == 0


def test_the_distance_is_a_root_mean_square() -> None:
    one = torch.zeros(2, 3, 4, 4)
    other = one.clone()
    other[0] = 2.0
    assert rms(one, other) == pytest.approx(2**0.5)


def test_a_reference_is_kept_for_exactly_what_it_is_of(trained: Trained, tmp_path: Path) -> None:
    requests, _ = wanted(4, seed=2)  # two chunks

    def passes(of: References, sampling: SamplingConfig, num: int = 8) -> int:
        counter = Counter()
        with counter.watching(of.trained.pipeline.model.denoiser.network):
            of.of(requests[:num], sampling)
        return counter.passes

    kept = References(trained, tmp_path, 2, steps=3)
    assert [passes(kept, sampling(), num) for num in (4, 8, 8)] == [3, 3, 0]
    assert passes(kept, sampling(sampler="unipc_2", spacing="karras", steps=9)) == 0
    assert torch.equal(kept.of(requests, sampling()), walk(trained.pipeline, requests, 2, sampling(steps=3)).images)
    assert passes(kept, sampling(guidance=2.0)) == 6
    assert passes(References(in_precision(trained, "bf16"), tmp_path, 2, steps=3), sampling()) == 6
    assert passes(References(trained, tmp_path, 3, steps=3), sampling()) == 6


def test_the_verdict_needs_both_parts_of_the_bar() -> None:
    rows = [command.row(setting("lms"), errors, [0.2, 0.1]) for errors in ([0.2, 0.1], [0.21, 0.01], [0.01, 0.11])]
    assert [row.split()[-1] for row in rows] == ["met", "missed", "missed"]


def test_reference_prints_a_verdict_per_guidance(script: Scripts, reference: Path, tmp_path: Path) -> None:
    arguments = ("--num", 4, "--reference-steps", 30, "--settings", "unipc_2:uniform", "ddim:uniform")
    done = script("benchmark", "reference", reference, *arguments, "--out", tmp_path)
    assert done.code == 0, done.err
    assert done.out.count("RMS distance of x0") == 2
    rows = [row.split() for row in done.out.splitlines() if row.startswith("ddim:uniform")]
    assert len(rows) == 4  # the bar's own and the one asked for, for two guidances
    assert {row[-1] for row in rows[1::2]} == {"missed"}
    assert 0 < float(rows[0][1]) < float(rows[1][1])  # 25 calls against 10
    noisy = script("benchmark", "reference", reference, "--settings", "ddpm", "--out", tmp_path)
    assert (noisy.code, noisy.err.splitlines()[-1][:12]) == (2, "error: ddpm ")


# --- settings


def test_a_setting_says_anew_what_the_run_says(trained: Trained) -> None:
    own = trained.experiment
    eta = own.model_copy(update={"stage": own.stage.model_copy(update={"sampling": sampling(eta=0.5)})})
    assert sampling_of(eta, setting("heun:logsnr:-8:6"), 10, guidance=2.0) == sampling(
        sampler="heun", spacing="logsnr", logsnr_limits=(-8.0, 6.0), steps=5, guidance=2.0
    )
    noisy = sampling_of(own, setting("ddim:eta=1"), 6)
    assert (noisy.eta, noisy.steps, is_deterministic(noisy)) == (1.0, 6, False)
    assert is_deterministic(sampling_of(own, setting("lms:karras"), 6))


@pytest.mark.parametrize("text", ["ddim:uniform:3", "ddim:uniform:a:b", "ddim:eta=much"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=f"'{text}' is no setting: give sampler"):
        setting(text)


def test_the_default_plan_has_every_sampler_and_every_rule(trained: Trained) -> None:
    cells = plan(trained.experiment, options_of("samplers", "run"))
    found = {cell.sampling.sampler for cell in cells if cell.part == "samplers"}
    assert found == {"ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "plms", "lms"}
    rules = {cell.sampling.guide.rule.kind for cell in cells if cell.part == "guidance"}
    assert rules == {"classifier_free", "apg", "cfg_zero_star", "cfg_plus_plus"}
    assert len({cell.sampling.model_dump_json() for cell in cells if cell.part == "samplers"}) == 13 * 8


# --- finished cells are kept

FEW = ("--num", 1, "--no-distances", "--reference-steps", 8, "--samplers", "ddim", "ddpm", "--only", "samplers")


def sheets(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("samplers-*.json"))]


def test_finished_cells_are_not_measured_again(script: Scripts, reference: Path, tmp_path: Path) -> None:
    def call(*more: object) -> dict[str, Any]:
        done = script("benchmark", "samplers", reference, *FEW, "--out", tmp_path, *more)
        assert done.code == 0, done.err
        assert "solver error; calls, at most" in done.out
        return sheets(tmp_path)[0]["cells"]

    first = call("--calls", 2)
    both = call("--calls", 2, 4)
    assert [len(cells) for cells in (first, both)] == [2, 4]
    assert first.items() <= both.items()  # with their seconds
    assert [cell.get("solver_error", 0) > 0 for cell in both.values()] == [True, False, True, False]
    assert call("--calls", 4) == both
    script("benchmark", "samplers", reference, *FEW, "--out", tmp_path, "--checkpoint", "step-00000008", "--calls", 2)
    assert sorted(len(sheet["cells"]) for sheet in sheets(tmp_path)) == [2, 4]  # another checkpoint, another file


def test_an_interrupted_call_keeps_what_was_finished(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of("samplers", "run", *FEW, "--calls", 2, 4)
    cells, drawn = plan(trained.experiment, options), []

    def interrupted(*arguments: Any) -> Any:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return walk(*arguments)

    monkeypatch.setattr(samplers, "walk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        samplers.measure(trained, cells, tmp_path, options)
    assert len(sheets(tmp_path)[0]["cells"]) == 3
    monkeypatch.setattr(samplers, "walk", lambda *arguments: drawn.append(arguments) or walk(*arguments))
    samplers.measure(trained, cells, tmp_path, options)
    assert len(drawn) == 4
    assert len(sheets(tmp_path)[0]["cells"]) == 4


def test_a_setting_of_both_parts_has_its_error_where_it_was_asked_for(trained: Trained, tmp_path: Path) -> None:
    def errors(part: str) -> list[bool]:
        common = ("--num", 1, "--no-distances", "--reference-steps", 8, "--quick", "--at", "unipc_2", "--only", part)
        options = options_of("samplers", "run", *common, "--samplers", "unipc_2", "--guidance", 3)
        cells = plan(trained.experiment, options)
        same = [cell for cell in cells if (cell.sampling.steps, cell.sampling.guidance, cell.series) in SHARED]
        return ["solver_error" in figures for figures in samplers.measure(trained, same, tmp_path, options)[1]]

    assert [errors(part) for part in ("guidance", "samplers", "guidance")] == [[False], [True], [False]]
    assert [len(sheet["cells"]) for sheet in sheets(tmp_path)] == [1]


SHARED = {(10, 3.0, "plain"), (10, 3.0, "unipc_2")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quick_look_draws_a_little_of_both_parts(script: Scripts, reference: Path, tmp_path: Path) -> None:
    words = ("--quick", "--calls", 2, "--samplers", "ddim", "--guidance", 3, "--no-distances", "--out", tmp_path)
    done = script("benchmark", "samplers", reference, *words)
    assert done.code == 0, done.err
    (sheet,) = sheets(tmp_path)
    assert {cell["n"] for cell in sheet["cells"].values()} == {2 * samplers.QUICK_NUM}  # of either kind


def test_a_spoilt_sheet_is_left_alone(tmp_path: Path) -> None:
    path = Sheet(tmp_path, {"run": "a"}).path
    path.write_text("mine")
    with pytest.raises(BadData, match="holds no figures"):
        Sheet(tmp_path, {"run": "a"})
    assert Sheet(tmp_path, {"run": "b"}).path != path


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--num", 0), "--num 0: at least 2 prompts of each kind"),
        (("--num", 0, "--no-distances"), "--num 0: at least 1 prompts of each kind"),
        (("--seed", 0), "--seed 0 is the evaluation's"),
        (("--samplers", "eular"), "sampler settings: sampler: must be 'ddim'"),
        (("--page", "no/such.md"), "--page no/such.md cannot be read as text"),
    ],
)
def test_mistakes_are_told_with_their_remedy(
    script: Scripts, reference: Path, tmp_path: Path, arguments: tuple[object, ...], answer: str
) -> None:
    done = script("benchmark", "samplers", reference, *arguments, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert answer in done.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# --- tables and plots


def cells_and_figures() -> tuple[list[Cell], list[dict[str, Any]]]:
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
    places = [("ddim", 5, 0.25), ("ddim", 10, 0.125), ("ddpm", 5, None)]
    cells = [Cell("samplers", name, at, sampling(steps=at)) for name, at, _ in places]
    shared = {"n": 4, "seconds": 2.0, "evaluations": 9, "calls": 7, "accuracy": {"pair": share, "single": share}}
    return cells, [{**shared, **({"solver_error": error} if error else {})} for _, _, error in places]


def test_a_table_has_a_row_per_series_and_a_column_per_place() -> None:
    pairs = list(zip(*cells_and_figures(), strict=True))
    text = tables.table(pairs, "error", lambda figures: str(figures.get("solver_error", "")))
    assert text.splitlines() == ["| error | 5 | 10 |", "|---|---|---|", "| ddim | 0.25 | 0.125 |"]


def test_a_page_is_renewed_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    marks = [mark for part in tables.PARTS for mark in tables._marks(part)]
    path.write_text("before\n{}\nold\n{}\nbetween\n{}\nolder\n{}\nafter\n".format(*marks))
    for text in ("new", "newest"):
        tables.renew(path, {"samplers": text})
    assert path.read_text() == "before\n{}\n\nnewest\n\n{}\nbetween\n{}\nolder\n{}\nafter\n".format(*marks)
    path.write_text(marks[0])
    with pytest.raises(Refused, match="has no place for samplers: add the lines"):
        tables.read_page(path, tables.PARTS)


def test_the_page_of_the_project_has_room_for_all_parts() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "samplers.md"
    tables.read_page(page, (*tables.PARTS, combinations.PART))


def test_plots_are_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (path,) = plots.draw(*cells_and_figures(), tmp_path)
    assert (path.name, path.read_bytes()[:4]) == ("samplers.png", b"\x89PNG")


# --- combinations


@pytest.mark.slow
def test_every_combination_is_trained_drawn_and_laid_out_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "page.md", tmp_path / "runs"
    page.write_text("<!-- benchmark: combinations -->\n<!-- end of benchmark: combinations -->\n")
    words = (
        f"combinations --preset {TINY} --steps 2 --num 3 --at unipc_2:uniform --at-calls 4 --out {out} --page {page}"
    )
    benchmark.main(words.split())
    rows = [row.split(" | ") for row in page.read_text().splitlines() if row.startswith("| ")]
    assert rows[0][1:4] == ["ddpm:uniform 250", "ddim:uniform 20", "unipc_2:uniform 4"]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == list(combinations.COMBINATIONS)
    config = experiments.load(out / "linear_with_zero_terminal-v" / "config.yaml", [])
    assert (config.stage.schedule.kind, config.stage.parameterization.kind) == ("linear", "v")
    assert config.data.mixture == {"single": 1.0}

    figures = next((out / "flow-flow" / "benchmark").glob("*.json"))
    kept = json.loads(figures.read_text())
    for cell in kept["cells"].values():
        cell["right"] = 2 if cell["sampling"]["sampler"] == "ddim" else 3
        cell["readable"] = 3
    figures.write_text(json.dumps(kept))
    capsys.readouterr()
    benchmark.main(words.split())  # nothing is trained or drawn again: the figures are those of the file
    out = capsys.readouterr().out
    cells = "| flow, flow | 1.00 (0.44 - 1.00), 1.00 | 0.67 (0.21 - 0.94), 1.00 | 1.00 (0.44 - 1.00), 1.00 | 0.333 |"
    assert cells in out
    assert out.splitlines()[-1] == "bar: at most 0.05: missed"

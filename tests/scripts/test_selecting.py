"""The best of several pictures: candidates are the pictures that anybody can draw, and selection is what it says."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.pipeline import Request
from lab.errors import Refused
from lab.evaluation.best_of_n import Round, Selection
from lab.evaluation.prompt_accuracy import Verdict
from lab.images import from_uint8, read_image, read_metadata, to_uint8
from scripts.assembly import drawing, saved
from scripts.interface import gallery
from scripts.selection import judges, selecting, selection_curve
from scripts.selection.selecting import Plan, Selector
from tests.faults import TINY_SCORER, Done, Scripts

PROMPT, OTHER = "a red circle above a blue square", "a green ring"


def by_red(image: Tensor, prompt: str) -> Verdict:
    """A judge that sees something in noise: of ten attributes so many are right as there is red on average."""
    red = int((image[0].mean().item() + 1) * 500) % 11
    return Verdict(red >= 6, {str(k): k < red for k in range(10)})


@pytest.fixture
def selector(reference: Path, monkeypatch: pytest.MonkeyPatch) -> Selector:
    monkeypatch.setattr(judges, "judge", by_red)
    monkeypatch.setattr(selection_curve, "judge", by_red)
    trained = drawing.trained(reference)
    sampling = drawing.sampling(trained.experiment, {"steps": 4, "chunk": 8})
    return Selector(trained, 5, sampling, Plan(8, judges.read("prompt_accuracy"), (Round(2, 0.5),)), lambda: None)


def drawn(selector: Selector, prompt: str, n: int) -> Tensor:
    requests = [Request(prompt, number) for number in range(n)]
    return from_uint8(to_uint8(torch.cat(list(selector.trained.pipeline.draw(requests, 5, selector.sampling)))))


def test_the_curve_is_brute_force(selector: Selector, tmp_path: Path) -> None:
    prompts = [PROMPT, OTHER, "a blue ring"]
    found = selection_curve.quality(selector, prompts, [1, 2, 8], None, tmp_path)
    verdicts = [[by_red(image, prompt) for image in drawn(selector, prompt, 8)] for prompt in prompts]
    whole = [point for point in found["curve"] if not point["is_halved"]]
    assert [point["n"] for point in whole] == [1, 2, 8]
    for point in whole:
        best = [max(own[: point["n"]], key=lambda verdict: verdict.agreement) for own in verdicts]
        assert point["value"] == sum(verdict.right for verdict in best) / 3
        assert point["score"] == pytest.approx(sum(verdict.agreement for verdict in best) / 3)
        assert point["steps"] == 4 * point["n"]
    halved = [point for point in found["curve"] if point["is_halved"]]
    assert [point["steps"] for point in halved] == [4, 6, 24]
    assert all(point["score"] <= twin["score"] for point, twin in zip(halved, whole, strict=True))
    selected = [each.scores[each.ranking[0]][4] for each in selector.draw([Request(prompt) for prompt in prompts])]
    assert halved[-1]["score"] == pytest.approx(sum(selected) / 3)  # the replay is what giving up really selects
    (gain,) = [gain for gain in found["gains"] if gain["n"] == 8]
    values = {(point["n"], point["is_halved"]): point["value"] for point in found["curve"]}
    assert gain["lost"] == pytest.approx(values[8, False] - values[8, True])
    if gain["ratio"]:
        gains = [values[8, is_halved] - values[1, False] for is_halved in (True, False)]
        assert gain["ratio"]["value"] == pytest.approx(gains[0] / gains[1])
    (plot,) = selection_curve.plots(found)
    assert [list(line.x) for line in plot.lines] == [[4, 8, 32], [4, 6, 24]]
    text = selection_curve.table(found, 3)
    assert "warning: selected and judged by the same verifier" in text
    assert "best of 8 with 75% of the steps loses" in text
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert selection_curve.quality(selector, prompts, [1, 2, 8], None, tmp_path) == found
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept


def test_what_was_selected_before_an_interruption_is_kept(
    selector: Selector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, honest = [Request(PROMPT), Request(OTHER)], Selector.draw
    asked: list[str] = []

    def draw(self: Selector, wanted: list[Request]) -> list[Selection]:
        asked.extend(request.prompt for request in wanted)
        if asked == [PROMPT, OTHER]:
            raise KeyboardInterrupt
        return honest(self, wanted)

    monkeypatch.setattr(selecting, "PROMPTS_AT_ONCE", 1)
    monkeypatch.setattr(Selector, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        selecting.sample(selector, requests, 1, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 1
    pictures, _ = selecting.sample(selector, requests, 1, tmp_path)
    assert asked == [PROMPT, OTHER, OTHER]
    assert [picture.request.prompt for picture in pictures] == [PROMPT, OTHER]


def test_the_best_are_kept_with_all_scores(selector: Selector, tmp_path: Path) -> None:
    requests = [Request(PROMPT), Request(OTHER)]
    pictures, told = selecting.sample(selector, requests, 2, tmp_path)
    assert told == "the best 2 of 8 by prompt_accuracy: 24 of 32 steps per prompt (75%), 4 for a single picture"
    (file,) = tmp_path.glob("best-*.json")
    record = json.loads(file.read_text())
    assert [each["prompt"] for each in record["candidates"]] == [PROMPT, OTHER]
    for position, picture in enumerate(pictures):
        item, rank = divmod(position, 2)
        prompt, number = picture.request.prompt, picture.request.number
        scores = record["candidates"][item]["scores"]
        assert len(scores) == 8
        finished = sorted(range(8), key=lambda k: (-scores[k].get("4", -1.0), k))
        assert number == finished[rank]
        assert torch.equal(read_image(tmp_path / picture.name), drawn(selector, prompt, 8)[number])
        recipe = json.loads(read_metadata(tmp_path / picture.name)["recipe"])
        selected = {"best_of": 8, "scorer": "prompt_accuracy", "rounds": [[2, 0.5]], "rank": rank}
        assert recipe["selected"] == {**selected, "score": scores[number]["4"]}
        assert recipe["number"] == number
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    again, _ = selecting.sample(selector, requests, 2, tmp_path)
    assert [picture.name for picture in again] == [picture.name for picture in pictures]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == before
    (tmp_path / pictures[0].name).unlink()
    selecting.sample(selector, requests, 2, tmp_path)
    assert (tmp_path / pictures[0].name).exists()


def test_judges_add_up_with_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "judge", by_red)
    images = torch.linspace(-0.5, 0.5, 6).reshape(6, 1, 1, 1).expand(6, 3, 4, 4)
    alone = judges.read("prompt_accuracy").score([PROMPT])(images, [0] * 6)
    assert len(set(alone)) > 1
    both = judges.read("prompt_accuracy=2,readable=0.5").score([PROMPT])(images, [0] * 6)
    assert both == pytest.approx([2 * value + 0.5 for value in alone])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (
            ("--best-of", 4, "--reject", "3:0.5"),
            "--best-of 4 with --reject: rounds must increase and lie between step 1 and 2",
        ),
        (("--best-of", 4, "--reject", "half"), "--reject half: must read STEP:SHARE, as in 6:0.5"),
        (("--best-of", 4, "--scorer", "clip"), "--scorer clip: there are prompt_accuracy, readable"),
        (("--best-of", 4, "--scorer", "readable=much"), "--scorer readable=much: the weight must be a number"),
        (("--best-of", 4, "--num", 3, "--reject", "1:0.5"), "--num 3: of 4 candidates only 2 are finished"),
        (("--best-of", 4, "--reject", "1:0.5", "--sampler", "unipc_2"), "unipc_2 cannot be paused"),
    ],
)
def test_mistakes_are_told_with_their_remedy(
    script: Scripts, reference: Path, tmp_path: Path, arguments: tuple[object, ...], answer: str
) -> None:
    done = script("sample", reference, PROMPT, *arguments, "--out", tmp_path / "out")
    assert done.code == 2
    assert answer in done.err.splitlines()[-1]
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_prompt_that_the_verifier_cannot_judge(script: Scripts, reference: Path, tmp_path: Path) -> None:
    done = script("sample", reference, "a dog", "--best-of", 4, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert "a dog" in done.err.splitlines()[-1]
    assert "best of" not in done.err  # nothing was drawn


def test_from_the_command_line(script: Scripts, reference: Path, tmp_path: Path) -> None:
    drawn = script("sample", reference, PROMPT, "--best-of", 4, "--reject", "1:0.5", "--out", tmp_path / "out")
    assert drawn.code == 0, drawn.err
    assert "the best 1 of 4 by prompt_accuracy: 8 of 12 steps per prompt (67%)" in drawn.out
    arguments = ("evaluate", reference, "--best-of", "1,2", "--num", 10, "--json", tmp_path / "curve.json")
    done: Done = script(*arguments)
    assert done.code == 0, done.err
    assert [point["n"] for point in json.loads((tmp_path / "curve.json").read_text())["curve"]] == [1, 2]
    assert "warning: selected and judged by the same verifier" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "curve.png", "out"]
    refused = script("evaluate", reference, "--best-of", "4,2", "--num", 10)
    assert "--best-of 4,2: must be increasing numbers of candidates" in refused.err.splitlines()[-1]


def test_sizes_are_read() -> None:
    assert selecting.read_sizes("1,2,16") == [1, 2, 16]
    for text in ("", "0,1", "2,2", "a"):
        with pytest.raises(Refused, match="--best-of"):
            selecting.read_sizes(text)


@pytest.fixture(scope="module")
def scorer_run(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer that was trained a few steps."""
    run = tmp_path_factory.mktemp("scorer") / "run"
    done = script("train", TINY_SCORER, "train.preview_every=0", "--run", run)
    assert done.code == 0, done.err
    return run


def test_a_trained_scorer_selects_and_its_checkpoint_stands_in_the_recipe(
    script: Scripts, reference: Path, scorer_run: Path, tmp_path: Path
) -> None:
    arguments = ("--best-of", 4, "--scorer", scorer_run, "--out", tmp_path / "out")
    done = script("sample", reference, PROMPT, "a dog that no verifier knows", *arguments)
    assert done.code == 0, done.err
    assert f"the best 1 of 4 by {scorer_run}" in done.out
    found = saved.read(scorer_run)
    by = judges.trained(found)
    record = json.loads(next((tmp_path / "out").glob("best-*.json")).read_text())
    for candidates, recipe in zip(record["candidates"], record["pictures"], strict=True):
        assert recipe["selected"]["judges"] == {str(scorer_run): dict(found.origin)}
        scores = [each["3"] for each in candidates["scores"]]
        assert len(set(scores)) == 4
        assert recipe["number"] == scores.index(max(scores))
        (path,) = (tmp_path / "out").glob(f"{recipe['number']:04d}-{gallery.digest(recipe)}.png")
        cosine = by.cosines(read_image(path)[None], [recipe["prompt"]])
        assert cosine.item() == pytest.approx(max(scores), abs=1e-5)


def test_who_selects_and_who_judges_are_told_apart(
    script: Scripts, reference: Path, scorer_run: Path, tmp_path: Path
) -> None:
    words = ("evaluate", reference, "--best-of", "1,2", "--num", 4, "--scorer", scorer_run)
    done = script(*words, "--json", tmp_path / "verifier.json")
    assert done.code == 0, done.err
    assert "judged by the verifier" in done.out
    assert "warning: selected" not in done.out
    done = script(*words, "--judge", scorer_run, "--json", tmp_path / "same.json")
    assert done.code == 0, done.err
    assert "warning: selected and judged by the same scorer" in done.out
    found = json.loads((tmp_path / "same.json").read_text())
    for point in found["curve"]:
        assert point["value"] == pytest.approx(point["score"])  # the judge is the scorer
        assert point["low"] < point["value"] < point["high"]
    refused = script("evaluate", reference, "--judge", "prompt_accuracy")
    assert "--judge goes with --best-of N,N" in refused.err.splitlines()[-1]


def test_the_run_of_something_else_is_no_scorer(script: Scripts, reference: Path, tmp_path: Path) -> None:
    done = script("sample", reference, PROMPT, "--best-of", 2, "--scorer", reference, "--out", tmp_path / "out")
    assert done.code == 2
    assert "trains no scorer: name a run with stage.kind=scorer" in done.err.splitlines()[-1]

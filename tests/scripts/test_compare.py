"""scripts/compare.py: two questions that are never mixed, a list, and a page; the evaluations are made up."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from lab.errors import BadData, Refused
from lab.evaluation import outcomes
from lab.evaluation.compare import hierarchical, mcnemar
from lab.evaluation.prompt_accuracy import Verdict
from lab.images import save_png
from lab.rundir import RunDir
from scripts import compare
from scripts.assembly import experiments
from tests.faults import TINY, Scripts

NUM = 60
KINDS = {"pair": 2 * NUM, "single": NUM}


def make(
    path: Path,
    settings: Sequence[str] = (),
    *,
    share: float = 0.5,
    step: int = 9,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Make a run with an evaluation in which about a share of the prompts is right."""
    experiment = experiments.load(TINY, settings)
    if not RunDir.is_run(path):
        with RunDir.create(path, experiment) as run:
            run.rewind(None)
            for k in range(1, 4):
                run.log(3 * k, 18 * k, {"train/loss": 1 / k})
            run.set_status("finished", step, 6 * step)
    rng = np.random.default_rng(experiment.seed + round(1000 * share))
    prompts = {kind: [f"{kind} <{k}>" for k in range(num)] for kind, num in KINDS.items()}
    answers = {kind: rng.random(num) < share for kind, num in KINDS.items()}
    verdicts = {
        kind: [
            Verdict(
                bool(is_right),
                {"count": True, "colour": bool(is_right), **({"relation": True} if kind == "pair" else {})},
            )
            for is_right in right
        ]
        for kind, right in answers.items()
    }
    figures = {
        "origin": {"run": RunDir.view(path).run_id, "checkpoint": f"c{step}", "weights": "ema"},
        "trained": {"step": step, "seen": 6 * step, "seconds": 90.0},
        "sampling": experiment.stage.model_dump(mode="json")["sampling"],
        "prompts": {"seed": 0, "hash": "same"},
        "prompt_accuracy": {kind: {"value": float(right.mean()), "n": len(right)} for kind, right in answers.items()},
        **(changes or {}),
    }
    file = path / f"evaluation-{step:020d}.json"
    outcomes.write(outcomes.path_of(file), prompts, verdicts)
    for index in range(2):
        save_png(outcomes.picture_of(file, "pair", index), torch.full((3, 16, 16), 2 * share - 1))
    file.write_text(json.dumps(figures))
    return path


def right(run: Path, kind: str = "pair") -> np.ndarray:
    (file,) = run.glob("evaluation-*.json")
    return np.array([line["right"] for line in outcomes.read(outcomes.path_of(file))[kind]])


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert compare.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return re.split(r"  +", line)


@pytest.fixture
def groups(tmp_path: Path) -> dict[str, list[Path]]:
    """Three runs of each of two configurations; those of b are right more often."""
    return {
        name: [make(tmp_path / f"{name}-{seed}", [f"seed={seed}", *own], share=share) for seed in (1, 2, 3)]
        for name, own, share in (("a", [], 0.4), ("b", ["train.optimizer.rate=1e-3"], 0.7))
    }


def test_two_checkpoints_are_compared_prompt_by_prompt(
    groups: dict[str, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = groups["a"][0], groups["b"][0]
    text, expected = told(capsys, a, b), mcnemar(right(a), right(b))
    assert text.startswith("Do these two checkpoints differ?")
    cells = row(text, "pair")
    assert cells[1:4] == [f"{right(a).mean():.3f}", f"{right(b).mean():.3f}", f"{expected.difference:+.3f}"]
    assert cells[5:] == [str(expected.only_a), str(expected.only_b), f"{expected.p_value:.2g}", "120"]
    assert "differs: train.optimizer.rate: 0.002 -> 0.001" in text
    assert f"On pair, checkpoint B is better than checkpoint A by {expected.difference:.3f}" in text
    assert "We cannot tell from one run each" in text
    assert re.search(
        r"at least this many runs of each:\n +\d+ if runs of one configuration spread by 0.01; \d+ if", text
    )
    assert "configuration B is better" not in text


def test_scores_are_compared_by_swaps_and_attributes_by_name(
    groups: dict[str, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = groups["a"][0], groups["b"][0]
    text = told(capsys, *runs, "--what", "agreement")
    assert "p (paired permutation)" in text
    assert float(row(text, "pair")[1]) == pytest.approx((2 + right(runs[0]).mean()) / 3, abs=5e-4)
    text = told(capsys, *runs, "--what", "relation")
    assert row(text, "pair")[1:4] == ["1.000", "1.000", "+0.000"]
    assert not any(line.startswith("single") for line in text.splitlines())  # which states no relation


def test_two_configurations_are_compared_by_runs(
    groups: dict[str, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (np.stack([right(run) for run in groups[name]]) for name in "ab")
    for flags, is_paired in (([], True), (["--unpaired"], False)):
        text = told(capsys, "--a", *reversed(groups["a"]), "--b", *groups["b"], *flags)
        expected = hierarchical(a, b, is_paired=is_paired)
        cells = row(text, "pair")
        assert cells[3:6] == [
            f"{expected.difference:+.3f}",
            f"[{expected.low:+.3f}, {expected.high:+.3f}]",
            f"{expected.p_value:.2g}",
        ]
        assert text.startswith("Is configuration B better than A?  The unit is the training run.")
        assert ("compared pair by pair, by seed" in text) == is_paired
        assert "3 run(s), seeds 1, 2, 3" in text
        assert "The smallest difference that 3 runs each find with 80 % power is" in text
        assert "On pair, configuration B is better than configuration A" in text
        assert "checkpoint" not in text


def test_with_fewer_runs_it_says_how_many_it_takes(
    groups: dict[str, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "--a", groups["a"][0], "--b", groups["b"][0])
    assert "We cannot tell from one run each" in text
    assert "B - A" not in text
    text = told(capsys, "--a", *groups["a"][:2], "--b", *groups["b"])
    assert "We cannot tell from 2 runs each" in text
    sizes = re.findall(r"(\d+) if runs", text)
    assert [int(size) for size in sizes] == sorted(int(size) for size in sizes)


def test_no_difference_is_not_called_equality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [
        [make(tmp_path / f"{name}{seed}", [f"seed={seed}"], share=0.5) for seed in seeds]
        for name, seeds in (("a", (1, 2, 3)), ("b", (4, 5, 6)))
    ]
    text = told(capsys, "--a", *sides[0], "--b", *sides[1])
    assert "no difference between configuration A and configuration B was found" in text
    assert "That is not to say that there is none: with 3 runs each, one below 0." in text
    assert "compared without pairs" in text


def test_nothing_right_anywhere_is_no_certainty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make(tmp_path / f"r{seed}", [f"seed={seed}"], share=0.0) for seed in range(6)]
    text = told(capsys, "--a", *runs[:3], "--b", *runs[3:])
    assert "every run has the same outcome on each prompt: nothing can be told apart" in text


def test_the_newest_checkpoint_and_the_runs_own_settings_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", share=0.6, step=9)
    make(a, step=6, share=0.1)
    text = told(capsys, a, b)
    assert "a, step 9" in text
    old = a / f"evaluation-{6:020d}.json"
    assert "a, step 6" in told(capsys, old, b)  # a file that is named is taken
    sampling = experiments.load(TINY, []).stage.model_dump(mode="json")["sampling"]
    other = make(tmp_path / "c", changes={"sampling": {**sampling, "guidance": 7.0}})
    assert "differs in how pictures were drawn: guidance: 2.0 -> 7.0" in told(capsys, a, other)
    later = make(tmp_path / "d", changes={"origin": {"weights": "ema", "drawing": "1"}})
    assert "differs in how pictures were drawn: the code's revision: 0 -> 1" in told(capsys, a, later)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"prompts": {"seed": 0, "hash": "other"}}, "were not evaluated on the same prompts"),
        ({"prompts": {"seed": 1, "hash": "same"}}, "were not evaluated on the same prompts"),
        ({"origin": {"run": "x", "checkpoint": "c", "weights": "raw"}}, "on the same weights (--weights ema and raw)"),
    ],
)
def test_what_was_asked_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], answer: str) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", changes=changes)
    with pytest.raises(Refused) as refused:
        compare.main([str(a), str(b)])
    assert answer in str(refused.value)
    assert f"as in python scripts/evaluate.py {b} --num {NUM} --weights ema" in str(refused.value)


def test_runs_of_a_side_must_be_of_one_configuration(groups: dict[str, list[Path]], tmp_path: Path) -> None:
    a, b = groups["a"], groups["b"]
    twin = make(tmp_path / "twin", ["seed=1"])
    short = make(tmp_path / "short", ["seed=9"], step=4)
    for side, answer in (
        ([*a[:2], b[2]], "are not runs of one configuration (train.optimizer.rate: 0.002 -> 0.001)"),
        ([*a, twin], "both have seed 1: a run counts once"),
        ([*a, short], "was evaluated at step 9 and"),
    ):
        with pytest.raises(Refused) as refused:
            compare.main(["--a", *map(str, side), "--b", *map(str, b)])
        assert answer in str(refused.value)


def test_an_evaluation_without_outcomes_or_spoilt(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    (file,) = b.glob("evaluation-*.json")
    kept = outcomes.path_of(file).read_text()
    outcomes.path_of(file).write_text(kept[: len(kept) // 2])
    with pytest.raises(BadData, match=r"holds no outcomes .* delete it, and evaluate again"):
        compare.main([str(a), str(b)])
    outcomes.path_of(file).unlink()
    with pytest.raises(Refused, match=r"make one: python scripts/evaluate.py .*b$"):
        compare.main([str(a), str(b)])
    outcomes.path_of(file).write_text(kept)
    file.write_text("{}")
    with pytest.raises(BadData, match=r"holds no figures of scripts/evaluate.py"):
        compare.main([str(a), str(b)])


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--kind", "triple"], "--kind triple: "),
        (["--what", "taste"], "--what taste: pair has right, readable, agreement, colour, count, relation"),
        (["--kind", "single", "--what", "relation"], "--what relation: single has"),
    ],
)
def test_what_was_not_judged(groups: dict[str, list[Path]], flags: list[str], answer: str) -> None:
    with pytest.raises(Refused) as refused:
        compare.main([str(groups["a"][0]), str(groups["b"][0]), *flags])
    assert answer in str(refused.value)


def test_the_command_line(script: Scripts, tmp_path: Path) -> None:
    done = script("compare", tmp_path)
    assert done.code == 2
    assert "name two runs, or --a RUNS --b RUNS for two configurations, or --list FOLDER" in done.err
    done = script("compare", tmp_path, tmp_path)
    assert done.code == 2
    assert f"{tmp_path}: is not a run directory" in done.err
    assert "These are two questions" in script("compare", "--help").out


def test_runs_are_listed_sorted_and_filtered(
    groups: dict[str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a-1", "a-2", "a-3", "b-1", "b-2", "b-3"]
    text = told(capsys, "--list", tmp_path)
    assert [line.split()[0] for line in text.splitlines()] == ["name", *names, "6"]
    header, first = (re.split(r"  +", line) for line in text.splitlines()[:2])
    columns = dict(zip(header, first, strict=True))
    assert columns["pair"] == f"{right(groups['a'][0]).mean():.3f}"
    assert (columns["state"], columns["step"], columns["minutes"], columns["kernel"]) == ("finished", "9", "1.500", "-")
    text = told(
        capsys, "--list", tmp_path, "--sort", "pair", "--reverse", "--where", "train.optimizer.rate=1e-3", "seed>1"
    )
    shares = {run.name: right(run).mean() for run in groups["b"][1:]}
    assert [line.split()[0] for line in text.splitlines()[1:-1]] == sorted(shares, key=lambda name: -shares[name])
    assert text.splitlines()[-1] == "2 of 6 runs"
    assert "train.optimizer.rate" in text.splitlines()[0]
    assert "0 of 6 runs" in told(capsys, "--list", tmp_path, "--where", "text.kind=t5")
    for words, answer in (
        (["--where", "pair"], "--where 'pair': must read column=value"),
        (["--sort", "pear"], "no run has pear; did you mean pair?"),
        (["--where", "train.btach=3"], "no run has train.btach; did you mean train.batch?"),
    ):
        with pytest.raises(Refused) as refused:
            compare.main(["--list", str(tmp_path), *words])
        assert answer in str(refused.value)
    with pytest.raises(Refused, match="no run below it"):
        compare.main(["--list", str(tmp_path / "a-1" / "previews")])


class Page(HTMLParser):
    """Checks that tags are balanced, and collects links, sources and text."""

    VOID = ("meta", "img", "input", "br", "line", "circle", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_complete_in_itself(
    groups: dict[str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.html"
    answer = told(capsys, "--a", *groups["a"], "--b", *groups["b"], "--report", file)
    text = file.read_text(encoding="utf-8")
    page, words = Page(text), " ".join(Page(text).words)
    assert len(page.sources) == 3 * 2 * 2  # three pairs of runs, two prompts, two sides
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "train.optimizer.rate" in words
    assert answer.split("\n\n")[-2].splitlines()[0] in words  # the verdict
    assert "pair <0>" in words  # what comes from outside is escaped
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 2  # intervals and the loss
    for drawing in drawings:
        numbers = [float(n) for n in re.findall(r'(?:x|y|x1|x2|y1|y2|cx|cy)="([-\d.]+)"', drawing)]
        assert ElementTree.fromstring(drawing).tag == "svg"
        assert all(0 <= number <= 600 for number in numbers)
    assert drawings[1].count("<polyline") == 6
    with pytest.raises(Refused, match=r"report.html exists: name another file"):
        compare.main(["--a", *map(str, groups["a"]), "--b", *map(str, groups["b"]), "--report", str(file)])


def test_the_page_of_two_checkpoints(groups: dict[str, list[Path]], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert compare.main([str(groups["a"][0]), str(groups["b"][0]), "--report", str(file)]) == 0
    page = Page(file.read_text(encoding="utf-8"))
    assert len(page.sources) == 4
    assert "Do these two checkpoints differ?" in " ".join(page.words)


PROBE = """<script>
const images = document.querySelector(".pair").querySelectorAll("img"), root = document.documentElement, widths = [];
for (const image of [null, images[0], images[1]]) { image?.click(); widths.push(images[0].offsetWidth); }
document.title = JSON.stringify({inner: innerWidth, needed: root.scrollWidth, widths});
</script>"""


@pytest.mark.real
@pytest.mark.parametrize("width", [1280, 480])
def test_in_a_browser_a_click_enlarges_a_pair_and_the_next_takes_it_back(
    groups: dict[str, list[Path]], tmp_path: Path, width: int
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    file = tmp_path / "report.html"
    assert compare.main(["--a", *map(str, groups["a"]), "--b", *map(str, groups["b"]), "--report", str(file)]) == 0
    file.write_text(file.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900")
    done = subprocess.run([browser, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, check=True)
    found = json.loads(re.findall("<title>(.*?)</title>", done.stdout)[0])
    assert found["needed"] <= found["inner"] <= width + 40
    before, enlarged, after = found["widths"]
    assert enlarged > 2 * before == 2 * after > 0

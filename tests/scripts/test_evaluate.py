"""scripts/evaluate.py: figures that can be had again."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.pipeline import Request
from lab.data.shapes import Preset, ShapesConfig, prompts
from lab.data.shapes_captions import parse
from lab.data.shapes_render import render
from lab.data.shapes_scene import draw
from lab.evaluation import outcomes
from lab.evaluation.prompt_accuracy import judge
from lab.images import read_image
from scripts.evaluation import measure
from tests.faults import TINY, Scripts

KINDS = ["pair", "pair_heldout_combinations", "pair_heldout_phrasings", "single"]


def test_figures_name_what_they_are_of_and_come_out_the_same_again(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    for name in "ab":
        done = script("evaluate", reference, "--num", 3, "--no-distances", "--json", tmp_path / f"{name}.json")
        assert done.code == 0, done.err
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["origin"].keys() == {"run", "checkpoint", "weights", "drawing"}
    assert figures["sampling"]["steps"] == 3
    assert figures["prompts"].keys() == {"seed", "hash"}
    assert list(figures["prompt_accuracy"]) == KINDS
    for kind, share in figures["prompt_accuracy"].items():
        assert share["n"] == (6 if kind == "pair" else 3)
        assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
    assert figures["diversity"].keys() == {"prompt", "position", "size", "ground"}
    assert "distances" not in figures
    assert all(kind in done.out for kind in KINDS)
    kept = {kind: outcomes.read(tmp_path / "a.outcomes.jsonl")[kind] for kind in KINDS}
    for kind, lines in kept.items():
        assert [line["prompt"] for line in lines] == list(prompts(kind, len(lines), 0))
        assert sum(line["right"] for line in lines) / len(lines) == figures["prompt_accuracy"][kind]["value"]
        for index, line in enumerate(lines):
            verdict = judge(read_image(tmp_path / "a.pictures" / f"{kind}-{index:04d}.png"), line["prompt"])
            assert asdict(verdict) == {name: line[name] for name in ("right", "attributes", "problem")}


def test_prompts_in_disorder_are_judged_by_what_was_meant() -> None:
    heard: list[str] = []

    def drawn(requests: Sequence[Request], what: str) -> Tensor:
        heard.extend(request.prompt for request in requests)
        rng = np.random.Generator(np.random.Philox(0))
        return torch.stack([torch.from_numpy(render(draw(parse(text), rng), 32)) for text in prompts("single", 8, 0)])

    found = measure._in_disorder("single", 8, drawn, lambda: None)
    assert (found["value"], found["n"]) == (1, 8)
    meant = prompts("single", 8, 0)
    assert [sorted(text.split()) for text in heard] == [sorted(text.split()) for text in meant]
    assert sum(one != other for one, other in zip(heard, meant, strict=True)) >= 6


def test_only_what_is_asked_for_is_measured(script: Scripts, reference: Path, tmp_path: Path) -> None:
    done = script("evaluate", reference, "--num", 2, "--metrics", "word_order", "--json", tmp_path / "a.json")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "a.json").read_text())
    assert {kind: share["n"] for kind, share in figures["word_order"].items()} == {"pair": 4, "single": 2}
    assert figures["prompt_accuracy"] == {}
    assert "diversity" not in figures
    assert "single, words in disorder" in done.out


def test_prompts_of_other_lists_are_measured_where_they_are_named(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    done = script(
        *("evaluate", reference, "--num", 2, "--metrics", "prompt", "--kinds", "full,pair_heldout_phrasings,full"),
        *("--json", tmp_path / "a.json"),
    )
    assert done.code == 0, done.err
    shares = json.loads((tmp_path / "a.json").read_text())["prompt_accuracy"]
    assert {kind: share["n"] for kind, share in shares.items()} == {"full": 2, "pair_heldout_phrasings": 2}
    assert [line["prompt"] for line in outcomes.read(tmp_path / "a.outcomes.jsonl")["full"]] == [*prompts("full", 2, 0)]


@pytest.mark.parametrize(
    ("mixture", "more"), [({"single": 0.5, "ordered": 1.0}, []), ({"full": 0.5, "count": 0.0, "pair": 0.5}, ["full"])]
)
def test_a_run_is_asked_what_it_trains_on(mixture: dict[Preset, float], more: list[str]) -> None:
    assert [*measure.kinds_of(ShapesConfig(mixture=mixture), None)] == [*KINDS, *more]


def test_the_same_figures_are_not_measured_twice_and_no_file_is_overwritten(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    arguments = ("evaluate", run, "--num", 2, "--no-distances")
    first, again, other = script(*arguments), script(*arguments), script(*arguments, "--guidance", 1.5)
    assert (first.code, again.code, other.code) == (0, 0, 0)
    assert again.out == first.out
    assert "picture" not in again.err  # no progress bar: nothing was drawn
    assert len(list(run.glob("evaluation-*.json"))) == len(list(run.glob("evaluation-*.outcomes.jsonl"))) == 2
    (tmp_path / "mine.json").write_text("mine")
    refused = script(*arguments, "--json", tmp_path / "mine.json")
    assert refused.code == 2
    assert "mine.json exists: name another file" in refused.err
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_figures_of_networks_from_a_folder_say_what_they_are_of(
    script: Scripts, reference: Path, encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    command = ("evaluate", reference, "--num", 10, "--metrics", "clip,cmmd", "--clip", encoder_folder("clip"))
    places = ("--cache", tmp_path / "cache", "--json", tmp_path / "a.json")
    done = script(*command, *places)
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "a.json").read_text())
    (score,), (distance,) = figures["clip"], figures["distances"]
    assert score["name"] == "clip_score (clip-16x1-16-32)"
    assert distance["name"].startswith("kernel distance (rbf, median bandwidth of the reference set)")
    for figure in (score, distance):
        assert (figure["n"], figure["resize"]) == (20, "bicubic, antialiased, 32")
        assert len(figure["weights_sha256"]) == len(figure["reference_sha256"]) == 64
        assert figure["name"] in done.out
    assert figures["prompt_accuracy"] == {}
    assert not (tmp_path / "a.outcomes.jsonl").exists()
    assert [path.name for path in (tmp_path / "cache").glob("*/*.safetensors")]  # of the renders alone
    assert not list(tmp_path.glob("*.drawn"))


@pytest.mark.slow
def test_distances_come_with_their_extractor_and_n(script: Scripts, reference: Path, tmp_path: Path) -> None:
    assert script("evaluate", reference, "--num", 10, "--json", tmp_path / "a.json", "--cache", tmp_path).code == 0
    figures = json.loads((tmp_path / "a.json").read_text())
    assert [figure["name"].split()[0] for figure in figures["support"]] == [
        "precision",
        "recall",
        "density",
        "coverage",
    ]
    for figure in figures["distances"]:
        assert figure["n"] == 20
        assert "efficientnet-lite0" in figure["name"]
        assert {"weights_sha256", "resize", "reference_sha256", "low", "high"} <= figure.keys()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--num", 1, "--no-distances"), "--num 1: at least 2 prompts per kind"),
        (("--metrics", "prompt,fidd"), "--metrics fidd: no such metric; did you mean fid?; known are prompt, "),
        (("--kinds", "pair,fulll", "--no-distances"), "no prompts of kind 'fulll'; known are single, ordered, pair, "),
        (("--kinds", "full", "--metrics", "diversity"), "--kinds says which prompts are judged, and --metrics leaves"),
        (("--kinds", "full", "--best-of", "1,2"), "--kinds are prompt lists of the Shapes, for runs that draw them"),
        (("--metrics", "memorization"), "the Shapes are drawn anew for every sample"),
        (("--metrics", "fid", "--no-distances"), "--no-distances leaves nothing of --metrics"),
        (
            ("--metrics", "fid", "--inception", "no.pth"),
            "the weights of inception-v3 are not at no.pth: fetch https://",
        ),
        (("--metrics", "cmmd"), "--metrics clip and cmmd need a CLIP, named with --clip: name a folder"),
        (("--metrics", "fd_dinov2"), "--metrics fd_dinov2 needs the weights of DINOv2: give --dinov2 a folder"),
        (("--metrics", "clip", "--clip", "nobody/nothing"), "--clip=nobody/nothing: neither a folder here nor in"),
        (("--num", 9), "--num 9: at least 10 prompts per kind, or 2 with --no-distances"),
        (("--sampler", "eular", "--no-distances"), "sampler settings: sampler: "),
        (("--checkpoint", "step-00000077", "--no-distances"), "no checkpoint step-00000077 there"),
    ],
)
def test_mistakes_are_told_with_their_remedy(
    script: Scripts, reference: Path, arguments: tuple[object, ...], answer: str
) -> None:
    done = script("evaluate", reference, *arguments)
    assert (done.code, done.out) == (2, "")
    assert answer in done.err.splitlines()[-1]
    assert not list(reference.glob("evaluation*"))


def test_a_malicious_file_of_weights_is_not_opened(script: Scripts, reference: Path, tmp_path: Path) -> None:
    file, flag = tmp_path / "pt_inception-2015-12-05-6726825d.pth", tmp_path / "flag"
    torch.save({"conv": Flag(flag)}, file)
    done = script("evaluate", reference, "--metrics", "fid", "--inception", file)
    assert done.code == 2
    assert "is not the published file of weights" in done.err.splitlines()[-1]
    assert not flag.exists()


class Flag:
    """What a malicious pickle does when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_folder_that_is_no_run(script: Scripts, tmp_path: Path) -> None:
    done = script("evaluate", tmp_path, "--no-distances")
    assert done.code == 2
    assert "is not a run directory" in done.err


def test_a_run_with_its_channels_last_in_memory_is_evaluated_too(script: Scripts, tmp_path: Path) -> None:
    """As most runs are: the layout that measures faster is chosen when a run starts."""
    quick = ("train.steps=2", "train.preview_every=0", "runtime.channels_last=true")
    assert script("train", TINY, *quick, "--run", tmp_path / "run").code == 0
    done = script("evaluate", tmp_path / "run", "--num", 2, "--no-distances")
    assert done.code == 0, done.err

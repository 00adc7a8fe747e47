"""CLIP of random weights: what open_clip says of pictures and captions, scores by hand, and captions that are cut."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lab.errors import Refused
from lab.evaluation import clip_score as module
from lab.evaluation.clip_score import Clip, clip_score
from lab.evaluation.features import extract
from lab.evaluation.figure import CLIP
from tests.encoders import CAPTIONS
from tests.lab.evaluation.test_features import images

LONG = "a red circle above a blue square and " * 6  # 50 tokens with start and end, and the tiny CLIP reads 40


@pytest.fixture(scope="module")
def folder(encoder_folder: Callable[[str], Path]) -> str:
    return str(encoder_folder("clip"))


@pytest.fixture(scope="module")
def clip(folder: str) -> Clip:
    return Clip(folder)


def test_features_are_those_of_open_clip(folder: str, clip: Clip) -> None:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    x = images(3, 0, size=32)  # of the model's own side: open_clip rounds what it resizes to bytes
    with torch.no_grad():
        given = torch.stack([transform(Image.fromarray(each.permute(1, 2, 0).numpy())) for each in x])
        seen = model.eval().encode_image(given)
        read = model.encode_text(open_clip.SimpleTokenizer(context_length=40)(list(CAPTIONS)))
    torch.testing.assert_close(clip(x), seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.texts(CAPTIONS), read, rtol=1e-4, atol=1e-5)
    assert (clip.name, clip.width, clip.resize, clip.context) == (
        "clip-16x1-16-32",
        8,
        "bicubic, antialiased, 32",
        40,
    )


def test_the_score_is_a_hundred_cosines_and_never_below_zero(clip: Clip) -> None:
    pictures = extract([images(5, 0)], clip)
    by_hand = [
        max(0.0, 100 * float(torch.cosine_similarity(picture, clip.texts([caption])[0], dim=0)))
        for picture, caption in zip(pictures, CAPTIONS, strict=True)
    ]
    found = clip_score(pictures, clip, CAPTIONS)
    assert found.value == pytest.approx(sum(by_hand) / 5, abs=1e-4)
    assert found.low <= found.value <= found.high
    assert (found.n, found.name) == (5, "clip_score (clip-16x1-16-32)")
    opposite = clip_score(-clip.texts(CAPTIONS), clip, CAPTIONS)
    assert opposite.value == 0
    assert clip_score(3 * clip.texts(CAPTIONS), clip, CAPTIONS).value == pytest.approx(100)


def test_a_score_does_not_depend_on_the_batches(clip: Clip) -> None:
    x = images(9, 0)
    one, eight = (clip_score(extract([x], clip, chunk=n), clip, [*CAPTIONS, *CAPTIONS[:4]]) for n in (1, 8))
    assert one.value == pytest.approx(eight.value, abs=1e-5)
    alone = torch.cat([clip.texts([caption]) for caption in CAPTIONS])
    assert torch.equal(alone, clip.texts(CAPTIONS))


def test_captions_that_are_cut_are_counted(clip: Clip) -> None:
    pictures = extract([images(3, 0)], clip)
    found = clip_score(pictures, clip, [CAPTIONS[0], LONG, LONG])
    assert found.notes == ("2 of 3 captions are longer than 40 tokens, and were cut",)
    assert clip_score(pictures, clip, CAPTIONS[:3]).notes == ()
    assert [clip.num_cut(["a " * words]) for words in (37, 38, 39)] == [0, 0, 1]


def test_pictures_and_captions_come_in_pairs(clip: Clip) -> None:
    for n, captions in ((3, CAPTIONS[:2]), (1, CAPTIONS[:1]), (0, ())):
        with pytest.raises(Refused, match="needs two pairs at least"):
            clip_score(torch.ones(n, 8), clip, captions)


def test_a_model_brings_its_own_normalisation_and_name(folder: str, tmp_path: Path) -> None:
    settings = json.loads((Path(folder) / "open_clip_config.json").read_text())
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings | {"preprocess_cfg": half}))
    (tmp_path / "open_clip_model.safetensors").write_bytes((Path(folder) / "open_clip_model.safetensors").read_bytes())
    other, x = Clip(str(tmp_path)), images(2, 0, size=32)
    assert other.weights_sha256 == Clip(folder).weights_sha256
    torch.testing.assert_close(other(x), other.network.encode_image(x / 127.5 - 1), rtol=1e-4, atol=1e-5)


def test_the_published_name_is_for_the_published_shape(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "L14_336", {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16})
    assert Clip(folder).name == CLIP


def test_an_architecture_goes_with_a_file_of_weights(tmp_path: Path) -> None:
    import open_clip

    with torch.random.fork_rng():
        model = open_clip.create_model("ViT-S-32-alt", pretrained=None).eval()
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    made, x = Clip(f"ViT-S-32-alt:{tmp_path / 'mine.safetensors'}"), images(2, 0, size=224)
    with torch.no_grad():
        given = (x / 255 - made.mean) / made.std
        torch.testing.assert_close(made(x), model.encode_image(given), rtol=1e-4, atol=1e-5)


def test_what_is_missing_or_spoilt_is_one_line_with_the_remedy(folder: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"--clip=nobody/nothing: neither a folder .*: name a folder"):
        Clip("nobody/nothing")
    with pytest.raises(Refused, match=r"--clip=timm/vit_large_patch14_clip_336\.openai: neither"):
        Clip("ViT-L-14-336:openai")
    settings = (Path(folder) / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(settings)
    weights = load_file(Path(folder) / "open_clip_model.safetensors")
    weights.pop("logit_scale")
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(Refused, match=r"does not hold this CLIP.*logit_scale"):
        Clip(str(tmp_path))
    strange = json.loads(settings)
    strange["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(strange))
    with pytest.raises(Refused, match="is no plain CLIP"):
        Clip(str(tmp_path))

"""DINOv2 from a folder of random weights: what transformers says, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from lab.errors import Refused
from lab.evaluation.dinov2 import DinoV2
from lab.evaluation.figure import DINOV2
from tests.lab.evaluation.test_features import images

transformers = pytest.importorskip("transformers")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 518}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dinov2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, mlp_ratio=2)).save_pretrained(path)
    return path


def test_features_are_the_class_token_of_normalised_pictures(folder: Path) -> None:
    before, extractor = torch.get_rng_state(), DinoV2(str(folder))
    assert torch.equal(torch.get_rng_state(), before)
    assert (extractor.name, extractor.width, len(extractor.weights_sha256)) == ("dinov2-16x2-14", 16, 64)
    x = images(3, 0, size=224)
    processor = transformers.BitImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    network = transformers.Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        given = processor(list(x), return_tensors="pt")["pixel_values"]
        expected = network(given).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(x), expected, rtol=1e-4, atol=1e-5)


def test_only_the_published_shape_has_the_published_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.evaluation.dinov2.SHAPE", {"hidden_size": 16, "num_hidden_layers": 2, "patch_size": 14})
    assert DinoV2(str(folder)).name == DINOV2


def test_what_is_missing_is_one_line_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"--dinov2=nobody/nothing: neither a folder here nor in the hub's cache: give"):
        DinoV2("nobody/nothing")
    for name, text in (("other", json.dumps({"model_type": "vit"})), ("none", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(Refused, match="and not dinov2"):
            DinoV2(str(tmp_path / name))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((folder / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(Refused, match="may run code when it is read"):
        DinoV2(str(pickled))


def test_weights_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(Refused, match="weights of dinov2 are missing"):
        DinoV2(str(tmp_path))

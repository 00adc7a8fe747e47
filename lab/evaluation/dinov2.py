"""The transformers door for DINOv2, whose features FD-DINOv2 is read from.

A folder as transformers writes it, with safetensors, or a repository in the hub's cache. The published figure is of
ViT-L/14 without registers, its class token at 224 pixels; of any other size the distance goes by its own name.
transformers stretches the positions to 16 x 16 patches by their number, DINOv2's own code by a factor with an offset of
0.1, so its features may differ a little from these.

Source: Oquab et al. 2023, arXiv:2304.07193; Stein et al. 2023, arXiv:2306.04675.
"""

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lab import pretrained
from lab.errors import Refused
from lab.evaluation.features import full_precision, resize
from lab.evaluation.figure import DINOV2

SHAPE = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REMEDY = (
    "give --dinov2 a folder with config.json and model.safetensors, such as huggingface.co/facebook/dinov2-large "
    "(huggingface-cli download facebook/dinov2-large, where there is a network, puts it into the cache)"
)


@final
class DinoV2:
    """DINOv2's class token.

    Args:
        name: a folder, or a repository in the hub's cache.
        device: where the network runs.

    Raises:
        Refused: transformers is not installed, there is no DINOv2 of this name, or its weights do not fit.
    """

    resize = f"bicubic, antialiased, {SIDE}"

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        folder = pretrained.find("--dinov2", name, ["config.json"], allow_download=False, remedy=REMEDY)
        settings = pretrained.settings_of(folder / "config.json", REMEDY)
        if settings.get("model_type") != "dinov2":
            raise Refused(f"{folder} holds {settings.get('model_type')} and not dinov2: {REMEDY}")
        self.weights_sha256 = pretrained.digest(pretrained.files(folder, REMEDY), None)
        self.network = _load(folder).to(device)
        shape = self.network.config
        self.width = int(shape.hidden_size)
        is_published = all(getattr(shape, key) == value for key, value in SHAPE.items())
        self.name = DINOV2 if is_published else f"dinov2-{self.width}x{shape.num_hidden_layers}-{shape.patch_size}"

    def __call__(self, images: Tensor) -> Tensor:
        """Describe uint8 images (b, 3, H, W), RGB, as float32 features (b, width) on the device of the network."""
        device = self.network.device
        shift, scale = (torch.tensor(x, device=device)[:, None, None] for x in (MEAN, STD))
        with full_precision(device):
            pixels = (resize(images.to(device), SIDE) / 255 - shift) / scale
            features: Tensor = self.network(pixel_values=pixels).pooler_output  # (b, d), of the class token
            return features


def _load(folder: Path) -> Any:
    """Load what transformers wrote into a folder.

    Raises:
        Refused: it is not installed, cannot read it, or weights are missing.
    """
    from safetensors import SafetensorError

    try:
        import transformers
    except ImportError as error:
        raise Refused(f"DINOv2 needs transformers ({error}): pip install -e '.[transformers]'") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            found: Any = transformers.Dinov2Model.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise Refused(f"{folder}: transformers cannot read it: {' '.join(str(error).split())[:300]}") from error
    network, report = found
    if missing := sorted(report["missing_keys"]):
        raise Refused(f"{folder}: {len(missing)} weights of dinov2 are missing, {missing[0]} first")
    return network.eval().requires_grad_(False)

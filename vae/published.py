"""The diffusers door: the codec of a published autoencoder, with the scale that its publisher gave its latents.

AutoencoderKL, which most latent models use, and AutoencoderTiny, its fast stand-in, in the form that diffusers writes:
a folder with config.json and weights. Their norms and attention see the whole image, so tiles are blended.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lab import pretrained
from lab.config import Config
from lab.errors import Refused
from lab.runtime import Runtime
from vae.latent import Latents, Statistics
from vae.tiling import FADE

REMEDY = (
    "give stage.codec.pretrained a folder with config.json and *.safetensors as diffusers writes them, or a repository "
    "of the hub with runtime.allow_download=true"
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Published(Config):
    """What makes a published autoencoder this one and no other, found when a run starts.

    Attributes:
        files: SHA-256 of the configuration and the weights.
        kind: the class of diffusers.
        factor: image side / latent side.
        scale: mean and standard deviation of each channel, as its publisher says.
    """

    files: str
    kind: Literal["AutoencoderKL", "AutoencoderTiny"]
    factor: int
    scale: Statistics


class PublishedConfig(Config):
    """Diffusion on the latents of a published autoencoder.

    Attributes:
        pretrained: a folder as diffusers writes it, or a repository of the hub; it may be moved.
        precision: of the autoencoder's own arithmetic; some published encoders overflow in 16 bits.
        tile: side in pixels of the tiles that are decoded one by one, and blended; 0 decodes the whole at once.
        cache: folder of finished latents, shared by all runs (``vae.cached``); none if null.
        found: what was found there when the run started, filled in then.
    """

    kind: Literal["published"] = "published"
    pretrained: str = Field(min_length=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    tile: int = Field(0, ge=0)
    cache: str | None = None
    found: Published | None = None

    @property
    def factor(self) -> int | None:
        """Image side / latent side, where it is known yet."""
        return self.found.factor if self.found else None


class PublishedAutoencoder(nn.Module):
    """An autoencoder of diffusers, with the names of ours.

    Args:
        model: AutoencoderKL or AutoencoderTiny.
        found: which it is.
    """

    is_local, reach = False, FADE

    def __init__(self, model: Any, found: Published) -> None:
        super().__init__()
        self.model = model
        self.factor, self.channels = found.factor, int(model.config.latent_channels)
        self.is_tiny = found.kind == "AutoencoderTiny"

    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of the latents of (b, 3, H, W) images in [-1, 1], in the images' type."""
        with torch.autocast(images.device.type, enabled=False):
            encoded = self.model.encode(images.to(self.model.dtype))
        if self.is_tiny:
            return encoded.latents.to(images), torch.zeros_like(encoded.latents).to(images)
        return encoded.latent_dist.mean.to(images), encoded.latent_dist.std.to(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (b, c, h, w) latents to (b, 3, H, W), in the latents' type; not clamped."""
        with torch.autocast(latents.device.type, enabled=False):
            images: Tensor = self.model.decode(latents.to(self.model.dtype)).sample
        return images.to(latents)


def find(config: PublishedConfig, allow_download: bool) -> Published:
    """Find out what a name stands for here, without loading it.

    Raises:
        Refused: it is nowhere to be found, not in safetensors, or no autoencoder of these two kinds.
    """
    folder = _folder(config, allow_download)
    settings = pretrained.settings_of(folder / "config.json", REMEDY)
    kind = settings.get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise Refused(f"{folder / 'config.json'} is of {kind or 'no class'}, not AutoencoderKL or AutoencoderTiny")
    widths: Sequence[int] = (
        settings.get("block_out_channels", (64,))
        if kind == "AutoencoderKL"
        else settings.get("encoder_block_out_channels", (64,) * 4)
    )
    return Published(
        files=pretrained.digest([folder / "config.json", *pretrained.files(folder, REMEDY)], None),
        kind=kind,
        factor=2 ** (len(widths) - 1),
        scale=_scale(settings, kind),
    )


def build(config: PublishedConfig, runtime: Runtime) -> Latents:
    """Load the codec of a completed configuration.

    Raises:
        Refused: the files are others than the run knows, or hold other weights than the configuration there says.
    """
    assert config.found is not None, "the autoencoder is found before the codec is built"
    now = find(config, runtime.allow_download)
    if now != config.found:
        raise Refused(
            f"stage.codec.pretrained={config.pretrained} has other files ({now.files[:16]}) than the run knows "
            f"({config.found.files[:16]}): name the folder that the run knows, or start another run"
        )
    model = PublishedAutoencoder(_load(_folder(config, runtime.allow_download), config), now)
    return Latents(runtime.place(model).eval().requires_grad_(False), now.scale, config.tile)


def _folder(config: PublishedConfig, allow_download: bool) -> Path:
    return pretrained.find("stage.codec.pretrained", config.pretrained, ("config.json",), allow_download, REMEDY)


def _scale(settings: Mapping[str, Any], kind: str) -> Statistics:
    """Mean and deviation per channel, from scaling_factor and shift_factor, or latents_mean and latents_std.

    A latent model of diffusers works on (latent - shift) scale; with statistics per channel, on (latent - mean) scale
    / std. What a configuration leaves out is the default of its class.
    """
    channels = int(settings.get("latent_channels", 4))
    factor = settings.get("scaling_factor", 0.18215 if kind == "AutoencoderKL" else 1.0)
    mean = settings.get("latents_mean") or [settings.get("shift_factor") or 0.0] * channels
    std = settings.get("latents_std") or [1.0] * channels
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise Refused(f"scaling_factor={factor} of the published autoencoder is no positive number")
    try:
        return Statistics(mean=tuple(map(float, mean)), std=tuple(float(value) / factor for value in std), num=0)
    except (TypeError, ValueError) as error:
        raise Refused(f"latents_mean={mean} and latents_std={std} of the published autoencoder are no scale") from error


def _load(folder: Path, config: PublishedConfig) -> Any:
    """Load it strictly: what is missing or left over would be silent otherwise."""
    assert config.found is not None
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise Refused("a published autoencoder needs diffusers: pip install -e '.[diffusers]'") from error
    made = getattr(diffusers, config.found.kind)
    try:
        model, report = made.from_pretrained(
            folder, torch_dtype=DTYPES[config.precision], use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(f"{folder} cannot be loaded ({str(error).splitlines()[0]})") from error
    wrong = [f"{what.removesuffix('_keys')} {keys[0]}" for what, keys in report.items() if keys]
    if wrong:
        raise Refused(f"{folder}: the weights do not fit its config.json ({wrong[0]}): fetch it anew")
    return model

"""A codec that computes each image's latent once: found by the image's bytes in a cache on the disk.

What is kept is the posterior, not a sample of it, so every epoch still draws its own latents. An image passes the
encoder among a fixed number of rows and in full precision, so what is kept does not depend on what surrounds it.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from lab.cache import TensorCache
from lab.errors import NonFinite
from lab.images import to_uint8
from vae.codec import Codec
from vae.selection import AnyCodec, identity

ROWS = 8  # images per pass of the encoder; matrix products round differently with other numbers
VERSION = 1  # of the code from images to latents: raise it where another latent comes out for the same image


class Cached:
    """Another codec, with finished latents.

    Args:
        codec: whose latents they are.
        folder: of the cache; need not be there yet.

    Raises:
        Refused: a file lies there that is no shard of a cache.
    """

    def __init__(self, codec: Codec, folder: Path) -> None:
        self.codec, self.cache = codec, TensorCache(folder)
        self.channels, self.factor = codec.channels, codec.factor

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of the latents of (b, 3, H, W) images of 8-bit levels, read or computed.

        Raises:
            NonFinite: a latent is not finite, or too large for the cache's 16 bits.
            StorageFailed: the disk of the cache is full or refuses.
        """
        keys = [_key(image) for image in to_uint8(images).cpu()]
        known = {key: entry for key in keys if (entry := self.cache.get(key)) is not None}
        missing = {key: number for number, key in enumerate(keys) if key not in known}
        for begin in range(0, len(missing), ROWS):
            computed = self._encode(images, dict(list(missing.items())[begin : begin + ROWS]))
            self.cache.add(computed)
            known |= computed
        mean, std = torch.stack([known[key].float() for key in keys]).to(images).unbind(dim=1)
        return mean, std

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to (b, 3, H, W); not clamped."""
        return self.codec.decode(latents)

    def _encode(self, images: Tensor, wanted: dict[str, int]) -> dict[str, Tensor]:
        numbers = list(wanted.values())
        filled = numbers + numbers[-1:] * (ROWS - len(numbers))
        with torch.autocast(images.device.type, enabled=False):
            posterior = torch.stack(self.codec.posterior(images[filled]), dim=1)  # (b, 2, c, h, w)
        entries = dict(zip(wanted, posterior.to("cpu", torch.float16), strict=False))
        for key, entry in entries.items():
            if not entry.isfinite().all():
                raise NonFinite(
                    f"the latent of an image ({key[:16]}) is not finite in 16 bits: measure the scale of the latents "
                    "anew, or train without stage.codec.cache"
                )
        return entries


def folder_of(cache: str, config: AnyCodec) -> Path:
    """Name the cache of a codec by its identity.

    Args:
        cache: that holds the caches of all codecs.
        config: of the codec, completed.
    """
    facts = json.dumps({"version": VERSION, **identity(config)}, sort_keys=True)
    return Path(cache) / hashlib.sha256(facts.encode()).hexdigest()[:32]


def _key(image: Tensor) -> str:
    """Name an image (3, H, W) uint8 by its size and bytes."""
    return f"{tuple(image.shape)} {hashlib.sha256(image.numpy().tobytes()).hexdigest()}"

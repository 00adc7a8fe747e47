"""Which codec: the union of their configurations, and what makes one of them itself."""

from typing import Annotated, Any

from pydantic import Field

from vae.codec import PixelsConfig
from vae.latent import LatentsConfig
from vae.published import PublishedConfig

AnyCodec = Annotated[PixelsConfig | LatentsConfig | PublishedConfig, Field(discriminator="kind")]


def identity(codec: AnyCodec) -> dict[str, Any]:
    """Give what the latents of a completed codec are a function of, beside the image, as JSON values."""
    return codec.model_dump(mode="json", exclude={"run", "pretrained", "tile", "cache"})

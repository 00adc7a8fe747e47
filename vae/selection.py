"""Which codec: the union of their configurations."""

from typing import Annotated

from pydantic import Field

from vae.codec import PixelsConfig
from vae.latent import LatentsConfig
from vae.published import PublishedConfig

AnyCodec = Annotated[PixelsConfig | LatentsConfig | PublishedConfig, Field(discriminator="kind")]

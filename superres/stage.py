"""Growing as a stage of the one trainer: diffusion's own stage, with a grown model in it."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from diffusion.denoiser import Denoiser
from diffusion.stage import TextToImageConfig
from diffusion.text_to_image import TextToImage
from lab.config import Config
from lab.frozen import Frozen
from lab.randomness import seeded
from lab.text.encoder import Prepared, TextEncoder, TextStates
from superres.decoder import GrownNetwork, UpLevelsConfig
from vae.codec import Pixels


class Root(Config):
    """Which weights of which run a model was grown from.

    Attributes:
        run: id of the run.
        checkpoint: hash of its tensors.
        weights: "ema", "raw" or the name of another average.
    """

    run: str
    checkpoint: str
    weights: str


class GrownConfig(TextToImageConfig):
    """A trained model grown to twice its resolution, and how the new levels are trained.

    A schedule that is shifted by twice as much as the source's tells the trunk its own times.

    Attributes:
        source: the directory of the run that is grown, itself perhaps a grown one; it may be moved, and trained further
            if the checkpoint is kept.
        weights: which of its weights, as of ``scripts/sample.py --weights``.
        levels: what is grown on it.
        root: what was found there when the run started, filled in then.
    """

    kind: Literal["grown"] = "grown"
    source: str = Field(min_length=1)
    weights: str = "ema"
    levels: UpLevelsConfig = UpLevelsConfig()
    root: Root | None = None

    @model_validator(mode="after")
    def _noise_is_white(self) -> "GrownConfig":
        if self.loss.offset_noise > 0:
            raise ValueError(
                "loss.offset_noise does not go with growing: means of 2 x 2 pixels halve white noise but no offset, so "
                "the source would see what it was not trained on: set loss.offset_noise=0"
            )
        return self


class SourceText:
    """The text encoder of a source, which is not trained on.

    Args:
        encoder: a module.
    """

    def __init__(self, encoder: Frozen[TextToImage]) -> None:
        text = encoder.module.text
        self.width, self.pooled_width = text.width, text.pooled_width
        self.context, self.num_prepared = text.context, text.num_prepared
        self._source = encoder

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Give the tokens of each prompt, however many of them are heard."""
        return self._source.module.text.count(prompts)

    def prepare(self, prompts: Sequence[str]) -> Prepared:
        """Give what the call takes, on the CPU, b rows each; the empty prompt is allowed."""
        return self._source.module.text.prepare(prompts)

    def __call__(self, prepared: Prepared) -> TextStates:
        """Encode what was prepared."""
        return TextStates(*self._source.module.condition(prepared))


def build(config: GrownConfig, source: TextToImage, seed: int) -> TextToImage:
    """Grow a model, with initial weights of the new levels drawn from the seed.

    Args:
        config: what is grown, and what it predicts.
        source: the trained model, where it computes; it is put into evaluation mode and needs no gradients from here
            on.
        seed: the run's.

    Returns:
        A model whose weights are the new levels' alone.

    Raises:
        Refused: the source's features leave no room for so many levels.
    """
    text: TextEncoder = SourceText(Frozen(source))
    with seeded(seed, "weights"):
        network = GrownNetwork(
            config.levels, Frozen(source.denoiser), config.parameterization, Pixels.channels, text.pooled_width
        )
    return TextToImage(Denoiser(network, config.schedule, config.parameterization), text)

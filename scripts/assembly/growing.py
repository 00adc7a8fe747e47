"""From a run to the source of a grown one."""

from pathlib import Path

from diffusion.stage import DiffusionConfig, TextToImageConfig
from lab.errors import Refused
from lab.text import selection
from lab.text.clip import ClipConfig
from scripts.assembly.experiments import SUBJECTS, AnyExperiment
from scripts.assembly.saved import Saved
from superres.stage import GrownConfig, Root
from vae.codec import PixelsConfig


def check(source: AnyExperiment, path: Path) -> None:
    """Make sure that a run is one that can be grown.

    Raises:
        Refused: it draws nothing, draws latents, is told of frames, or was trained with noise that is not white.
    """
    config = source.stage
    if not isinstance(config, TextToImageConfig):
        raise Refused(
            f"stage.source={path} trains {SUBJECTS[config.kind]}, and only a denoiser grows: name a run of "
            "stage.kind=diffusion or grown"
        )
    if isinstance(config, DiffusionConfig) and not isinstance(config.codec, PixelsConfig):
        raise Refused(
            f"stage.source={path} works on the latents of an autoencoder, and means of latents are no latents of "
            "smaller images: name a run on pixels (stage.codec.kind=pixels)"
        )
    if isinstance(config, DiffusionConfig) and config.frames:
        raise Refused(
            f"stage.source={path} is told which part of an original a picture shows (stage.frames=true), and nobody "
            "would tell it that when it is grown: name a run without it"
        )
    if config.loss.offset_noise > 0:
        raise Refused(
            f"stage.source={path} was trained with loss.offset_noise={config.loss.offset_noise:g}, which means of "
            "2 x 2 pixels do not halve as they halve white noise: name a run without it"
        )


def complete(asked: AnyExperiment, found: Saved) -> AnyExperiment:
    """Fill in what a grown run takes from its source: which weights, and the text encoder.

    Raises:
        Refused: the source cannot be grown, is not half as large, or has another text encoder.
    """
    config, there, path = asked.stage, found.experiment, found.run.path
    assert isinstance(config, GrownConfig)
    check(there, path)
    if asked.data.size != 2 * there.data.size:
        raise Refused(
            f"data.size={asked.data.size}, but stage.source={path} draws {there.data.size} pixels and grows to twice "
            f"as many: set data.size={2 * there.data.size}, or name another source"
        )
    own = asked.text
    if own != ClipConfig() and selection.complete(own, there.text, lambda: (), allow_download=False) != there.text:
        raise Refused(f"text is that of stage.source={path}, whose encoder stays as it is: leave it out")
    root = Root(**found.origin)
    return asked.model_copy(update={"text": there.text, "stage": config.model_copy(update={"root": root})})


def taken_over(asked: AnyExperiment, known: AnyExperiment) -> AnyExperiment:
    """Give the same of a run that has begun."""
    config, before = asked.stage, known.stage
    if not isinstance(config, GrownConfig) or not isinstance(before, GrownConfig):
        return asked
    text = known.text if asked.text == ClipConfig() else asked.text
    return asked.model_copy(
        update={"text": text, "stage": config.model_copy(update={"root": config.root or before.root})}
    )

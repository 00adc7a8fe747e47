"""What a configuration says: which kinds of experiments there are, and whether one can be made."""

from collections.abc import Sequence
from math import lcm
from pathlib import Path
from typing import Annotated, cast

from pydantic import Field

from diffusion.stage import DiffusionConfig, TextToImageConfig
from lab import config as configuration
from lab.data.buckets import BucketsConfig
from lab.data.collection import PictureSet
from lab.data.shapes import ShapesConfig
from lab.errors import Refused
from lab.experiment import Experiment
from lab.rundir import RunDir
from lab.scorer.stage import ScorerConfig
from lab.world import World
from superres.cascade_stage import CascadeConfig
from superres.fast_stage import FastStageConfig
from superres.stage import GrownConfig
from vae.codec import PixelsConfig
from vae.stage import VaeConfig

DiffusionExperiment = Experiment[DiffusionConfig]
TextToImageExperiment = Experiment[TextToImageConfig]
"""One whose run draws from prompts."""
AnyStageConfig = DiffusionConfig | GrownConfig | VaeConfig | FastStageConfig | CascadeConfig | ScorerConfig
AnyExperiment = Experiment[Annotated[AnyStageConfig, Field(discriminator="kind")]]
SUBJECTS = {  # by the kind of their stage
    "vae": "an autoencoder",
    "fast": "a fast decoder",
    "cascade": "a cascade",
    "scorer": "a scorer",
}


def load(path: Path, overrides: Sequence[str]) -> AnyExperiment:
    """Read an experiment from a preset or a run's own configuration.

    Raises:
        Refused: a mistake in it, or the network does not fit the size of the images.
    """
    experiment = configuration.load(path, overrides, AnyExperiment)
    check_size(experiment)
    check_buckets(experiment)
    if not isinstance(experiment.stage, TextToImageConfig) and experiment.evaluate.every_steps:
        raise Refused(f"{path}: {SUBJECTS[experiment.stage.kind]} obeys no prompts: set evaluate.every_steps=0")
    if isinstance(experiment.stage, ScorerConfig) and experiment.stage.near_misses and experiment.data.kind != "shapes":
        raise Refused(
            f"{path}: stage.near_misses={experiment.stage.near_misses} changes one thing of a caption, which is known "
            "of data.kind=shapes alone: set it to 0"
        )
    return experiment


def together(run: Path) -> World:
    """Meet the other processes that draw from a run or measure it, if torchrun started some.

    Raises:
        Refused: it is no run.
        ProcessLost: as from ``World.connect``.
    """
    return World.connect(load(RunDir.view(run).config_path, []).runtime.timeout_s)


def check_buckets(experiment: AnyExperiment) -> None:
    """Make sure that pictures of several shapes can be trained on, if there are any.

    Raises:
        Refused: the stage takes squares alone, or processes would have to make the same passes.
    """
    if _buckets(experiment) is None:
        return
    if not isinstance(experiment.stage, DiffusionConfig):
        raise Refused(
            f"{experiment.name}: data.buckets is for stage.kind=diffusion, and {experiment.stage.kind} is trained on "
            "squares: set data.buckets=null"
        )
    if experiment.train.shard:
        raise Refused(
            f"{experiment.name}: with train.shard every process makes as many passes as the others, and with "
            "data.buckets one may make more: set one of them to false or null"
        )


def _buckets(experiment: AnyExperiment) -> BucketsConfig | None:
    return experiment.data.buckets if isinstance(experiment.data, PictureSet) else None


def _unit(experiment: AnyExperiment) -> tuple[str, int]:
    """What all sides of the images are multiples of, and the key that says so."""
    buckets = _buckets(experiment)
    return ("data.buckets.step", buckets.step) if buckets else ("data.size", experiment.data.size)


def check_size(experiment: AnyExperiment) -> None:
    """Make sure that the network fits the size of the images, as far as its codec is known yet."""
    config = experiment.stage
    if isinstance(config, GrownConfig):
        return  # its size is compared with the source's when a run starts
    if isinstance(config, DiffusionConfig):
        factor, keys = config.unet.factor, "stage.unet.patch, doubled by every level below the first"
        if not isinstance(config.codec, PixelsConfig):
            factor, keys = factor * (config.codec.factor or 1), f"{keys}, times the autoencoder's factor"
    elif isinstance(config, FastStageConfig):
        factor, keys = config.factor, "stage.decoder.factor, times the autoencoder's factor if there is one"
    elif isinstance(config, CascadeConfig):
        factor = lcm(config.factor, config.unet.factor)
        keys = "the least multiple of stage.factor and of stage.unet.patch, doubled by every level below the first"
    elif isinstance(config, ScorerConfig):
        factor, keys = config.tower.patch, "stage.tower.patch"
    else:
        factor, keys = config.autoencoder.factor, "stage.autoencoder.patch, doubled by every level below the first"
        if config.loss.equivariance:
            factor, keys = 2 * factor, f"{keys}, and once more by stage.loss.equivariance"
    if isinstance(config, FastStageConfig | CascadeConfig | VaeConfig):
        _check_crop(experiment, config.crop, factor)
    key, unit = _unit(experiment)
    if unit % factor:
        raise Refused(
            f"{experiment.name}: {key}={unit} is not divisible by {factor}, the network's factor ({keys}): change one "
            "of them"
        )


def _check_crop(experiment: AnyExperiment, crop: int, factor: int) -> None:
    size = experiment.data.size
    if crop > size:
        raise Refused(f"{experiment.name}: stage.crop={crop} is more than data.size={size}: lower it")
    if crop % factor:
        raise Refused(
            f"{experiment.name}: stage.crop={crop} is not divisible by {factor}, the network's factor: change one of "
            "them"
        )


def text_to_image(experiment: AnyExperiment, path: Path) -> TextToImageExperiment:
    """Give an experiment as one that trains a model which draws from prompts.

    Raises:
        Refused: it trains something else.
    """
    if not isinstance(experiment.stage, TextToImageConfig):
        what = SUBJECTS[experiment.stage.kind]
        raise Refused(f"{path} trains {what}, which draws nothing from prompts: name a run of a diffusion model")
    return cast(TextToImageExperiment, experiment)


def diffusion(experiment: AnyExperiment, path: Path) -> DiffusionExperiment:
    """Give an experiment as one that trains a diffusion model as a whole.

    Raises:
        Refused: it trains an autoencoder, or grows a model.
    """
    if isinstance(text_to_image(experiment, path).stage, GrownConfig):
        raise Refused(f"{path} grows a model on another run: name a preset or a run of stage.kind=diffusion")
    return cast(DiffusionExperiment, experiment)


def world_of(experiment: TextToImageExperiment) -> ShapesConfig:
    """Give the Shapes world of an experiment, for what is judged by its verifier.

    Raises:
        Refused: the data is another.
    """
    if not isinstance(experiment.data, ShapesConfig):
        raise Refused(
            f"{experiment.name} has data.kind={experiment.data.kind}: prompts are judged on data.kind=shapes alone; "
            "scripts/evaluate.py RUN measures what can be said of other pictures"
        )
    return experiment.data

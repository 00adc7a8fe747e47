"""From runs to the upscalers that pictures pass, for --upscale."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffusion.stage import DiffusionConfig
from lab.errors import Refused
from scripts.assembly import enlarging, saved
from scripts.assembly.drawing import Trained
from scripts.assembly.saved import Saved
from scripts.interface import gallery, settings
from superres.cascade_stage import CascadeConfig
from superres.fast_stage import FastStageConfig
from superres.pipeline import OnePass, Straight, Upscaler
from superres.stage import GrownConfig
from vae.codec import PixelsConfig
from vae.selection import identity


def followed_by(trained: Trained, runs: Sequence[Path]) -> Trained:
    """Let what a run draws pass the upscalers of other runs, one after the other; their weights join the origin.

    A fast decoder of latents takes the place of the autoencoder's own.

    Raises:
        Refused: a run's model makes no picture larger, or as from ``saved.read``.
    """
    for path in runs:
        found = saved.read(path)
        passed = f"{trained.origin['upscale']} " if "upscale" in trained.origin else ""
        told = enlarging.told(found)
        name = found.origin["checkpoint"] + (f"-{gallery.digest(told)}" if told else "")
        if takes_latents(found):
            trained = _straight(trained, found)
        else:
            trained = replace(trained, upscalers=(*trained.upscalers, upscaler(found)))
        trained = replace(trained, origin={**trained.origin, "upscale": passed + name})
    return trained


def takes_latents(found: Saved) -> bool:
    """Whether a run trains a fast decoder of latents."""
    config = found.experiment.stage
    return isinstance(config, FastStageConfig) and not isinstance(config.codec, PixelsConfig)


def _straight(trained: Trained, found: Saved) -> Trained:
    """Let a run's latents be decoded straight to larger pictures.

    Raises:
        Refused: they are not those that the decoder was trained on.
    """
    own, config, path = trained.experiment.stage, found.experiment.stage, found.run.path
    assert isinstance(config, FastStageConfig)
    if "upscale" in trained.origin:
        raise Refused(f"--upscale {path} takes latents, and gets what another one has made: name it first")
    if not isinstance(own, DiffusionConfig) or identity(own.codec) != identity(config.codec):
        raise Refused(
            f"--upscale {path} takes the latents of another codec than the one that {trained.run.path} draws with: "
            "name one that was trained with the same stage.codec, or one on pixels"
        )
    enlarge = enlarging.build(found, settings.TILE, trained.pipeline.codec)
    pipeline, factor = trained.pipeline, enlarge.factor
    height, width = pipeline.drawn
    shape = pipeline.shape and (factor * height, factor * width)
    larger = replace(pipeline, codec=Straight(pipeline.codec, enlarge), size=factor * pipeline.size, shape=shape)
    return replace(trained, pipeline=larger)


def upscaler(found: Saved, tile: int = settings.TILE) -> Upscaler:
    """Build the upscaler that a run has trained.

    Args:
        found: its weights, and how it draws.
        tile: side of the tiles in pixels of a small picture; 0 for none.

    Raises:
        Refused: it has trained none, with what to do instead.
    """
    path, config = found.run.path, found.experiment.stage
    if isinstance(config, FastStageConfig):
        return OnePass(enlarging.build(found, tile))
    if isinstance(config, CascadeConfig):
        return enlarging.cascade(found, tile)
    if isinstance(config, GrownConfig):
        raise Refused(
            f"{path}: a grown model makes no picture larger, it draws large ones itself: "
            f'python scripts/sample.py {path} "PROMPT"'
        )
    raise Refused(
        f"{path} has stage.kind={config.kind}, which makes no picture larger: name a run with stage.kind=fast or "
        "cascade"
    )

"""From runs to the upscalers that pictures pass, for --upscale."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab.errors import Refused
from scripts.assembly import enlarging, saved
from scripts.assembly.drawing import Trained
from scripts.assembly.saved import Saved
from scripts.interface import gallery, settings
from superres.cascade_stage import CascadeConfig
from superres.fast_stage import FastStageConfig
from superres.pipeline import OnePass, Upscaler
from superres.stage import GrownConfig


def followed_by(trained: Trained, runs: Sequence[Path]) -> Trained:
    """Let what a run draws pass the upscalers of other runs, one after the other; their weights join the origin.

    Raises:
        Refused: a run's model makes no picture larger, or as from ``saved.read``.
    """
    for path in runs:
        found = saved.read(path)
        passed = f"{trained.origin['upscale']} " if "upscale" in trained.origin else ""
        told = enlarging.told(found)
        name = found.origin["checkpoint"] + (f"-{gallery.digest(told)}" if told else "")
        origin = {**trained.origin, "upscale": passed + name}
        trained = replace(trained, upscalers=(*trained.upscalers, upscaler(found)), origin=origin)
    return trained


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

"""From runs to the upscalers that pictures pass, for --upscale."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab.errors import Refused
from scripts import enlarging, saved
from scripts.drawing import Trained
from scripts.saved import Saved
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
        origin = {**trained.origin, "upscale": passed + found.origin["checkpoint"]}
        trained = replace(trained, upscalers=(*trained.upscalers, upscaler(found)), origin=origin)
    return trained


def upscaler(found: Saved) -> Upscaler:
    """Build the upscaler that a run has trained.

    Raises:
        Refused: it has trained none, with what to do instead.
    """
    path, config = found.run.path, found.experiment.stage
    if isinstance(config, FastStageConfig):
        return OnePass(enlarging.build(found))
    if isinstance(config, GrownConfig):
        raise Refused(
            f"--upscale {path}: a grown model makes no picture larger, it draws large ones itself: "
            f'python scripts/sample.py {path} "PROMPT"'
        )
    raise Refused(f"--upscale {path} has stage.kind={config.kind}, which makes no picture larger")

"""From the run of a fast decoder or a cascade to what enlarges pictures."""

from dataclasses import replace
from typing import cast

from diffusion.pipeline import DRAWING
from lab import config as configuration
from lab import runtime as runtimes
from lab.errors import Refused
from lab.experiment import Experiment
from lab.training import snapshot
from scripts.assembly import assemble, drawing, latent
from scripts.assembly.saved import Saved
from superres import fast
from superres.cascade_pipeline import CascadePipeline
from superres.cascade_stage import CascadeConfig, CascadeStage
from superres.fast import Enlarger
from superres.fast_stage import FastStageConfig
from vae.codec import Codec, PixelsConfig


def shape(found: Saved) -> FastStageConfig | CascadeConfig:
    """Give the stage of a run that trains what enlarges pictures.

    Raises:
        Refused: it trains something else.
    """
    if not isinstance(found.experiment.stage, FastStageConfig | CascadeConfig):
        raise Refused(
            f"{found.run.path} trains nothing that enlarges pictures: name a run with stage.kind=fast or cascade"
        )
    return found.experiment.stage


def build(found: Saved, tile: int = 0, codec: Codec | None = None) -> Enlarger:
    """Build the fast decoder that a checkpoint holds; see ``Enlarger``.

    Args:
        found: its weights.
        tile: side of the tiles in pixels of a small picture; 0 for none.
        codec: that it was trained with; ``None`` for the one that its configuration names.

    Raises:
        Refused: it is another model, or the weights do not fit the run's own configuration.
    """
    config = found.experiment.stage
    if not isinstance(config, FastStageConfig):
        raise Refused(f"{found.run.path} trains no fast decoder: name a run with stage.kind=fast")
    runtime = runtimes.start(found.experiment.runtime)
    named = config.codec if isinstance(config.codec, PixelsConfig) else config.codec.model_copy(update={"cache": None})
    codec = codec or latent.codec(named, runtime)  # without its cache, which is for what is trained on
    model = fast.build(config.decoder, codec, found.experiment.seed)
    weights = {name: value for name, value in found.weights.items() if name.startswith("model.")}
    if problems := snapshot.misfits(weights, {"model": model}):
        raise Refused(f"{found.run.path}: the checkpoint does not fit {found.run.config_path} ({problems[0]})")
    snapshot.fill({"model": model}, weights)
    return Enlarger(runtime.place(model).eval().requires_grad_(False), runtime, tile, codec)


def cascade(found: Saved, tile: int = 0) -> CascadePipeline:
    """Build the cascade that a checkpoint holds; see ``CascadePipeline``.

    Raises:
        Refused: the weights do not fit the run's own configuration.
    """
    runtime = runtimes.start(found.experiment.runtime)
    stage = assemble.stage(found.experiment, runtime)
    assert isinstance(stage, CascadeStage)
    found.fill(stage.players)
    return stage.pipeline(runtime.place(stage.players["model"]).eval().requires_grad_(False), tile)


def retold(found: Saved, sampling: dict[str, object], enlarging: dict[str, object]) -> Saved:
    """Give a run's weights with other settings of how a cascade draws.

    Args:
        found: the run's own.
        sampling: settings of its sampler that differ.
        enlarging: the same of ``EnlargingConfig``.

    Raises:
        Refused: it is no cascade, or a setting that cannot be.
    """
    if not (sampling or enlarging):
        return found
    experiment, config = cast(Experiment[CascadeConfig], found.experiment), shape(found)
    if not isinstance(config, CascadeConfig):
        name = next(iter({**sampling, **enlarging})).replace("_", "-")
        raise Refused(
            f"--{name} is for runs that draw from prompts or draw details, and {found.run.path} trains a fast decoder: "
            "leave it out"
        )
    if sampling.get("variance") == "optimal":
        raise Refused("--variance optimal is not measured for what draws details: take upper or lower")
    told = config.model_dump(mode="json")
    told["sampling"] = drawing.sampling(experiment, sampling).model_dump(mode="json")
    told["enlarging"] |= enlarging
    changed = configuration.parse(told, CascadeConfig, "settings of the cascade")
    return replace(found, experiment=found.experiment.model_copy(update={"stage": changed}))


def told(found: Saved) -> dict[str, object]:
    """Give the settings that decide what a cascade makes with its weights, as JSON values; nothing of other models."""
    config = found.experiment.stage
    if not isinstance(config, CascadeConfig):
        return {}
    settings = {name: getattr(config, name).model_dump(mode="json") for name in ("sampling", "enlarging")}
    return {"drawing": DRAWING, **settings}

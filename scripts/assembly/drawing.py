"""From a run to a model that draws: its weights, its sampler settings, and the variance that some samplers ask for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion.optimal_variance import OptimalVariance, measure
from diffusion.pipeline import DRAWING, TAKERS, Pipeline, SamplingConfig, times_of
from diffusion.stage import DenoisingConfig, DiffusionStage
from lab import config as configuration
from lab import runtime as runtimes
from lab.data.loader import Loader
from lab.data.sources import source
from lab.errors import BadData, Refused
from lab.experiment import Experiment
from lab.images import Shape
from lab.rundir import RunDir
from lab.storage import write_whole
from lab.world import ALONE, World
from scripts.assembly import saved
from scripts.assembly.assemble import diffusion_stage
from scripts.assembly.experiments import TextToImageExperiment, text_to_image
from superres.pipeline import Upscaler

VARIANCE_SAMPLES, VARIANCE_BATCH = 256, 32  # that the optimal variance is measured on


@dataclass(frozen=True)
class Trained:
    """A trained model, ready to draw, and where it came from.

    Attributes:
        pipeline: draws images.
        stage: what it was trained by.
        experiment: the run's own configuration.
        run: its directory, for reading.
        origin: run id, hash of the checkpoint, which weights, and ``DRAWING``: a part of every image's recipe.
        state: of the checkpoint: step, samples seen, seconds of training (not of an average that was made later).
        upscalers: what the pictures pass when they are drawn.
    """

    pipeline: Pipeline
    stage: DiffusionStage
    experiment: TextToImageExperiment
    run: RunDir
    origin: Mapping[str, str]
    state: Mapping[str, Any]
    upscalers: tuple[Upscaler, ...] = ()


def trained(path: Path, checkpoint_name: str | None = None, weights: str = "ema", world: World = ALONE) -> Trained:
    """Load a run's model, ready to draw in one process or in several; see ``saved.read``.

    Raises:
        Refused: as from ``saved.read``, or the weights do not fit the run's own configuration.
        BadData: every checkpoint is broken.
    """
    found = saved.read(path, checkpoint_name, weights)
    experiment = text_to_image(found.experiment, path)
    runtime = runtimes.start(experiment.runtime, world)
    made = diffusion_stage(experiment, runtime)
    found.fill(made.players)
    model = runtime.place(made.players["model"]).eval()
    return Trained(made.pipeline(model), made, experiment, found.run, {**found.origin, "drawing": DRAWING}, found.state)


def with_variance(trained: Trained, sampling: SamplingConfig) -> Trained:
    """Give a run its optimal variance where the sampler asks for it: read, or measured now and kept in the run.

    What was measured becomes a part of the origin, and so of every recipe.

    Raises:
        Refused: the run was trained with offset noise, for which it is not made; or it is not measured yet, which one
            process does.
        BadData: the file of the measurement is spoilt.
    """
    if sampling.variance != "optimal":
        return trained
    experiment, pipeline = trained.experiment, trained.pipeline
    if experiment.stage.loss.offset_noise > 0:
        raise Refused("variance optimal is for white noise, and this run has loss.offset_noise: take upper or lower")
    path = trained.run.path / f"variance-{trained.origin['checkpoint']}-{trained.origin['weights']}.json"
    if not path.exists():
        if pipeline.runtime.world.size > 1:
            raise Refused(
                "variance optimal is measured at its first use, by one process: draw a picture without torchrun"
            )
        loader, size = Loader(source(experiment.data), experiment.seed), VARIANCE_BATCH
        starts = tqdm(range(0, VARIANCE_SAMPLES, size), desc="optimal variance, measured once", unit="batch")
        batches = (loader.batch(range(start, start + size)) for start in starts)
        measured = measure(pipeline.model, pipeline.codec, pipeline.runtime, batches)
        write_whole(path, (measured.model_dump_json(indent=1) + "\n").encode())
        print(f"measured the optimal variance: {path}")
    try:
        variance = OptimalVariance.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path} does not hold a measured variance; delete it, and it is measured again") from error
    name = hashlib.sha256(variance.model_dump_json().encode()).hexdigest()[:16]
    return replace(trained, pipeline=replace(pipeline, variance=variance), origin={**trained.origin, "variance": name})


def shaped(trained: Trained, shape: Shape) -> Trained:
    """Let a run draw pictures of another shape, which becomes a part of every recipe.

    Raises:
        Refused: a side is no multiple of what the network takes.
    """
    pipeline, (height, width) = trained.pipeline, shape
    network: Any = pipeline.model.denoiser.network
    factor = network.factor * pipeline.codec.factor
    if height % factor or width % factor or min(shape) < 1:
        height, width = (max(round(side / factor), 1) * factor for side in shape)
        raise Refused(
            f"--size {shape[1]}x{shape[0]}: width and height must be multiples of {factor}, the factor of this run's "
            f"network, such as {width}x{height}"
        )
    origin = {**trained.origin, "size": f"{width}x{height}"}
    return replace(trained, pipeline=replace(pipeline, shape=shape), origin=origin)


def sampling(experiment: Experiment[DenoisingConfig], changes: Mapping[str, object]) -> SamplingConfig:
    """Give the run's own sampler settings with some of them changed.

    Another sampler or spacing brings none of what was set for the one that it replaces: a run's ``eta`` of DDIM does
    not make DPM-Solver++ stochastic.

    Raises:
        Refused: an unknown sampler, a value that cannot be, or steps that do not fit the schedule.
    """
    own = experiment.stage.sampling.model_dump(mode="json")
    replaced = {choice for choice in ("sampler", "spacing") if changes.get(choice, own[choice]) != own[choice]}
    for setting, choice, _ in TAKERS:
        if choice in replaced:
            del own[setting]
    chosen = configuration.parse({**own, **changes}, SamplingConfig, "sampler settings")
    times_of(chosen, experiment.stage.schedule, experiment.stage.parameterization)
    return chosen

"""From a configuration to the objects that do the work, for all scripts.

Imported inside the scripts' ``main``, after the arguments are read: it brings in torch.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from diffusion.stage import DiffusionConfig, DiffusionStage, TextToImageConfig, build
from diffusion.text_to_image import TextToImage
from lab import config as configuration
from lab import runtime as runtimes
from lab.data.finite import Finite
from lab.data.loader import Loader
from lab.data.shapes import ShapesConfig
from lab.data.shapes_captions import meaning
from lab.data.shapes_near import falsified
from lab.data.source import Source
from lab.data.sources import AnyData, source
from lab.errors import Refused
from lab.evaluation import perceptual
from lab.rundir import RunDir
from lab.runtime import Runtime
from lab.scorer import model as scorers
from lab.scorer.model import Scorer
from lab.scorer.stage import Language, ScorerConfig, ScorerStage
from lab.text import selection
from lab.training import snapshot
from lab.training.quarantine import Quarantine
from lab.training.trainer import Trainer
from lab.world import ALONE, World
from scripts.assembly import growing, latent, saved
from scripts.assembly.experiments import AnyExperiment, AnyStageConfig, TextToImageExperiment, check_size, text_to_image
from scripts.assembly.saved import Saved
from scripts.evaluation.evaluators import evaluators
from superres import cascade_stage
from superres import stage as growth
from superres.cascade_stage import CascadeConfig, CascadeStage
from superres.fast_stage import FastStage, FastStageConfig
from superres.stage import GrownConfig
from vae.codec import Pixels
from vae.stage import AutoencoderStage, VaeConfig

AnyStage = DiffusionStage | AutoencoderStage | FastStage | CascadeStage | ScorerStage
Asked = TypeVar("Asked", bound=AnyExperiment)


def complete(asked: Asked, known: AnyExperiment | None = None) -> Asked:
    """Fill in what is found out once per run: precision, layout, and what the text encoder needs to know.

    Args:
        asked: an experiment that may leave them open.
        known: the run's own configuration, whose findings are taken over.

    Raises:
        Refused: pretrained weights of the text encoder are nowhere to be found, or the source of a grown model does not
            fit.
    """
    if isinstance(asked.stage, GrownConfig):
        grown = growing.taken_over(asked, known) if known else growing.complete(asked, _source(asked.stage))
        asked = cast(Asked, grown)
    if known is not None:
        runtime = asked.runtime.model_copy(
            update={
                k: getattr(known.runtime, k)
                for k in ("precision", "channels_last")
                if getattr(asked.runtime, k) == "auto"
            }
        )
    else:
        runtime = runtimes.resolve(asked.runtime)
    before = known.text if known else None

    def captions() -> Iterable[str]:  # asked for only where they are not known from before
        return () if isinstance(asked.stage, VaeConfig | FastStageConfig) else source(asked.data).captions()

    text = selection.complete(asked.text, before, captions, asked.runtime.allow_download)
    completed = asked.model_copy(update={"runtime": runtime, "text": text, "stage": _completed(asked, known)})
    check_size(completed)
    return completed


def _completed(asked: AnyExperiment, known: AnyExperiment | None) -> AnyStageConfig:
    """The stage; of one on latents with the autoencoder that was found, and the scale of its latents."""
    config = asked.stage
    if not isinstance(config, DiffusionConfig | FastStageConfig):
        return config
    before = known.stage.codec if known and isinstance(known.stage, DiffusionConfig | FastStageConfig) else None
    found = latent.complete(config.codec, before, asked.runtime.allow_download)
    return config.model_copy(update={"codec": found})


def stage(experiment: AnyExperiment, runtime: Runtime) -> AnyStage:
    """Build the stage of a completed experiment, with fresh weights."""
    config = experiment.stage
    if isinstance(config, TextToImageConfig):
        return diffusion_stage(cast(TextToImageExperiment, experiment), runtime)

    def originals(num: int) -> Tensor:  # opened when it is asked: a model is built also where its data is not
        return Loader(source(experiment.data), experiment.seed).batch(range(num)).images

    if isinstance(config, ScorerConfig):
        return ScorerStage(
            config, scorer(experiment, config, runtime), language_of(experiment.data), originals, runtime
        )
    if isinstance(config, CascadeConfig):
        cascade = cascade_stage.build(config, experiment.text, experiment.seed, runtime)
        return CascadeStage(config, cascade, experiment.seed, originals, runtime)
    wanted = config.loss.perceptual
    network = runtime.place(perceptual.build(wanted)) if wanted else None
    if isinstance(config, FastStageConfig):
        made = latent.codec(config.codec, runtime)
        return FastStage(config, experiment.seed, network, originals, runtime, made)
    return AutoencoderStage(config, experiment.seed, network, originals, runtime)


def diffusion_stage(experiment: TextToImageExperiment, runtime: Runtime) -> DiffusionStage:
    """Build the stage of a completed experiment that trains a model which draws, with fresh weights."""
    config = experiment.stage
    if isinstance(config, GrownConfig):
        grown = growth.build(config, _trunk(config, runtime), experiment.seed)
        return DiffusionStage(config, grown, Pixels(), experiment.data.size, runtime)
    assert isinstance(config, DiffusionConfig)
    made = latent.codec(config.codec, runtime)
    model = build(config, experiment.text, made, experiment.seed, runtime)
    return DiffusionStage(config, model, made, experiment.data.size, runtime)


def scorer(experiment: AnyExperiment, config: ScorerConfig, runtime: Runtime) -> Scorer:
    """Build the scorer of a completed experiment, with fresh weights."""
    size = experiment.data.size
    return scorers.build(config.tower, experiment.text, size, config.width, experiment.seed, runtime)


def language_of(data: AnyData) -> Language:
    """Give what is known of the captions of data: of the Shapes all, of others that the same words say the same."""
    return Language(meaning, falsified) if isinstance(data, ShapesConfig) else Language(str.casefold)


def _source(config: GrownConfig) -> Saved:
    """Read the weights that are grown: of a run that has begun, the very ones that it began with.

    Raises:
        Refused: the source, or the checkpoint of it, is not there or not as it was, or others of its weights are asked
            for than were grown.
    """
    root, path = config.root, Path(config.source)
    if root is None:
        return saved.read(path, None, config.weights)
    if config.weights != root.weights:
        raise Refused(
            f"stage.weights={config.weights}, but {root.weights} of {path} were grown: leave it out, or grow anew "
            "(stage.root=null in another folder)"
        )
    try:
        found = saved.read(path, root.checkpoint, root.weights)
    except Refused as error:
        cause = str(error).split(";")[0]
        raise Refused(
            f"stage.source: {cause}; put it back as it was, name its new place by stage.source=RUN, or grow anew"
        ) from error
    if found.origin["run"] != root.run:
        raise Refused(f"stage.source={path} is run {found.origin['run']}, but run {root.run} was grown: name its place")
    return found


def _trunk(config: GrownConfig, runtime: Runtime) -> TextToImage:
    """Build the model that is grown, with its weights, on the device.

    Raises:
        Refused: as from ``_source``, or the weights do not fit the source's own configuration.
    """
    assert config.root is not None, "the source is found before the model is grown"
    with torch.device("cpu"):  # real weights, also where only the shapes of what is trained are asked for
        found = _source(config)
        try:
            made = diffusion_stage(text_to_image(found.experiment, found.run.path), runtime)
        except Refused as error:
            raise Refused(f"{found.run.path}: {error}") from error  # whose own source, say, is not there
        found.fill(made.players)
        model = runtime.place(made.players["model"])
    assert isinstance(model, TextToImage)
    return model


def trainer(experiment: AnyExperiment, rundir: RunDir, world: World = ALONE, start: Saved | None = None) -> Trainer:
    """Build the trainer of a completed experiment in its run directory, which the first process has opened.

    Args:
        experiment: what is trained, and how.
        rundir: where.
        world: with whom.
        start: the weights to begin with, as ``warm_start.read`` gives them; ``None`` for fresh ones.
    """
    runtime = runtimes.start(experiment.runtime, world)
    if world.is_first:
        rundir.record_process(str(runtime.device), torch.get_num_threads())
    data = source(experiment.data, batch=experiment.train.batch)
    made = stage(experiment, runtime)
    if start is not None:
        snapshot.fill(made.players, start.weights)
    environment = rundir.environment()
    process = environment["processes"][-1] if world.is_first else {}  # the others write nothing, and may be here sooner
    return Trainer(
        stage=made,
        loader=Loader(data, experiment.seed, experiment.train.workers),
        runtime=runtime,
        rundir=rundir,
        config=experiment.train,
        facts={
            "config_sha256": hashlib.sha256(configuration.dump(experiment).encode()).hexdigest(),
            "data": data.fingerprint,
            "threads": torch.get_num_threads(),
            "processes": world.size,
            "precision": runtime.precision,
            **{k: v for k, v in process.items() if k in ("commit", "dirty", "packages")},
            **{k: v for k, v in environment.items() if k == "init_from"},
        },
        evaluators=evaluators(experiment.evaluate, experiment.data, made) if isinstance(made, DiffusionStage) else [],
        quarantine=_quarantine(experiment, rundir, data),
    )


def _quarantine(experiment: AnyExperiment, rundir: RunDir, data: Source) -> Quarantine | None:
    """What keeps account of bad samples, where there can be any."""
    if isinstance(experiment.data, ShapesConfig):
        return None
    return Quarantine(rundir.quarantine, data.num, experiment.data.max_bad)


def describe(trainer: Trainer, path: Path) -> str:
    """Say in one line what is about to be trained."""
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in player.parameters()):,}" for name, player in trainer.stage.players.items()
    )
    runtime, config = trainer.runtime, trainer.config
    length = f"{config.budget} of steps" if config.budget else f"{config.steps} steps"
    return (
        f"{path}: {length} of {config.batch} samples; parameters: {sizes}; "
        f"{runtime.device.type}, {runtime.precision}, {torch.get_num_threads()} threads"
        + (f"; {data.summary}" if isinstance(data := trainer.loader.source, Finite) else "")
    )

"""From a configuration to the objects that do the work, for all scripts.

Imported inside the scripts' ``main``, after the arguments are read: it brings in torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from diffusion.stage import DiffusionConfig, DiffusionStage, TextToImageConfig, build
from diffusion.text_to_image import TextToImage
from lab import config as configuration
from lab import runtime as runtimes
from lab.data.finite import Finite
from lab.data.loader import Loader
from lab.data.shapes import ShapesConfig
from lab.data.source import Source
from lab.data.sources import source
from lab.errors import Refused
from lab.evaluation import perceptual
from lab.experiment import Experiment
from lab.rundir import RunDir
from lab.runtime import Runtime
from lab.text import selection
from lab.training import checkpoint, snapshot
from lab.training.quarantine import Quarantine
from lab.training.snapshot import average_name
from lab.training.trainer import Trainer
from lab.world import ALONE, World
from scripts import growing, latent
from scripts.evaluators import evaluators
from superres import stage as growth
from superres.fast_stage import FastStage, FastStageConfig
from superres.stage import GrownConfig
from vae import published
from vae.cached import Cached, folder_of
from vae.codec import Codec, Pixels, PixelsConfig
from vae.latent import Latents, LatentsConfig, Origin
from vae.published import PublishedConfig
from vae.selection import AnyCodec
from vae.stage import AutoencoderStage, VaeConfig

DiffusionExperiment = Experiment[DiffusionConfig]
VaeExperiment = Experiment[VaeConfig]
TextToImageExperiment = Experiment[TextToImageConfig]
"""One whose run draws from prompts."""
AnyStageConfig = DiffusionConfig | GrownConfig | VaeConfig | FastStageConfig
AnyStage = DiffusionStage | AutoencoderStage | FastStage
AnyExperiment = Experiment[Annotated[AnyStageConfig, Field(discriminator="kind")]]
Asked = TypeVar("Asked", bound=AnyExperiment)
VARIANCE_SAMPLES, VARIANCE_BATCH = 256, 32  # that the optimal variance is measured on
SUBJECTS = {"vae": "an autoencoder", "fast": "a fast decoder"}  # by the kind of their stage


def load(path: Path, overrides: Sequence[str]) -> AnyExperiment:
    """Read an experiment from a preset or a run's own configuration.

    Raises:
        Refused: a mistake in it, or the network does not fit the size of the images.
    """
    experiment = configuration.load(path, overrides, AnyExperiment)
    _check_size(experiment)
    if not isinstance(experiment.stage, TextToImageConfig) and experiment.evaluate.every_steps:
        raise Refused(f"{path}: {SUBJECTS[experiment.stage.kind]} obeys no prompts: set evaluate.every_steps=0")
    return experiment


def _check_size(experiment: AnyExperiment) -> None:
    """Make sure that the network fits the size of the images, as far as its codec is known yet."""
    config = experiment.stage
    if isinstance(config, GrownConfig):
        return  # its size is compared with the source's when a run starts
    if isinstance(config, DiffusionConfig):
        factor, keys = config.unet.factor, "stage.unet.patch, doubled by every level below the first"
        if not isinstance(config.codec, PixelsConfig):
            factor, keys = factor * (config.codec.factor or 1), f"{keys}, times the autoencoder's factor"
    elif isinstance(config, FastStageConfig):
        factor, keys = config.decoder.factor, "stage.decoder.factor"
        if config.crop > experiment.data.size:
            raise Refused(
                f"{experiment.name}: stage.crop={config.crop} is more than data.size={experiment.data.size}: lower it"
            )
    else:
        factor, keys = config.autoencoder.factor, "stage.autoencoder.patch, doubled by every level below the first"
        if config.loss.equivariance:
            factor, keys = 2 * factor, f"{keys}, and once more by stage.loss.equivariance"
    if experiment.data.size % factor:
        raise Refused(
            f"{experiment.name}: data.size={experiment.data.size} is not divisible by {factor}, the network's factor "
            f"({keys}): change one of them"
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
    text = selection.complete(asked.text, before, lambda: source(asked.data).captions(), asked.runtime.allow_download)
    completed = asked.model_copy(update={"runtime": runtime, "text": text, "stage": _completed(asked, known)})
    _check_size(completed)
    return completed


def _completed(asked: AnyExperiment, known: AnyExperiment | None) -> AnyStageConfig:
    """The stage; of a latent one with the autoencoder that was found, and the scale of its latents."""
    config = asked.stage
    if not isinstance(config, DiffusionConfig):
        return config
    before = known.stage.codec if known and isinstance(known.stage, DiffusionConfig) else None
    found = _completed_codec(config.codec, before, asked.runtime.allow_download)
    return config.model_copy(update={"codec": found})


def _completed_codec(asked: AnyCodec, before: AnyCodec | None, allow_download: bool) -> AnyCodec:
    match asked:
        case PublishedConfig(found=None):
            known = before.found if isinstance(before, PublishedConfig) else None
            return asked.model_copy(update={"found": known or published.find(asked, allow_download)})
        case LatentsConfig(origin=None) if isinstance(before, LatentsConfig):
            return asked.model_copy(update={"origin": before.origin, "statistics": before.statistics})
        case LatentsConfig(origin=None):
            found = saved(Path(asked.run), None, asked.weights)
            factor = latent.shape(found.experiment, found.run.path).autoencoder.factor
            scale = latent.statistics(found, runtimes.start(found.experiment.runtime))
            return asked.model_copy(update={"origin": Origin(**found.origin, factor=factor), "statistics": scale})
    return asked


def codec(config: AnyCodec, runtime: Runtime) -> Codec:
    """Build the codec of a completed experiment.

    Raises:
        Refused: the autoencoder, or the checkpoint of it that this run was begun with, is not there.
    """
    if isinstance(config, PixelsConfig):
        return Pixels()
    made = published.build(config, runtime) if isinstance(config, PublishedConfig) else _trained_codec(config, runtime)
    return Cached(made, folder_of(config.cache, config)) if config.cache else made


def _trained_codec(config: LatentsConfig, runtime: Runtime) -> Latents:
    assert config.origin is not None, "the autoencoder is found before the codec is built"
    assert config.statistics is not None
    path, origin = Path(config.run), config.origin
    found = saved(path, origin.checkpoint, origin.weights)
    if found.origin["run"] != origin.run:
        raise Refused(f"{path} is run {found.origin['run']}, but these latents are of run {origin.run}")
    return Latents(latent.build(found, runtime), config.statistics, config.tile)


def stage(experiment: AnyExperiment, runtime: Runtime) -> AnyStage:
    """Build the stage of a completed experiment, with fresh weights."""
    config = experiment.stage
    if isinstance(config, TextToImageConfig):
        return diffusion_stage(cast(TextToImageExperiment, experiment), runtime)
    wanted = config.loss.perceptual
    network = runtime.place(perceptual.build(wanted)) if wanted else None

    def originals(num: int) -> Tensor:  # opened when it is asked: a model is built also where its data is not
        return Loader(source(experiment.data), experiment.seed).batch(range(num)).images

    if isinstance(config, FastStageConfig):
        return FastStage(config, experiment.seed, network, originals, runtime)
    return AutoencoderStage(config, experiment.seed, network, originals, runtime)


def diffusion_stage(experiment: TextToImageExperiment, runtime: Runtime) -> DiffusionStage:
    """Build the stage of a completed experiment that trains a model which draws, with fresh weights."""
    config = experiment.stage
    if isinstance(config, GrownConfig):
        grown = growth.build(config, _trunk(config, runtime), experiment.seed)
        return DiffusionStage(config, grown, Pixels(), experiment.data.size, runtime)
    assert isinstance(config, DiffusionConfig)
    made = codec(config.codec, runtime)
    model = build(config, experiment.text, made, experiment.seed, runtime)
    return DiffusionStage(config, model, made, experiment.data.size, runtime)


def _source(config: GrownConfig) -> "Saved":
    """Read the weights that are grown: of a run that has begun, the very ones that it began with.

    Raises:
        Refused: the source, or the checkpoint of it, is not there or not as it was.
    """
    root, path = config.root, Path(config.source)
    if root is None:
        return saved(path, None, config.weights)
    try:
        found = saved(path, root.checkpoint, root.weights)
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
        made = diffusion_stage(text_to_image(found.experiment, found.run.path), runtime)
        found.fill(made.players)
        model = runtime.place(made.players["model"])
    assert isinstance(model, TextToImage)
    return model


def trainer(experiment: AnyExperiment, rundir: RunDir, world: World = ALONE, start: "Saved | None" = None) -> Trainer:
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
    data = source(experiment.data)
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


def world_of(experiment: TextToImageExperiment) -> ShapesConfig:
    """Give the Shapes world of an experiment, for what is judged by its verifier.

    Raises:
        Refused: the data is another.
    """
    if not isinstance(experiment.data, ShapesConfig):
        raise Refused(
            f"{experiment.name} has data.kind={experiment.data.kind}: prompt accuracy, diversity and distances are "
            "measured on data.kind=shapes alone; look at its pictures with scripts/sample.py"
        )
    return experiment.data


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


@dataclass(frozen=True)
class Saved:
    """The weights in a run's checkpoint, and where they come from.

    Attributes:
        weights: of every player, "<player>.<name>" -> tensor.
        experiment, run, origin, state: as of ``Trained``.
    """

    weights: Mapping[str, Tensor]
    experiment: AnyExperiment
    run: RunDir
    origin: Mapping[str, str]
    state: Mapping[str, Any]

    def fill(self, players: Mapping[str, nn.Module]) -> None:
        """Copy the weights into players.

        Raises:
            Refused: they do not fit.
        """
        if problems := snapshot.misfits(self.weights, players):
            raise Refused(f"{self.run.path}: the checkpoint does not fit {self.run.config_path} ({problems[0]})")
        snapshot.fill(players, self.weights)


def saved(path: Path, checkpoint_name: str | None = None, weights: str = "ema") -> Saved:
    """Read weights from a run's newest good checkpoint, or from a named one; "best" is the one of train.keep_best.

    Args:
        path: the run's directory.
        checkpoint_name: of a folder, such as ``step-00001000``, or the hash of its tensors, which recipes hold.
        weights: of the model: "ema" for its first average, a name such as "ema_0.100" for another or for one that
            scripts/average.py made, or "raw".

    Raises:
        Refused: not a run, no such checkpoint or weights, or a broken one that was asked for by name.
        BadData: no checkpoint can be used.
    """
    run = RunDir.view(path)
    experiment = load(run.config_path, [])
    averages = [average_name(length) for length in experiment.train.ema]
    trained = {"ema": averages[0], "raw": None, **{name: name for name in averages}}
    root = run.checkpoints if weights in trained else run.averages / weights
    if not root.is_dir() and root != run.checkpoints:
        have = ", ".join([*trained, *(folder.name for folder in sorted(run.averages.glob("*")))])
        raise Refused(f"{path}: no weights {weights!r} there (found: {have}); scripts/average.py makes others")
    folder: Path | None
    match checkpoint_name:
        case None:
            folder = checkpoint.latest(root, run.run_id)
        case "best":
            folder = checkpoint.best(root, run.run_id, experiment.train.keep_best)
        case _:
            folder = checkpoint.named(root, checkpoint_name)
    if folder is None:
        have = ", ".join(sorted(f.name for f in root.glob("step-*"))) or "none yet"
        wanted = f"no checkpoint {checkpoint_name}" if checkpoint_name else "no checkpoint"
        raise Refused(
            f"{path}: {wanted} there (found: {have}); name another, or train with scripts/train.py --resume {path}"
        )
    loaded = checkpoint.load(folder)
    origin = {"run": run.run_id, "checkpoint": checkpoint.identity(folder), "weights": weights}
    return Saved(snapshot.weights(loaded.tensors, trained.get(weights, weights)), experiment, run, origin, loaded.state)

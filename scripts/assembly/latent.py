"""From the run of an autoencoder to the codec of a latent run."""

from pathlib import Path

import torch
from tqdm import tqdm

from lab import runtime as runtimes
from lab.data.loader import Loader
from lab.data.sources import source
from lab.errors import BadData, Refused
from lab.runtime import Runtime
from lab.storage import write_whole
from lab.training import snapshot
from scripts.assembly import saved
from scripts.assembly.experiments import AnyExperiment
from scripts.assembly.saved import Saved
from vae import autoencoder, published
from vae.autoencoder import Autoencoder
from vae.cached import Cached, folder_of
from vae.codec import Codec, Pixels, PixelsConfig
from vae.latent import Latents, LatentsConfig, Origin, Statistics, measure
from vae.published import PublishedConfig
from vae.selection import AnyCodec
from vae.stage import VaeConfig

NUM, BATCH = 1024, 32  # images that statistics are measured on


def shape(experiment: AnyExperiment, path: Path) -> VaeConfig:
    """Give the stage of an experiment that trains an autoencoder.

    Raises:
        Refused: it trains something else.
    """
    if not isinstance(experiment.stage, VaeConfig):
        raise Refused(f"{path} trains no autoencoder: name the run of one (stage.kind=vae)")
    return experiment.stage


def build(found: Saved, runtime: Runtime) -> Autoencoder:
    """Build the autoencoder that a checkpoint holds, in evaluation mode; its weights stay as they are.

    Raises:
        Refused: it is another model, or the weights do not fit the run's own configuration.
    """
    path = found.run.path
    model = autoencoder.build(shape(found.experiment, path).autoencoder, found.experiment.seed)
    weights = {name: value for name, value in found.weights.items() if name.startswith("model.")}
    if problems := snapshot.misfits(weights, {"model": model}):
        raise Refused(f"{path}: the checkpoint does not fit {found.run.config_path} ({problems[0]})")
    snapshot.fill({"model": model}, weights)
    return runtime.place(model).eval().requires_grad_(False)


def statistics(found: Saved, runtime: Runtime) -> Statistics:
    """Give the scale of the latents: read, or measured now, on the autoencoder's own data, and kept in its run.

    Raises:
        Refused: as from ``vae.latent.measure``.
        BadData: the file of the measurement is spoilt.
    """
    path = found.run.path / f"latents-{found.origin['checkpoint']}-{found.origin['weights']}.json"
    if not path.exists():
        experiment = found.experiment
        loader = Loader(source(experiment.data), experiment.seed)
        starts = tqdm(range(0, NUM, BATCH), desc="scale of the latents, measured once", unit="batch", disable=None)
        batches = (loader.batch(range(start, start + BATCH)) for start in starts)
        measured = measure(build(found, runtime), batches, runtime)
        write_whole(path, (measured.model_dump_json(indent=1) + "\n").encode())
    try:
        return Statistics.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise BadData(f"{path} does not hold the scale of latents; delete it, and it is measured again") from error


def fill(experiment: AnyExperiment, codec: Codec, runtime: Runtime) -> str:
    """Put the latents of the run's images, of one epoch at most, into the codec's cache; say what was done.

    Raises:
        NonFinite, StorageFailed: as from ``vae.cached.Cached``.
    """
    if not isinstance(codec, Cached):
        return "latent cache: none, since stage.codec.cache is null"
    train = experiment.train
    data, asked = source(experiment.data, batch=train.batch), train.steps * train.batch
    num, before = min(asked, data.num or asked), len(codec.cache)
    loader = Loader(data, experiment.seed)
    for start in tqdm(range(0, num, BATCH), desc="encoding images", unit="batch", disable=None):
        for part in loader.parts(range(start, min(start + BATCH, num))):
            codec.posterior(runtime.batch(part.images))
    codec.cache.flush()
    return f"latent cache: {num:,} images, {len(codec.cache) - before:,} of them new, in {codec.cache.folder}"


def complete(asked: AnyCodec, before: AnyCodec | None, allow_download: bool) -> AnyCodec:
    """Fill in which autoencoder it is, and the scale of its latents, unless that is known.

    Args:
        asked: may leave it open.
        before: of a run that has begun; what was found then is taken over.
        allow_download: whether a published one that is not here may be fetched.

    Raises:
        Refused: it is nowhere to be found.
    """
    match asked:
        case PublishedConfig(found=None):
            known = before.found if isinstance(before, PublishedConfig) else None
            return asked.model_copy(update={"found": known or published.find(asked, allow_download)})
        case LatentsConfig(origin=None) if isinstance(before, LatentsConfig):
            return asked.model_copy(update={"origin": before.origin, "statistics": before.statistics})
        case LatentsConfig(origin=None):
            found = saved.read(Path(asked.run), None, asked.weights)
            factor = shape(found.experiment, found.run.path).autoencoder.factor
            scale = statistics(found, runtimes.start(found.experiment.runtime))
            return asked.model_copy(update={"origin": Origin(**found.origin, factor=factor), "statistics": scale})
    return asked


def codec(config: AnyCodec, runtime: Runtime) -> Codec:
    """Build the codec of a completed experiment.

    Raises:
        Refused: the autoencoder, or the checkpoint of it that this run was begun with, is not there.
    """
    if isinstance(config, PixelsConfig):
        return Pixels()
    with torch.device("cpu"):  # real weights, also where only the shapes of what is trained are asked for
        if isinstance(config, PublishedConfig):
            made = published.build(config, runtime)
        else:
            made = _trained_codec(config, runtime)
    return Cached(made, folder_of(config.cache, config)) if config.cache else made


def _trained_codec(config: LatentsConfig, runtime: Runtime) -> Latents:
    assert config.origin is not None, "the autoencoder is found before the codec is built"
    assert config.statistics is not None
    path, origin = Path(config.run), config.origin
    found = saved.read(path, origin.checkpoint, origin.weights)
    if found.origin["run"] != origin.run:
        raise Refused(f"{path} is run {found.origin['run']}, but these latents are of run {origin.run}")
    return Latents(build(found, runtime), config.statistics, config.tile)

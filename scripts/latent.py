"""From the run of an autoencoder to the codec of a latent run."""

from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from lab.data.loader import Loader
from lab.data.sources import source
from lab.errors import BadData, Refused
from lab.runtime import Runtime
from lab.storage import write_whole
from lab.training import snapshot
from vae import autoencoder
from vae.autoencoder import Autoencoder
from vae.cached import Cached
from vae.codec import Codec
from vae.latent import Statistics, measure
from vae.stage import VaeConfig

if TYPE_CHECKING:
    from scripts.assemble import AnyExperiment, Saved

NUM, BATCH = 1024, 32  # images that statistics are measured on


def shape(experiment: "AnyExperiment", path: Path) -> VaeConfig:
    """Give the stage of an experiment that trains an autoencoder.

    Raises:
        Refused: it trains something else.
    """
    if not isinstance(experiment.stage, VaeConfig):
        raise Refused(f"{path} trains no autoencoder: name the run of one (stage.kind=vae)")
    return experiment.stage


def build(found: "Saved", runtime: Runtime) -> Autoencoder:
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


def statistics(found: "Saved", runtime: Runtime) -> Statistics:
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


def fill(experiment: "AnyExperiment", codec: Codec, runtime: Runtime) -> str:
    """Put the latents of the run's images, of one epoch at most, into the codec's cache; say what was done.

    Raises:
        NonFinite, StorageFailed: as from ``vae.cached.Cached``.
    """
    if not isinstance(codec, Cached):
        return "latent cache: none, since stage.codec.cache is null"
    data, asked = source(experiment.data), experiment.train.steps * experiment.train.batch
    num, before = min(asked, data.num or asked), len(codec.cache)
    loader = Loader(data, experiment.seed)
    for start in tqdm(range(0, num, BATCH), desc="encoding images", unit="batch", disable=None):
        codec.posterior(runtime.batch(loader.batch(range(start, min(start + BATCH, num))).images))
    codec.cache.flush()
    return f"latent cache: {num:,} images, {len(codec.cache) - before:,} of them new, in {codec.cache.folder}"

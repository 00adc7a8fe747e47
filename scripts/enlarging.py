"""From the run of a fast decoder to what enlarges pictures."""

from lab import runtime as runtimes
from lab.errors import Refused
from lab.training import snapshot
from scripts.saved import Saved
from superres import fast
from superres.fast import Enlarger
from superres.fast_stage import FastStageConfig


def shape(found: Saved) -> FastStageConfig:
    """Give the stage of a run that trains a fast decoder.

    Raises:
        Refused: it trains something else.
    """
    if not isinstance(found.experiment.stage, FastStageConfig):
        raise Refused(f"{found.run.path} trains nothing that enlarges pictures: name a run with stage.kind=fast")
    return found.experiment.stage


def build(found: Saved, tile: int = 0) -> Enlarger:
    """Build the decoder that a checkpoint holds; see ``Enlarger``.

    Raises:
        Refused: it is another model, or the weights do not fit the run's own configuration.
    """
    model = fast.build(shape(found).decoder, found.experiment.seed)
    weights = {name: value for name, value in found.weights.items() if name.startswith("model.")}
    if problems := snapshot.misfits(weights, {"model": model}):
        raise Refused(f"{found.run.path}: the checkpoint does not fit {found.run.config_path} ({problems[0]})")
    snapshot.fill({"model": model}, weights)
    runtime = runtimes.start(found.experiment.runtime)
    return Enlarger(runtime.place(model).eval().requires_grad_(False), runtime, tile)

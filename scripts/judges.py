"""From the run of a scorer to what judges pictures."""

from lab import runtime as runtimes
from lab.errors import Refused
from lab.scorer.judge import Judge
from lab.scorer.stage import ScorerConfig
from scripts import assemble
from scripts.saved import Saved


def trained(found: Saved) -> Judge:
    """Build the scorer that a checkpoint holds.

    Raises:
        Refused: the run trains something else, or the weights do not fit its own configuration.
    """
    experiment = found.experiment
    if not isinstance(experiment.stage, ScorerConfig):
        raise Refused(f"{found.run.path} trains no scorer: name a run with stage.kind=scorer")
    runtime = runtimes.start(experiment.runtime)
    model = assemble.scorer(experiment, experiment.stage, runtime)
    found.fill({"model": model})
    return Judge(runtime.place(model).eval().requires_grad_(False), runtime, found.origin)

"""The weights of another run that a new one begins with (``train.init_from``), for scripts/train.py.

Imported inside the script's ``main``, after the arguments are read: it brings in torch.
"""

from pathlib import Path

import torch

from lab.errors import Refused
from lab.rundir import RunDir
from lab.runtime import Runtime
from lab.text import selection
from lab.training import snapshot
from scripts.assembly import saved
from scripts.assembly.assemble import stage
from scripts.assembly.experiments import AnyExperiment
from scripts.assembly.saved import Saved


def read(experiment: AnyExperiment, path: Path) -> Saved | None:
    """Read the weights that a run begins with, and make sure that they fit.

    Args:
        experiment: completed; ``train.init_from`` names the other run.
        path: the folder of the run that begins, which need not be there yet.

    Returns:
        ``None`` where there is nothing to take over: fresh weights, or a run that has a checkpoint of its own.

    Raises:
        Refused: no such run or weights, or weights that do not fit, with what differs.
        BadData: every checkpoint of the other run is broken.
    """
    wanted = experiment.train.init_from
    if not wanted or (RunDir.is_run(path) and any(RunDir.view(path).checkpoints.glob("step-*"))):
        return None
    other, colon, weights = wanted.rpartition(":")
    if not colon or RunDir.is_run(wanted):
        other, weights = wanted, "ema"
    if not RunDir.is_run(other):
        have = ", ".join(sorted(str(file.parent) for file in Path(other).parent.glob("*/config.yaml"))) or "none"
        raise Refused(f"train.init_from={wanted}: {other} is not a run directory (runs beside it: {have})")
    found = saved.read(Path(other), weights=weights)
    if problems := _misfits(found, experiment):
        more = "; and more" if problems[3:] else ""
        raise Refused(
            f"train.init_from={wanted} does not fit; differences ({len(problems)}): {'; '.join(problems[:3])}{more}. "
            f"Begin with the configuration of that run: python scripts/train.py {found.run.config_path} "
            f"train.init_from={wanted} --run runs/OTHER"
        )
    return found


def _misfits(found: Saved, experiment: AnyExperiment) -> list[str]:
    """What differs between weights and the model of an experiment: words, names and shapes."""
    with torch.device("meta"):  # names and shapes without the numbers
        players = stage(experiment, Runtime(torch.device("cpu"))).players
    problems = snapshot.misfits(found.weights, players)
    return [*selection.differences(found.experiment.text, experiment.text), *problems]

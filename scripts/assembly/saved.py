"""The weights that a run has saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lab import runtime as runtimes
from lab.errors import Refused
from lab.rundir import RunDir
from lab.training import checkpoint, snapshot
from lab.training.snapshot import average_name
from scripts.assembly import experiments
from scripts.assembly.experiments import AnyExperiment


@dataclass(frozen=True)
class Saved:
    """The weights in a run's checkpoint, and where they come from.

    Attributes:
        weights: of every player, "<player>.<name>" -> tensor.
        experiment, run, origin, state: as of ``scripts.assembly.drawing.Trained``.
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


def read(path: Path, checkpoint_name: str | None = None, weights: str = "ema") -> Saved:
    """Read weights from a run's newest good checkpoint, or from a named one; "best" is the one of train.keep_best.

    They are to be used on this machine, whatever machine trained them: ``experiment.runtime`` is as ``runtime.moved``
    gives it.

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
    experiment = experiments.load(run.config_path, [])
    experiment = experiment.model_copy(update={"runtime": runtimes.moved(experiment.runtime, run.trained_on)})
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

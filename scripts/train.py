"""Train a model from a preset, or go on with a run.

    python scripts/train.py configs/shapes.yaml                        # into runs/shapes
    python scripts/train.py configs/shapes.yaml train.steps=200 --run runs/try
    python scripts/train.py configs/shapes.yaml --run runs/try         # refused: runs/try has 200 steps
    python scripts/train.py --resume runs/try                          # goes on where it was, or says it is done
    python scripts/train.py --resume runs/try train.steps=400          # goes on to 400 steps
    python scripts/train.py --resume runs/try stage.caption_drop=0.2 --allow-change   # and as another experiment
    python scripts/train.py configs/shapes.yaml train.init_from=runs/try --run runs/finer   # begins with its weights

The same command again continues a run that was stopped, killed or preempted: bit for bit, from its newest good
checkpoint. Ctrl-C, SIGTERM and SIGUSR1 save and stop. Any key of the configuration can be set as dotted.key=value; a
misspelt one is named. Watch a run with ``tensorboard --logdir runs``.

Several processes, on one machine or many (docs/cluster.md), share each step's samples and make the same step:

    torchrun --standalone --nproc-per-node 2 -- scripts/train.py configs/shapes.yaml --run runs/two
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.interface.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from lab.world import World
    from scripts.assembly.experiments import AnyExperiment

READY, FINISHED = 1, 2  # what the first process tells the others of a run


def main(argv: Sequence[str]) -> int:
    """Train; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PRESET key=value",
        help="a preset such as configs/shapes.yaml, and settings that differ from it",
    )
    parser.add_argument("--run", type=Path, help="the run's folder; default: runs/<name of the preset>")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run and its own configuration")
    parser.add_argument(
        "--allow-change",
        action="store_true",
        help="with --resume: go on although a setting makes it another experiment (data, text, schedule, batch, ...)",
    )
    parser.add_argument(
        "--allow-range",
        action="store_true",
        help="begin although no image of the data is dark anywhere, as where images were scaled to [0, 1] by mistake",
    )
    options = parser.parse_intermixed_args(argv)
    presets = [word for word in options.words if "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    if len(presets) != (options.resume is None) or (options.resume and options.run):
        parser.error("name one preset (configs/shapes.yaml, with --run for its folder) or one run (--resume runs/NAME)")
    if options.allow_change and not options.resume:
        parser.error("--allow-change goes with --resume")
    from lab.rundir import RunDir
    from lab.world import World
    from scripts.assembly import experiments

    if options.resume:
        path, asked = options.resume, experiments.load(RunDir.view(options.resume).config_path, overrides)
    else:
        asked = experiments.load(Path(presets[0]), overrides)
        path = options.run or Path("runs") / asked.name
    with World.connect(asked.runtime.timeout_s) as world:
        if not world.is_first:
            return _follow(path, world, options.allow_change)
        if options.resume:
            experiment = _resume(path, asked, options.allow_change)
        else:
            experiment = _begin(path, asked, options.allow_range)
        return _train(path, experiment, world, options.allow_change)


def _begin(path: Path, asked: "AnyExperiment", allow_range: bool) -> "AnyExperiment":
    """The experiment of a new run, or of the one of the very same configuration."""
    from lab.config import diff
    from lab.data.sources import source
    from lab.data.value_range import check_range
    from lab.errors import Refused
    from lab.rundir import RunDir
    from scripts.assembly import assemble, experiments

    if not RunDir.is_run(path):
        completed = assemble.complete(asked)
        if not allow_range:
            check_range(source(completed.data, batch=completed.train.batch), completed.seed)
        return completed
    known = experiments.load(path / "config.yaml", [])
    if changes := diff(known, assemble.complete(asked, known)):
        more = f" and {len(changes) - 1} more" if changes[1:] else ""
        raise Refused(
            f"{path} holds another configuration ({changes[0]}{more}): "
            f"start another run with --run runs/OTHER, or go on with this one by --resume {path} [key=value]"
        )
    return known


def _resume(path: Path, asked: "AnyExperiment", allow: bool) -> "AnyExperiment":
    """The experiment of a run with its own configuration, except for what may change on the way or is allowed to."""
    from lab.errors import Refused
    from lab.experiment import identity_changes
    from scripts.assembly import assemble, experiments

    known = experiments.load(path / "config.yaml", [])
    asked = assemble.complete(asked, known)
    if changes := identity_changes(known, asked):
        listed = "; ".join(changes)
        if not allow:
            raise Refused(
                f"{path}: {listed} would make it another experiment; "
                "start one with a preset and --run runs/OTHER, or insist by --allow-change"
            )
        print(f"{path}: from here on another experiment than the one begun: {listed}", file=sys.stderr)
    return asked


def _train(path: Path, experiment: "AnyExperiment", world: "World", allow: bool) -> int:
    """Be the process that writes the run, alone or with others that follow."""
    from lab.config import diff
    from lab.rundir import RunDir
    from scripts.assembly import assemble, experiments, warm_start

    start = warm_start.read(experiment, path)
    with RunDir.open(path) if RunDir.is_run(path) else RunDir.create(path, experiment) as rundir:
        status = rundir.status()
        known = status is not None and status.state == "finished"
        if status and known and (experiment.train.budget or status.step >= experiment.train.steps):
            world.from_first(FINISHED)
            without = "train.budget= " if experiment.train.budget else ""
            print(
                f"{path} is finished at step {status.step}; to extend it: "
                f"python scripts/train.py --resume {path} {without}train.steps={2 * status.step}"
            )
            return 0
        if start is not None:
            rundir.record_init(start.origin)
        with rundir.reconfigured(experiment, diff(experiments.load(rundir.config_path, []), experiment)):
            world.from_first(READY)
            trainer = assemble.trainer(experiment, rundir, world, start)
            trainer.takes_other_data = allow
            del start  # as large as the model
            print(assemble.describe(trainer, path))
            code = trainer.fit()
        done = (
            f"finished at step {trainer.step}"
            if code == 0
            else f"stopped by a signal at step {trainer.step}, saved; the same command goes on"
        )
        print(f"{path}: {done}")
        return code


def _follow(path: Path, world: "World", allow: bool) -> int:
    """Be one of the processes that help the first: read what it decided, and write nothing."""
    from lab.errors import Refused
    from lab.rundir import RunDir
    from scripts.assembly import assemble, experiments, warm_start

    if world.from_first(READY) == FINISHED:
        return 0
    rundir = RunDir.view(path)
    experiment = experiments.load(rundir.config_path, [])
    start = warm_start.read(experiment, path)
    if start is not None and start.origin != rundir.environment()["init_from"]:
        raise Refused(f"{experiment.train.init_from} got a new checkpoint meanwhile: run the same command again")
    trainer = assemble.trainer(experiment, rundir, world, start)
    trainer.takes_other_data = allow
    return trainer.fit()


if __name__ == "__main__":
    run(main)

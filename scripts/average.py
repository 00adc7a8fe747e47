"""Make an average of the weights of another length, after the training.

    python scripts/train.py configs/shapes.yaml train.snapshots=32 "train.ema=[0.05,0.1]" --run runs/long
    python scripts/average.py runs/long --length 0.075                  # of the newest snapshot's step
    python scripts/average.py runs/long --length 0.12 --step 1400       # of an earlier one's
    python scripts/sample.py runs/long "a red circle" --weights ema_0.075
    python scripts/evaluate.py runs/long --weights ema_0.120 --checkpoint step-00001400

The length is the spread of the steps that are averaged, relative to the run: 0.05 looks back over about a twentieth of
it. The best one is not known before the training and is worth a search. A run with train.snapshots keeps averages of
two lengths on the way; sums of them come close to any other length. How close is printed: the error of the sum relative
to the average's own scatter, were the weights of all steps independent. With 32 snapshots of 0.05 and 0.10 it is at
most 1.1 % from 0.03 to 0.2; above 2 % it is marked by a warning, above 30 % refused.

Writes RUN/averages/ema_<length>/step-<step>/, verified by hash, which sample.py and evaluate.py find by --weights and,
for another step than the newest, --checkpoint.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.interface.entry import EXIT_CODES, run

CLOSE, USELESS = 0.02, 0.3  # errors of a fit


def main(argv: Sequence[str]) -> int:
    """Make one; see the module's text."""
    options = _parser().parse_args(argv)
    from lab import runtime as runtimes
    from lab.errors import Refused
    from lab.rundir import RunDir
    from lab.training import checkpoint, posthoc
    from lab.training.history import History
    from lab.training.snapshot import average_name
    from scripts.assembly import assemble, experiments

    if not 0.001 <= options.length < 0.28 or round(options.length, 3) != options.length:
        raise Refused(f"--length {options.length}: from 0.001 to below 0.28, to three decimals")
    directory = RunDir.view(options.run)
    experiment, history = experiments.load(directory.config_path, []), History(directory.snapshots)
    stored = history.profiles(experiment.train.ema, options.step)
    wanted = posthoc.Profile(stored[-1].step, options.length)
    fit = posthoc.solve(stored, wanted)
    name = average_name(wanted.length)
    told = f"{name} of step {wanted.step} from {len(stored)} stored averages: expected error {fit.error:.2%}"
    if fit.error > USELESS:
        raise Refused(f"{told}; that would be another average: take a length nearer to {list(experiment.train.ema)}")
    print(told)
    if fit.error > CLOSE:
        print(
            f"warning: that is above {CLOSE:.0%}; a length nearer to {list(experiment.train.ema)} is closer to its name"
        )
    model = assemble.stage(experiment, runtimes.CPU).players["model"]
    parameters = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    tensors = {name: history.total(stored, fit.coefficients, parameters)}
    sources = history.identities(wanted.step)
    facts = {"run_id": directory.run_id, "length": wanted.length, "error": fit.error, "snapshots": sources}
    state = {"step": wanted.step, "seen": wanted.step * experiment.train.batch}
    root = (options.out or directory.averages) / name
    print(checkpoint.save(root, checkpoint.Snapshot(tensors, state), facts, keep=None))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="a run directory with snapshots")
    add("--length", type=float, required=True, help="0.001 to 0.28, to three decimals, such as 0.075")
    add("--step", type=int, help="of a snapshot (default: the newest)")
    add("--out", type=Path, help="folder for the averages (default RUN/averages, where --weights looks)")
    return parser


if __name__ == "__main__":
    run(main)

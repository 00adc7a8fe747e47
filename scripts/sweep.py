"""Train and evaluate every combination of some values with several seeds, so that configurations can be compared.

    python scripts/sweep.py configs/shapes.yaml --vary train.optimizer.matrix_rate=0.01,0.02 --seeds 3
    python scripts/sweep.py configs/shapes.yaml train.steps=400 --vary "stage.unet.widths=[32,64],[64,128]" --dry-run
    python scripts/sweep.py configs/shapes.yaml --vary train.batch=16,32 --images 25600 --seeds 5 --dir runs/batch
    python scripts/sweep.py configs/shapes.yaml --seeds 6 --dir runs/spread       # one configuration: how runs differ

Each run is made by scripts/train.py into DIR/<values>-seed<n> and measured by scripts/evaluate.py. Run n of every
configuration has the same seed. All get the same budget: the same images (train.steps times train.batch, or --images),
or the same time (train.budget=10m train.steps=1000000 train.optimizer.decay_share=0.5); what varies may be the budget
itself. All configurations get their first seed before the second begins, so that a sweep that is stopped is of use.

Configurations are ranked by a figure (--by): the order is told seed by seed, and every gap is held against the spread
between seeds. Which of some autoencoders is the best to learn on, for example:

    python scripts/sweep.py configs/shapes64_latent.yaml --vary stage.codec.run=runs/a,runs/b --by kernel_distance

The same command again goes on: finished runs are not made again, stopped ones are continued, and with more --seeds only
the new ones are made. A run that fails is named with its exit code, and the others go on; the sweep then exits with 1.
Ctrl-C and SIGTERM stop the run in work, which saves, and then the sweep.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.interface.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from lab.training.signals import Stopper
    from scripts.comparison.cells import Cell

POLL_S = 0.2


def main(argv: Sequence[str]) -> int:
    """Sweep; see the module's text."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    presets = [word for word in options.words if "=" not in word]
    if len(presets) != 1:
        parser.error("name one preset, such as configs/shapes.yaml")
    from lab.lock import Lock
    from lab.training.signals import Stopper
    from scripts.comparison import cells, sweeps

    sweeps.check_figure(options.by, with_distances=not options.no_distances)
    overrides = [word for word in options.words if "=" in word]
    plan = cells.grid(Path(presets[0]), overrides, options.vary, options.seeds, options.images)
    folder: Path = options.dir or Path("runs") / sweeps.title(plan[0].experiment.name, options.vary)
    print(sweeps.plan(plan, folder, options.num))
    if options.dry_run:
        return 0
    lock, failures = Lock(folder / ".lock"), {}
    try:
        with Stopper().listening() as stopper:
            for number, cell in enumerate(plan, start=1):
                print(f"[{number}/{len(plan)}] {cell.name}: {sweeps.state(cell, folder, options.num)}", flush=True)
                if failure := _make(cell, Path(presets[0]), folder, options, stopper):
                    failures[cell.name] = failure
                    print(f"[{number}/{len(plan)}] {cell.name}: failed: {failure}", flush=True)
    finally:
        lock.release()
    print(sweeps.result(plan, folder, options.num, failures, options.by))
    return 1 if failures else 0


def _make(cell: "Cell", preset: Path, folder: Path, options: argparse.Namespace, stopper: "Stopper") -> str:
    """Bring one run to its end, and say how that failed, if it did."""
    from lab.rundir import RunDir
    from scripts.comparison import sweeps

    path = folder / cell.name
    quick = ["--no-distances"] if options.no_distances else []
    acts = (
        ("train", (sweeps.MISSING, sweeps.BEGUN), [str(preset), *cell.overrides, "--run", str(path)]),
        ("evaluate", (sweeps.TRAINED,), [str(path), "--num", str(options.num), *quick]),
    )
    for script, states, words in acts:
        if sweeps.state(cell, folder, options.num) not in states:
            continue
        if code := launch(script, words, stopper):
            stopper.check()
            status = RunDir.view(path).status() if RunDir.is_run(path) else None
            reason = f" ({status.reason})" if status and status.state == "failed" else ""
            return f"{script}.py exited with {code}{reason}"
    return ""


def launch(script: str, words: Sequence[str], stopper: "Stopper") -> int:
    """Run a script in a process of its own to its end; a signal that arrives meanwhile is passed on to it, once."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *words]
    # Its own group: Ctrl-C would reach it twice, which ends it without saving.
    with subprocess.Popen(command, stdout=sys.stderr, process_group=0) as process:
        passed_on = False
        try:
            while True:
                try:
                    return process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    if stopper.signal is not None and not passed_on:
                        process.send_signal(stopper.signal)
                        passed_on = True
        finally:
            process.terminate()  # nothing to one that has ended


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="PRESET key=value", help="a preset, and settings of every run that differ from it")
    add("--vary", action="append", default=[], metavar="KEY=A,B", help="a key and its values; again for a grid")
    add("--seeds", type=int, default=3, help="runs of each configuration (default 3, the least to compare by)")
    add("--images", type=int, help="images that every run trains on: sets train.steps by train.batch")
    add("--dir", type=Path, help="folder of the runs (default runs/<preset>-<keys>)")
    add("--num", type=int, default=500, help="of evaluate.py: prompts per kind (default 500)")
    add(
        "--by",
        default="pair",
        help="figure that configurations are ranked by: a kind of prompts (default pair), "
        "kernel_distance or frechet_distance",
    )
    add("--no-distances", action="store_true", help="of evaluate.py: leave out the distances to real pictures")
    add("--dry-run", action="store_true", help="list the runs and what they cost, and do nothing")
    return parser


if __name__ == "__main__":
    run(main)

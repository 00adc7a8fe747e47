"""Check that a killed run goes on bit for bit: with your stage, your configuration, on this machine.

    python scripts/verify_resume.py configs/shapes.yaml
    python scripts/verify_resume.py tests/tiny.yaml --steps 12 --kills 3
    python scripts/verify_resume.py configs/shapes.yaml train.preview_every=2 train.workers=2 --dir runs/verify

Trains the preset a few steps with scripts/train.py, in processes of its own: once without interruption, and once killed
(SIGKILL) and started again by the same command until it is done. The kills take turns: just after a checkpoint has
appeared, within a step, within a save. Then the last checkpoints are compared bit by bit (weights, averages, moments of
the optimizer, memory of the stage), and the lines of metrics.jsonl, times aside.

Any key of the configuration can be set as dotted.key=value. Unless you set them, there are no previews, no evaluations
and no warm-up of the learning rate. Steps and checkpoints follow from --steps and --kills, and every step is logged.
Exits with 0 if all is bit-identical, with 1 if not, and as scripts/train.py does where that fails.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from scripts.interface.entry import EXIT_CODES, run

if TYPE_CHECKING:
    from torch import Tensor

    from lab.rundir import RunDir

TRAIN = Path(__file__).with_name("train.py")
QUIET = ("train.preview_every=0", "evaluate.every_steps=0", "train.optimizer.warm_up=0")
PLACES = ("after a save", "within a step", "within a save")
POLL_S = 0.001
CAUSES = """Most likely one of these:
  - other numbers of threads: compare "threads" in both environment.json, and set runtime.threads
  - kernels of a GPU that add up in any order: call torch.use_deterministic_algorithms(True) where your stage is made,
    and set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment
  - something that your stage remembers outside players and memory, or draws without lab.randomness"""


def main(argv: Sequence[str]) -> int:
    """Verify; see the module's text."""
    options, preset, overrides = _parse(argv)
    from lab.errors import Refused

    if options.kills < 1 or options.steps < 2 * (options.kills + 1):
        raise Refused(f"--kills {options.kills} must be at least 1, and need --steps {2 * (options.kills + 1)} or more")
    every = options.steps // (options.kills + 1)
    folder = options.dir or Path(tempfile.mkdtemp(prefix="verify-resume-"))
    whole, cut = folder / "whole", folder / "cut"
    if whole.exists() or cut.exists():
        raise Refused(f"{folder} holds runs already: name another folder by --dir")
    changes = [*QUIET, *overrides, f"train.steps={options.steps}", f"train.checkpoint_every={every}"]
    changes.append("train.log_every=1")
    print(f"both runs: {preset} {' '.join(changes)}", flush=True)
    code = _train([preset, *changes, "--run", str(whole)], "without interruption")
    again = [str(whole / "config.yaml"), "--run", str(cut)]  # where "auto" stands for what it was found to be
    for number in range(1, options.kills + 1):
        code = code or _killed(again, cut, PLACES[(number - 1) % len(PLACES)], number * every)
    code = code or _train(again, "to the end") or judge(whole, cut, options.kills, every)
    if options.dir is None and code != 1:
        shutil.rmtree(folder)
    else:
        print(f"the runs are kept in {folder}")
    return code


def judge(whole: Path, cut: Path, kills: int, untouched: int) -> int:
    """Compare two runs, say what was found, and give the exit code.

    Args:
        whole: the run without interruption.
        cut: the one with.
        kills: how often it was killed.
        untouched: steps that it had made before.
    """
    (tensors, in_tensors), (lines, in_metrics) = differences(whole, cut), metrics_differences(whole, cut)
    if not in_tensors and not in_metrics:
        print(f"bit-identical: {tensors} tensors, {lines} lines of metrics, {kills} kills")
        return 0
    if in_tensors:
        print(f"not identical: {len(in_tensors)} of {tensors} tensors; the first: {in_tensors[0]}")
    if in_metrics:
        step, first = in_metrics[0]
        print(f"not identical: {len(in_metrics)} of {lines} lines of metrics; the first: {first}")
        if step <= untouched:
            print(f"That is before anything was resumed (step {untouched}), so it is none of the resume's doing.")
    print(CAUSES)
    return 1


def differences(one: Path, other: Path) -> tuple[int, list[str]]:
    """Count the tensors of two runs' last checkpoints, and list those that are not the same bits."""
    first, second = _tensors(one), _tensors(other)
    names = sorted(first.keys() | second.keys())
    found = [(name, _difference(first.get(name), second.get(name))) for name in names]
    return len(names), [f"{name} {how}" for name, how in found if how]


def metrics_differences(one: Path, other: Path) -> tuple[int, list[tuple[int, str]]]:
    """Count the lines of two runs' metrics, and list those that differ in more than times, with their step."""
    from lab.rundir import RunDir

    nothing: dict[str, Any] = {}
    lines = list(zip_longest(RunDir.view(one).metrics(), RunDir.view(other).metrics(), fillvalue=nothing))
    found = []
    for line, twin in lines:
        names = (name for name in {**line, **twin} if not name.startswith("time/"))
        if name := next((name for name in names if line.get(name) != twin.get(name)), None):
            step = int({**twin, **line}["step"])
            found.append((step, f"step {step}: {name} is {line.get(name)} and {twin.get(name)}"))
    return len(lines), found


def _tensors(path: Path) -> dict[str, "Tensor"]:
    """Every tensor of a run's last checkpoint, by its file and name."""
    from lab.rundir import RunDir
    from lab.training import checkpoint

    newest = checkpoint.latest(RunDir.view(path).checkpoints)
    assert newest is not None, "a finished run has a checkpoint"
    files = checkpoint.load(newest).tensors
    return {f"{stem}.safetensors: {name}": tensor for stem, file in files.items() for name, tensor in file.items()}


def _difference(one: "Tensor | None", other: "Tensor | None") -> str | None:
    """In which way two tensors are not the same bits, or None."""
    import torch

    if one is None or other is None:
        return f"is only in the {'killed' if one is None else 'uninterrupted'} run"
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"is {one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
    if torch.equal(*(tensor.flatten().view(torch.uint8) for tensor in (one, other))):
        return None
    return f"differs by up to {(one.double() - other.double()).abs().max():.3g}"


def _train(words: Sequence[str], what: str) -> int:
    """Run scripts/train.py to its end and give its exit code."""
    print(f"train {what}", flush=True)
    return subprocess.run([sys.executable, TRAIN, *words], check=False).returncode


def _killed(words: Sequence[str], path: Path, place: str, step: int) -> int:
    """Run scripts/train.py and kill it at a place, once it has come to a checkpoint; give 0 unless it failed."""
    from lab.errors import Refused
    from lab.rundir import RunDir

    print(f"train, to be killed {place}, from step {step} on", flush=True)
    seen = RunDir(path, None)
    is_there = _sign(seen, place, step)
    with subprocess.Popen([sys.executable, TRAIN, *words]) as process:
        while process.poll() is None and not is_there():
            time.sleep(POLL_S)
        process.kill()
    print(file=sys.stderr)  # leaves the line of the progress bar
    if process.returncode == 0:
        raise Refused(f"{path} was done before it could be killed {place}: raise --steps")
    if process.returncode == -SIGKILL:
        newest = max((folder.name for folder in seen.checkpoints.glob("step-*")), default="none")
        draft = ", within a save" if any(seen.checkpoints.glob(".tmp-*")) else ""
        print(f"killed after step {_last_step(seen)}{draft}; newest checkpoint: {newest}", flush=True)
        return 0
    return process.returncode


def _sign(seen: "RunDir", place: str, step: int) -> Callable[[], bool]:
    """What tells from outside that a run has come to a place."""
    target = seen.checkpoints / f"step-{step:08d}"
    if place == "within a step":
        return lambda: _last_step(seen) > step
    if place == "after a save":
        return target.exists
    return lambda: target.exists() or any(seen.checkpoints.glob(f".tmp-{target.name}-*"))


def _last_step(seen: "RunDir") -> int:
    return max((line["step"] for line in seen.metrics()), default=0)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, str, list[str]]:
    """Give the options, the preset and the settings that differ from it."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="PRESET key=value", help="a preset, and settings that differ from it")
    add("--steps", type=int, default=6, help="of each run (default 6)")
    add("--kills", type=int, default=2, help="of the second run, at least 1; each needs two steps (default 2)")
    add("--dir", type=Path, help="where the two runs are kept (default: a temporary folder, deleted if all is well)")
    options = parser.parse_intermixed_args(argv)
    presets = [word for word in options.words if "=" not in word]
    if len(presets) != 1:
        parser.error("name one preset, such as configs/shapes.yaml")
    return options, presets[0], [word for word in options.words if "=" in word]


if __name__ == "__main__":
    run(main)

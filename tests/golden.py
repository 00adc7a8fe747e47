"""Figures and a checkpoint of the day on which they were made, which later code must reproduce and read.

    python -m tests.golden        # makes what is missing under tests/assets, and nothing else

    losses/cpu.txt                the losses of 30 steps of the tiny preset
    checkpoint_v1/                a run, stopped after 3 of 6 steps, in checkpoint format 1:
        config.yaml               resolved to the last key, so that no default of a later day changes it
        environment.json          its id
        ckpt.tar.xz               ckpt/step-00000003, its tensors rounded to bfloat16's digits, so that they pack
        losses.txt                those of the 3 steps that it did not make any more

What is there is never made again. Where a change means to change the figures, delete the file and say why in the
change; a checkpoint format keeps its run for as long as it is read, and a new format gets a folder of its own.

There is no dropout, since torch draws the masks, and one thread. Other threads, memory layout or instructions of the
CPU (those of 2008, AVX2) then change no loss of the 30 by more than 2e-7: rounding does not grow here.
"""

import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from lab.rundir import RunDir
from tests.faults import ROOT, TINY, Scripts

LOSSES = ROOT / "tests" / "assets" / "losses" / "cpu.txt"
CHECKPOINT = ROOT / "tests" / "assets" / "checkpoint_v1"
STEADY = ("stage.unet.dropout=0", "train.log_every=1", "train.preview_every=0")
SMALL = (
    *("stage.unet.patch=1", "stage.unet.widths=[16]", "stage.unet.attention=[0]", "stage.unet.middle=1"),
    *("text.width=8", "text.heads=1", "train.ema=[0.1]", "train.steps=6", "train.checkpoint_every=3"),
)


def losses(run: Path) -> list[float]:
    """The losses in a run's metrics, one a step."""
    return [line["train/loss"] for line in RunDir.view(run).metrics()]


def recorded(path: Path) -> list[float]:
    """The losses in a file, one a line."""
    return [float(line) for line in path.read_text().splitlines()]


def thirty_steps(script: Scripts, run: Path) -> list[float]:
    """Train the tiny preset, as deep as it was then, and give its losses."""
    done = script("train", TINY, *STEADY, "stage.unet.middle=4", "train.steps=30", "--run", run)
    assert done.code == 0, done.err
    return losses(run)


def unpack(run: Path) -> Path:
    """Put the old run where it can be gone on with."""
    run.mkdir()
    for name in ("config.yaml", "environment.json"):
        shutil.copy(CHECKPOINT / name, run / name)
    with tarfile.open(CHECKPOINT / "ckpt.tar.xz") as archive:
        archive.extractall(run, filter="data")
    return run


def make_losses(script: Scripts, scratch: Path) -> None:
    """Write losses/cpu.txt."""
    write_losses(LOSSES, thirty_steps(script, scratch / "thirty"))


def make_checkpoint(script: Scripts, scratch: Path) -> None:
    """Write checkpoint_v1."""
    from lab.training import checkpoint

    run = scratch / "small"
    assert script("train", TINY, *STEADY, *SMALL, "--run", run).code == 0
    shutil.rmtree(run / "ckpt" / "step-00000006")
    folder = run / "ckpt" / "step-00000003"
    saved, facts = checkpoint.load(folder), json.loads((folder / checkpoint.MANIFEST).read_text())
    rounded = {
        stem: {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in tensors.items()}
        for stem, tensors in saved.tensors.items()
    }
    own = {name: fact for name, fact in facts.items() if name not in ("format_version", "files", "seal")}
    checkpoint.save(run / "ckpt", checkpoint.Snapshot(rounded, saved.state), own)
    CHECKPOINT.mkdir(parents=True)
    shutil.copy(run / "config.yaml", CHECKPOINT)
    (CHECKPOINT / "environment.json").write_text(json.dumps({"run_id": own["run_id"], "processes": []}) + "\n")
    with tarfile.open(CHECKPOINT / "ckpt.tar.xz", "w:xz") as archive:
        archive.add(run / "ckpt", "ckpt", filter=anonymous)
    old = unpack(scratch / "old")
    assert script("train", "--resume", old).code == 0
    write_losses(CHECKPOINT / "losses.txt", losses(old))


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Forget who packed a file, and when."""
    return member.replace(mtime=0, uid=0, gid=0, uname="", gname="", deep=False)


def write_losses(path: Path, values: list[float]) -> None:
    """Write losses with all their digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{value!r}\n" for value in values))


def main() -> None:
    """Make what is missing."""
    made = {LOSSES: make_losses, CHECKPOINT: make_checkpoint}
    missing = [make for path, make in made.items() if not path.exists()]
    if missing:
        with Scripts() as script, tempfile.TemporaryDirectory() as scratch:
            for make in missing:
                make(script, Path(scratch))


if __name__ == "__main__":
    main()

"""Checkpoints that are whole or not there.

A checkpoint is a folder that appears by one rename:

    ckpt/step-00000300/
        model.safetensors           every player's weights, canonical names
        ema_0.050.safetensors       one file per averaging length
        optim.safetensors           "<player>.<parameter>.exp_avg", ...: names, not indices
        memory.safetensors          what the stage learned of its own training, if anything
        state.json                  step, samples seen, what else has a history
        MANIFEST.json               sizes and hashes of the others, where they come from, and its own hash; written last

Every file is flushed to the disk before the rename, the parent folder after it, and older checkpoints are deleted only
once the new one has been read back. A torn or flipped file is found by its hash: torch and safetensors both load one
without complaint. Whoever can write a folder can also forge its hashes, so that nothing here may run what it reads:
there are safetensors and JSON, and no pickles.

A checkpoint belongs to the run whose id its manifest names. One that was put here from another run, or whose manifest
does not say, is neither resumed from nor counted nor deleted.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from lab.errors import BadData, Refused, StorageFailed
from lab.storage import sync
from lab.training.retention import LAST_TWO, Found, Retention

FORMAT_VERSION = 1
MANIFEST, STATE = "MANIFEST.json", "state.json"
SPACE = 1.2 * 2  # checkpoints that must find room: the next one is written before an older one is deleted
NO_PICKLES = "only safetensors and JSON are read, since a pickle can run code"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # of JSON from anywhere

log = logging.getLogger(__name__)


def failpoint(name: str) -> None:
    """Do nothing. The tests replace this to stop or kill the process at a named place of a save."""


@dataclass(frozen=True)
class Snapshot:
    """The whole state of a training run at a step boundary.

    Attributes:
        tensors: file stem -> name -> tensor.
        state: JSON values; holds at least "step" and "seen".
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save(root: Path, snapshot: Snapshot, facts: Mapping[str, Any], keep: Retention | None = LAST_TWO) -> Path:
    """Write a checkpoint and then forget older ones.

    Args:
        root: the run's ``ckpt`` folder.
        snapshot: what to keep.
        facts: for the manifest: "run_id"; "figures" measured at this step, if any; and what else says where it comes
            from (config hash, versions, threads, ...).
        keep: which older ones stay. A checkpoint of a later step, which a resume has gone back behind, stays and does
            not count. None for all.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageFailed: the disk is full or refuses; what stood there before still stands.
    """
    target = root / f"step-{snapshot.state['step']:08d}"
    draft, old = root / f".tmp-{target.name}-{os.getpid()}", root / f".tmp-old-{target.name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _write(draft, snapshot, facts)
        if target.exists():  # a broken folder of the same step, or the same state written again
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        failpoint("before_rename")
        draft.rename(target)
        failpoint("after_rename")
        sync(root)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise StorageFailed(
            f"checkpoint {target} could not be written ({error}); the one before it is intact"
        ) from error
    if problem := defect(target):
        raise StorageFailed(f"checkpoint {target} reads back wrong ({problem}); the ones before it are intact")
    failpoint("before_retention")
    if keep is not None:
        _forget(target, facts["run_id"], keep)
    _warn_of_space(target)
    return target


def prepare(root: Path, newest: Path | None) -> None:
    """Delete what a killed process left half-written, and find out now what would make the first save fail.

    Args:
        root: the run's ``ckpt`` folder; made if missing.
        newest: the newest good checkpoint, by whose size too little space is told of in a warning.

    Raises:
        StorageFailed: no checkpoint can be written there.
    """
    try:
        (root / ".tmp-probe").mkdir(parents=True, exist_ok=True)
        sync(root)
    except OSError as error:
        raise StorageFailed(
            f"no checkpoint can be written to {root} ({error.strerror}); make it a folder that this process may write"
        ) from error
    clean(root)
    if newest is not None:
        _warn_of_space(newest)


def clean(root: Path) -> None:
    """Delete what a killed process left half-written."""
    for draft in root.glob(".tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)


def latest(root: Path, run_id: str | None = None) -> Path | None:
    """Find the newest checkpoint whose files all verify; ``None`` if there is none at all.

    Broken ones, and those of another run, are named in a warning and skipped, and never deleted.

    Args:
        root: a run's ``ckpt`` folder.
        run_id: of the run that they must belong to; ``None`` takes any.

    Raises:
        BadData: there are checkpoints and none can be used.
    """
    problems = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        problem = defect(folder) or _foreign(folder, run_id)
        if problem is None:
            return folder
        problems.append(f"{folder.name}: {problem}")
        log.warning("checkpoint %s is skipped: %s", folder, problem)
    if problems:
        raise BadData(
            f"every checkpoint in {root} is unusable ({'; '.join(problems)}); restore one, or start another run"
        )
    return None


def best(root: Path, run_id: str, metric: str) -> Path | None:
    """Find the checkpoint of a run that verifies and is the best by a metric, which reads as in ``Retention``."""
    chosen = Retention(best=metric).choose(_found(root, run_id), lambda each: defect(each.folder) is None)
    return chosen.folder if chosen else None


def defect(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, or ``None`` if every file is as it was written."""
    try:
        manifest = _manifest(folder)
        if manifest["format_version"] > FORMAT_VERSION:
            version = manifest["format_version"]
            return f"written in format {version}, this version reads up to {FORMAT_VERSION}: update Wordbrush"
        if manifest.pop("seal") != _seal(manifest):
            return f"{MANIFEST} is not what was written (hash differs)"
        files = {name: (file["size"], file["sha256"]) for name, file in manifest["files"].items()}
    except UNREADABLE as error:
        return f"unreadable manifest ({type(error).__name__})"
    known = {name for name in files if name == STATE or name.endswith(".safetensors")}
    if strange := ({path.name for path in folder.iterdir()} - {MANIFEST} | set(files)) - known:
        return f"unexpected {min(strange)}: {NO_PICKLES}"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != sha256:
            return f"{name} is not what was written (hash differs)"
    return None


def load(
    folder: Path, remedy: str = "choose another with --checkpoint, or resume from the newest good one"
) -> Snapshot:
    """Read a checkpoint that verifies.

    Args:
        folder: of the checkpoint.
        remedy: what to do if it is broken, for the message.

    Raises:
        Refused: it is missing, broken or, with hashes that are right, not a checkpoint; the message says how.
    """
    problem = defect(folder)
    tensors: dict[str, Mapping[str, Tensor]] = {}
    if problem is None:
        path = folder / STATE
        try:
            state = json.loads(path.read_text())
            if not {"step", "seen"} <= state.keys():
                raise ValueError("no step or no seen")
            for path in sorted(folder.glob("*.safetensors")):
                tensors[path.stem] = safetensors.torch.load_file(path)
        except (*UNREADABLE, safetensors.SafetensorError) as error:
            problem = f"{path.name} does not hold what its name says ({error}); {NO_PICKLES}"
        else:
            return Snapshot(tensors, state)
    raise Refused(f"{folder} cannot be used: {problem}; {remedy}")


def named(root: Path, name: str) -> Path | None:
    """Find a checkpoint by its folder's name or by the identity of its tensors; nothing of it is verified."""
    if (root / name).is_dir():
        return root / name
    for folder in sorted(root.glob("step-*")):
        with suppress(*UNREADABLE):
            if identity(folder) == name:
                return folder
    return None


def identity(folder: Path) -> str:
    """Name a checkpoint's tensors by 16 hexadecimal digits: the same for the same bits, whenever and wherever made."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    hashes = {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def _write(draft: Path, snapshot: Snapshot, facts: Mapping[str, Any]) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    failpoint("tensors")
    for stem, tensors in snapshot.tensors.items():
        safetensors.torch.save_file(
            {name: t.detach().contiguous() for name, t in tensors.items()}, draft / f"{stem}.safetensors"
        )
    failpoint("after_tensors")
    (draft / STATE).write_text(json.dumps(snapshot.state, indent=1))
    failpoint("after_state")
    files = {path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in sorted(draft.iterdir())}
    manifest = {"format_version": FORMAT_VERSION, "files": files, **facts}
    (draft / MANIFEST).write_text(json.dumps({**manifest, "seal": _seal(manifest)}, indent=1))
    failpoint("after_manifest")
    mode = 0o666 & ~_umask()  # safetensors alone leaves files readable by their owner only
    for path in draft.iterdir():
        path.chmod(mode)
        sync(path)
    sync(draft)


def _found(root: Path, run_id: str) -> list[Found]:
    """A run's own checkpoints, newest first, by what their manifests say; nothing of it is verified."""
    found = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        with suppress(*UNREADABLE):
            manifest = _manifest(folder)
            figures = {name: float(value) for name, value in manifest.get("figures", {}).items()}
            if manifest["run_id"] == run_id:
                found.append(Found(folder, int(folder.name.removeprefix("step-")), figures))
    return found


def _forget(newest: Path, run_id: str, keep: Retention) -> None:
    """Delete what need not stay beside the newest; one that will not go is no reason to stop."""
    found = [each for each in _found(newest.parent, run_id) if each.folder.name <= newest.name]
    for each in keep.doomed(found, lambda each: each.folder == newest or defect(each.folder) is None):
        failpoint("in_retention")
        old = newest.parent / f".tmp-old-{each.folder.name}"  # so that a deletion cut short leaves no half of it
        try:
            each.folder.rename(old)
            shutil.rmtree(old)
        except OSError as error:
            log.warning("an old checkpoint could not be deleted: %s", error)


def _foreign(folder: Path, run_id: str | None) -> str | None:
    """Say of which other run a checkpoint is."""
    owner = _manifest(folder).get("run_id")
    return None if run_id in (None, owner) else f"it is of run {owner}, and this is run {run_id}: move it elsewhere"


def _warn_of_space(newest: Path) -> None:
    need = SPACE * sum(path.stat().st_size for path in newest.iterdir())
    free = shutil.disk_usage(newest).free
    if free < need:
        log.warning(
            "%.3g MB are free for checkpoints and the next ones need %.3g: free some before a save fails",
            free / 1e6,
            need / 1e6,
        )


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

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
without complaint.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from lab.errors import BadData, Refused, StorageFailed
from lab.storage import sync

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"

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


def save(root: Path, snapshot: Snapshot, facts: Mapping[str, Any], keep_last: int | None = 2) -> Path:
    """Write a checkpoint and then forget older ones.

    Args:
        root: the run's ``ckpt`` folder.
        snapshot: what to keep.
        facts: where it comes from (run id, config hash, versions, threads, ...), for the manifest.
        keep_last: verified checkpoints to keep, at least 2; None for all.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageFailed: the disk is full or refuses; what stood there before still stands.
    """
    assert keep_last is None or keep_last >= 2, "one checkpoint is none: the newest may be torn"
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
    if keep_last is not None:
        _forget(root, keep_last)
    return target


def clean(root: Path) -> None:
    """Delete what a killed process left half-written."""
    for draft in root.glob(".tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)


def latest(root: Path) -> Path | None:
    """Find the newest checkpoint whose files all verify; ``None`` if there is none at all.

    Broken ones are named in a warning and skipped, and never deleted.

    Raises:
        BadData: there are checkpoints and every one is broken.
    """
    problems = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        problem = defect(folder)
        if problem is None:
            return folder
        problems.append(f"{folder.name}: {problem}")
        log.warning("checkpoint %s is skipped: %s", folder, problem)
    if problems:
        raise BadData(
            f"every checkpoint in {root} is broken ({'; '.join(problems)}); restore one, or start another run"
        )
    return None


def defect(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, or ``None`` if every file is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format_version"] > FORMAT_VERSION:
            version = manifest["format_version"]
            return f"written in format {version}, this version reads up to {FORMAT_VERSION}: update Wordbrush"
        if manifest.pop("seal") != _seal(manifest):
            return f"{MANIFEST} is not what was written (hash differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable manifest ({type(error).__name__})"
    files = manifest["files"]
    strange = {path.name for path in folder.iterdir()} - set(files) - {MANIFEST}
    if strange:
        return f"unexpected {sorted(strange)[0]}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if _digest(path) != expected["sha256"]:
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
        Refused: it is missing or broken; the message says how.
    """
    if problem := defect(folder):
        raise Refused(f"{folder} cannot be used: {problem}; {remedy}")
    tensors = {path.stem: safetensors.torch.load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return Snapshot(tensors, json.loads((folder / "state.json").read_text()))


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
    (draft / "state.json").write_text(json.dumps(snapshot.state, indent=1))
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


def _forget(root: Path, keep_last: int) -> None:
    """Delete all but the newest good checkpoints; one that will not go is no reason to stop."""
    kept = 0
    for folder in sorted(root.glob("step-*"), reverse=True):
        if kept < keep_last:
            kept += defect(folder) is None
            continue
        failpoint("in_retention")
        try:
            shutil.rmtree(folder)
        except OSError as error:
            log.warning("an old checkpoint could not be deleted: %s", error)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

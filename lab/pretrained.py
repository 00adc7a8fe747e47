"""Weights from elsewhere: where they lie, and what they are.

A name stands for a folder on this machine or for a repository in the hub's cache (HF_HOME). Nothing is downloaded
unless that was asked for, nothing but safetensors is read, and no code that lies beside the weights is run. What was
found is known by the hash of its bytes, so that other weights under the same name are told apart.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.errors import Refused, StorageFailed
from lab.storage import write_whole

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def find(setting: str, name: str, beside: Sequence[str], allow_download: bool, remedy: str) -> Path:
    """Give the folder that a name stands for.

    Args:
        setting: that holds the name.
        name: a folder, or a repository of the hub such as ``google/flan-t5-base``.
        beside: patterns of the files that are wanted beside the weights.
        allow_download: whether the hub may be asked for what is not in its cache.
        remedy: what to do where there is none.

    Raises:
        Refused: it is nowhere on this machine, or the download fails.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*WEIGHTS, *beside], local_files_only=not allow_download))
    except (OSError, ValueError) as error:  # not in the cache, no such repository, no network; not a possible name
        tried = f" ({str(error).splitlines()[0]})" if allow_download else ""
        raise Refused(f"{setting}={name}: neither a folder here nor in the hub's cache{tried}: {remedy}") from error


def files(folder: Path, remedy: str) -> list[Path]:
    """Give the files of weights in a folder.

    Raises:
        Refused: there are none in safetensors.
    """
    if found := sorted(folder.glob(WEIGHTS[0])):
        return found
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise Refused(
            f"{folder}: {pickles[0]} may run code when it is read, and is not: only safetensors are. Convert it where "
            "you trust it: model.save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise Refused(f"{folder}: no *.safetensors there: {remedy}")


def settings_of(path: Path, remedy: str) -> Mapping[str, Any]:
    """Read a configuration in JSON.

    Raises:
        Refused: it is missing or holds no mapping.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read ({error}): {remedy}") from error
    if not isinstance(settings, dict):
        raise Refused(f"{path} holds no mapping: {remedy}")
    return settings


def digest(paths: Iterable[Path], records: Path | None) -> str:
    """Hash files: one by its bytes, several by the list of their names and hashes.

    Args:
        paths: of the files.
        records: where hashes are kept, so that large files are not read at every start.
    """
    hashes = {path.name: _sha256(path, records) for path in paths}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path, records: Path | None) -> str:
    """Hash a file, or read what was noted when a file of this path, size and time was last hashed."""
    path, state = path.resolve(), path.stat()
    facts = json.dumps([str(path), state.st_size, state.st_mtime_ns])
    record = records / hashlib.sha256(facts.encode()).hexdigest() if records else None
    if record and record.is_file() and re.fullmatch("[0-9a-f]{64}", noted := record.read_text()):
        return noted
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if record:
        try:
            write_whole(record, found.encode())
        except StorageFailed:
            return found  # a record only saves time
    return found

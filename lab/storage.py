"""Files and folders that are there whole or not at all, also after a crash or a power cut.

A file, or a folder with all that is in it, is written beside its place, flushed to the disk and renamed into it; then
the folder around it is flushed, since the rename lives there. What a file holds is the business of its owner.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import StorageFailed


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what is there; a reader sees the old file or the new one, never a part.

    Raises:
        StorageFailed: the folder cannot be made, or the disk is full or refuses; the old file is still there.
    """
    with whole(path) as beside:
        beside.write_bytes(data)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write a file or a folder to, which takes its place at the end of the block.

    After an error nothing is left of it.

    Raises:
        StorageFailed: as from ``write_whole``; also for an ``OSError`` of the block.
    """
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            for part in (beside, *beside.rglob("*")):
                sync(part)
            beside.replace(path)
        finally:
            if beside.is_dir():
                shutil.rmtree(beside)
            beside.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise StorageFailed(f"{path}: cannot be written: {reason}; free some space or choose another folder") from error


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left beside their places; only for who alone writes to the folder."""
    for beside in folder.glob(f".*.{'[0-9a-f]' * 8}.tmp"):
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder so that the names in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

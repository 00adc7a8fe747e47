"""A lock that dies with its holder: one process writes to a folder, and whoever comes second is told which."""

import fcntl
import os
from pathlib import Path

from lab.errors import Refused, StorageFailed

_held: set[int] = set()


class Lock:
    """An exclusive ``flock`` on a file that names its holder; a dead holder, however it died, holds nothing.

    Args:
        path: the lock file; made with its folder if missing, and left behind on purpose (removing it would race).

    Raises:
        Refused: another process holds it.
        StorageFailed: the file cannot be made, or the file system knows no locks.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageFailed(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._handle)
            raise Refused(
                f"{path.parent}: process {holder} is writing to it; wait for it, or stop it with: kill {holder}"
            ) from None
        except OSError as error:
            os.close(self._handle)
            raise StorageFailed(f"{path}: cannot be locked: {error.strerror}") from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)
        _held.add(self._handle)

    def release(self) -> None:
        """Let the next process in; releasing twice is fine."""
        if self._handle in _held:
            _held.discard(self._handle)
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # also for a child that was forked but has not yet forgotten it
            os.close(self._handle)


def _forget_in_child() -> None:
    """Close inherited locks: a forked data worker that outlives its parent must not keep the folder locked."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)

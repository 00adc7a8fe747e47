"""From a URL to a file that is there whole or not at all.

    https://host/x.tar           read as it comes; what it says of its own length is compared
    pipe:aws s3 cp s3://x.tar -  a command whose output is the file; run only where that is allowed, and by no shell

A try that fails is made again after a pause. Where the SHA-256 of the file is known, anything else is no success.
"""

import hashlib
import shlex
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from lab.errors import BadData, Refused
from lab.storage import whole

PAUSES_S = (1.0, 4.0, 16.0)  # between tries
TIMEOUT_S = 60.0  # of a silent server
PIECE = 1 << 20  # bytes
PIPE = "pipe:"
SCHEMES = ("http://", "https://", PIPE)


class _Lost(Exception):
    """What was asked for did not come."""


def shown(url: str) -> str:
    """Give a URL as messages show it: without a query, which may hold a key."""
    return url if url.startswith(PIPE) else url.partition("?")[0]


def check(url: str, allow_pipe: bool) -> None:
    """Look whether a URL may be fetched at all.

    Raises:
        Refused: it is of another kind, or a command, and those are not allowed.
    """
    if not url.startswith(SCHEMES):
        raise Refused(
            f"{url}: is no address that is known here: give https:// or http://, or a command that writes the tar to "
            "its output, such as pipe:aws s3 cp s3://bucket/x.tar -"
        )
    if url.startswith(PIPE) and not allow_pipe:
        raise Refused(f"{url}: is a command, and runs only if you trust the list: set data.allow_pipe=true")


def fetch(url: str, path: Path, sha256: str = "", *, allow_pipe: bool = False) -> None:
    """Bring what a URL names into a file.

    Args:
        url: http(s), or "pipe:" and a command.
        path: of the file, which appears when everything is there.
        sha256: of its bytes in hexadecimal digits; "" where it is not known.
        allow_pipe: whether commands may be run.

    Raises:
        Refused: as from ``check``.
        BadData: it is not there, is cut short, or is another file, also after all tries.
        StorageFailed: the disk is full or refuses.
    """
    check(url, allow_pipe)
    for pause in (*PAUSES_S, None):
        try:
            with whole(path) as beside:
                digest = hashlib.sha256()
                with beside.open("wb") as file:
                    for piece in _pieces(url):
                        digest.update(piece)
                        file.write(piece)
                if sha256 not in ("", digest.hexdigest()):
                    raise _Lost(f"its SHA-256 is {digest.hexdigest()}, not {sha256}")
            return
        except _Lost as lost:
            reason = str(lost)
        if pause is not None:
            time.sleep(pause)
    raise BadData(
        f"{shown(url)}: cannot be fetched: {reason} ({len(PAUSES_S) + 1} tries); mend it or the list, then start again"
    )


def _pieces(url: str) -> Iterator[bytes]:
    return _of_command(url.removeprefix(PIPE)) if url.startswith(PIPE) else _of_web(url)


def _of_web(url: str) -> Iterator[bytes]:
    got = 0
    try:
        with urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - check() has let http and https through alone
            length = answer.headers.get("Content-Length")
            while piece := answer.read(PIECE):
                got += len(piece)
                yield piece
    except (OSError, HTTPException, ValueError) as error:
        raise _Lost(str(error) or type(error).__name__) from error
    if length is not None and got != int(length):
        raise _Lost(f"cut short: {got:,} of {int(length):,} bytes came")


def _of_command(command: str) -> Iterator[bytes]:
    try:
        with subprocess.Popen(shlex.split(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while piece := process.stdout.read(PIECE):
                yield piece
    except (OSError, ValueError) as error:  # no such command, or quotes that do not end
        raise _Lost(str(error)) from error
    if process.returncode:
        raise _Lost(f"the command ended with {process.returncode}")

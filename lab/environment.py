"""What a process ran with: enough to run it again or to explain a difference, nothing about who or where."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    "wordbrush",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "open_clip_torch",
    "torch-fidelity",
    "scipy",
    "pydantic",
)


def describe_process(device: str, threads: int) -> dict[str, Any]:
    """Describe this process; the host's name is left out.

    Args:
        device: the device in words, as ``Runtime`` says it.
        threads: CPU threads that torch uses.

    Returns:
        Times, versions (None where a package is missing), commit and whether the sources differ from it (None outside a
        git checkout), device, threads, pid, arguments: all of it JSON.
    """
    commit, dirty = git_state()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "threads": threads,
        "pid": os.getpid(),
        "argv": sys.argv,
    }


@cache
def versions() -> dict[str, str | None]:
    """The installed version of each package that can change a result; None where it is missing; only to be read."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: installed(name) for name in _PACKAGES}


def git_state() -> tuple[str | None, bool | None]:
    """The commit of these sources and whether they differ from it, runs aside; (None, None) where git does not know."""
    if not (_ROOT / ".git").exists():
        return None, None
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".", ":(exclude)runs")
    return commit, None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

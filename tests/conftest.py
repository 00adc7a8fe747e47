from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import TINY, Scripts


@pytest.fixture(scope="session")
def script() -> Iterator[Scripts]:
    """Runs a script in a process of its own, without the seconds that importing torch takes."""
    with Scripts() as scripts:
        yield scripts


@pytest.fixture(scope="session")
def reference(script: Scripts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the tiny preset, trained without any interruption; only to be read."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    done = script("train", TINY, "--run", run)
    assert done.code == 0, done.err
    return run

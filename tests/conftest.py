import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import encoders
from tests.faults import TINY, Scripts

gc.disable()  # it looks again and again at what the imports and the thousands of tests leave, and finds nothing


def pytest_collection_finish() -> None:
    """From here on the collector works, but on what the tests make alone."""
    gc.freeze()
    gc.enable()


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


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny pretrained text encoder, by its name in tests/encoders.py; only to be read."""
    root = tmp_path_factory.mktemp("encoders")
    return functools.cache(lambda name: encoders.make(name, root / name))

"""A hundred thousand rows: the first batch comes at once, and memory does not grow from epoch to epoch."""

import itertools
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from lab.data.finite import Finite
from lab.data.folder import Folder
from lab.data.index import open_index
from lab.data.loader import Loader

ROWS, BATCH, WARM = 100_000, 100, 20


def own_memory() -> float:
    """Memory of this process and its children in MB, what they share counted once; not that of files.

    The pages of a library count the less the more programs of the whole machine have it open: they say nothing of us.
    """
    children = [child.pid for child in multiprocessing.active_children() if child.pid]
    texts = (Path(f"/proc/{process}/smaps_rollup").read_text() for process in [os.getpid(), *children])
    lines = (line.split() for text in texts for line in text.splitlines())
    return sum(int(words[1]) for words in lines if words[0] in ("Pss_Anon:", "Pss_Shmem:")) / 1024


def is_measured() -> bool:
    path = Path("/proc/self/smaps_rollup")
    return path.exists() and "Pss_Anon:" in path.read_text()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of one picture, which as many lines of metadata describe."""
    Image.new("L", (8, 8)).save(tmp_path / "tiny.png")
    rows = ({"file_name": "tiny.png", "caption": f"the picture of number {k} of many"} for k in range(ROWS))
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def opened(folder: Path, cache: Path) -> Finite:
    config = Folder(path=str(folder), size=8, cache=str(cache))
    return Finite(config, open_index(config))


@pytest.mark.slow
def test_the_first_batch_comes_within_five_seconds(many: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The best of three listings, by the clock."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        Loader(opened(many, tmp_path_factory.mktemp("cache")), seed=0).batch(range(BATCH))
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 5, seconds


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not is_measured(), reason="memory is measured by Linux, from 5.9 on")
def test_memory_does_not_grow_with_the_epochs(many: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """From where every process has made a few batches on, to the end of the third epoch."""
    source = opened(many, tmp_path_factory.mktemp("cache"))
    batches = Loader(source, seed=0, workers=2).batches(0, [BATCH])
    memory = []
    for num in (WARM, *[source.num // BATCH] * 3):
        for _ in itertools.islice(batches, num):
            pass
        memory.append(own_memory())
    batches.close()
    assert memory[-1] - memory[0] <= 5, memory

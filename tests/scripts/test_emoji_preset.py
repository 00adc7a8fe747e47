"""configs/emoji64.yaml on the real emoji with the real MiniLM: ``pytest -m real -s`` also shows the seconds."""

import json
import os
import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from signal import SIGKILL

import pytest

from lab.text.weights import PACKAGES
from scripts.assembly import experiments
from scripts.preparation import checkup
from tests.faults import ENVIRONMENT, ROOT, Scripts, signal_at
from tests.lab.data.test_real_data import DATA
from tests.lab.training.test_resume import differences, measured

PRESET = ROOT / "configs" / "emoji64.yaml"
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (DATA / "emoji64").is_dir(), reason=f"{DATA / 'emoji64'} is not there: set WORDBRUSH_DATA"),
    pytest.mark.skipif(find_spec(PACKAGES["minilm"]) is None, reason="MiniLM is not installed: make minilm"),
]
TRAIN = """
import json, sys
from scripts import train
code = train.main(sys.argv[1:])
print(json.dumps([name for name in ("transformers", "tokenizers") if name in sys.modules]))
sys.exit(code)
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Settings for the data of this machine, with caches of their own, all empty."""
    caches = (f"data.cache={tmp_path / 'index'}", f"text.cache={tmp_path / 'text'}")
    return [f"data.path={DATA / 'emoji64'}", *caches, "train.log_every=1", "train.preview_every=0"]


def test_killed_in_the_second_step_it_goes_on_bit_for_bit(script: Scripts, words: list[str], tmp_path: Path) -> None:
    fixed = ("train.steps=2", "train.checkpoint_every=1", "runtime.precision=fp32", "runtime.channels_last=true")
    command = ("train", PRESET, *words, *fixed, "--run")
    done = script(*command, tmp_path / "whole")
    assert done.code == 0, done.err
    assert script(*command, tmp_path / "cut", fault=(signal_at, "loss", 2, SIGKILL)).code == -SIGKILL
    done = script(*command, tmp_path / "cut")
    assert done.code == 0, done.err
    assert differences(tmp_path / "whole", tmp_path / "cut") == set()
    assert [line["step"] for line in measured(tmp_path / "cut")] == [1, 2]


def first_step(run: Path, *settings: str) -> tuple[float, float, list[str]]:
    """Train one step in a new process.

    Returns:
        Seconds from the start of the process to the end of the step, by the clock; seconds of the processor for the
        whole process; and what was imported.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    command = [sys.executable, "-c", TRAIN, str(PRESET), *settings, "train.steps=1", "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (run / "metrics.jsonl").stat().st_mtime - begin, seconds, json.loads(done.stdout.splitlines()[-1])


def show(caches: str, clock: float, processor: float) -> None:
    load = os.getloadavg()[0]
    print(f"caches {caches}: first step after {clock:.1f} s, {processor:.1f} s of the processor; load {load:.1f}")  # noqa: T201


def test_the_first_step_comes_soon_and_with_full_caches_without_the_encoder(words: list[str], tmp_path: Path) -> None:
    clock, processor, imported = first_step(tmp_path / "empty", *words)
    show("empty", clock, processor)
    assert clock < 60
    assert imported == ["transformers", "tokenizers"]
    experiment = experiments.load(PRESET, words)
    assert "captions, " in checkup.fill(experiment.data, checkup.encoder(experiment))
    clock, processor, imported = first_step(tmp_path / "full", *words)
    show("full", clock, processor)
    assert clock < 15
    assert imported == []

"""A mutant, and the hunt for tests that fail on it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("lab", "vae", "diffusion", "superres", "scripts", "tests", "configs", "pyproject.toml")
AT_ONCE = 2  # each is a process of one thread
ASSERTIONS = ("assert ", "AssertionError", "Failed: DID NOT RAISE")  # how the message of a failed assertion begins


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        number: of the kind of mistake; some can be made in several places.
        defect: in a few words.
        path: of the file, from the root.
        old: a snippet that occurs there exactly once.
        new: what takes its place.
        test: which must fail, as pytest names it, without parameters.
    """

    number: int
    defect: str
    path: str
    old: str
    new: str
    test: str

    def source(self, root: Path) -> str:
        """Give the text of the file with the mistake in it.

        Raises:
            ValueError: the snippet does not occur exactly once.
        """
        text = (root / self.path).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"mutant {self.number} ({self.defect}) no longer applies: its snippet occurs {text.count(self.old)} "
                f"times in {self.path}, not once; write it anew in tests/mutants"
            )
        return text.replace(self.old, self.new)


class Outcome(NamedTuple):
    """What the tests said.

    Attributes:
        code: pytest's exit code.
        failed: the test that failed on an assertion; "" if none did.
        output: what pytest wrote.
        seconds: it took.
    """

    code: int
    failed: str
    output: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether an assertion failed, and nothing else did."""
        return self.code == 1 and self.failed != ""


def attempt(root: Path, tests: Sequence[str], mutant: Mutant | None = None) -> Outcome:
    """Run tests on a copy of the tree at ``root``, with a mutant in it or without."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for source in (root / name for name in COPIED):
            if source.is_dir():
                shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, copy)
        if mutant is not None:
            (copy / mutant.path).write_text(mutant.source(root), encoding="utf-8")
        report, begin = copy / "report.xml", time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", f"--junitxml={report}", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        failed = failed_assertion(report.read_text(encoding="utf-8")) if report.exists() else ""
        return Outcome(done.returncode, failed, done.stdout + done.stderr, time.perf_counter() - begin)


def failed_assertion(report: str) -> str:
    """The first test that failed on an assertion, in pytest's JUnit XML, without its parameters; "" if none did."""
    for case in ElementTree.fromstring(report).iter("testcase"):
        failure = case.find("failure")
        if failure is not None and failure.attrib["message"].startswith(ASSERTIONS):
            return f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name'].split('[')[0]}"
    return ""


def hunt(root: Path, mutants: Sequence[Mutant]) -> int:
    """Try the mutants, print what became of each, and give the exit code."""
    for mutant in mutants:
        mutant.source(root)
    control = attempt(root, sorted({mutant.test for mutant in mutants}))
    if control.code != 0:
        print(f"{control.output}\nwithout a mutant these tests must pass, and do not: nothing is proved")
        return 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        trials = pool.map(lambda mutant: attempt(root, [mutant.test], mutant), mutants)
        outcomes = list(tqdm(trials, total=len(mutants), unit="mutant"))
    width = max(len(mutant.defect) for mutant in mutants)
    print(f" #  {'defect':{width}}  seconds  killed by")
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        fate = outcome.failed if outcome.killed else f"NOTHING (pytest: exit code {outcome.code})"
        print(f"{mutant.number:2}  {mutant.defect:{width}}  {outcome.seconds:7.1f}  {fate}")
    alive = [outcome for outcome in outcomes if not outcome.killed]
    for outcome in alive:
        print(f"\n{outcome.output}")
    print(f"{len(outcomes) - len(alive)} of {len(outcomes)} mutants killed; without a mutant the tests pass")
    return 1 if alive else 0

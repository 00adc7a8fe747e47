"""The plan of the house: floors, doors, names, and imports without side effects."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("lab", "vae", "diffusion", "superres", "scripts")  # each may import those before it
DOORS = {
    "transformers": ("lab.text.t5", "lab.text.auto", "lab.evaluation.dinov2"),
    "open_clip": ("lab.text.clip", "lab.evaluation.clip_score", "lab.scorer.*"),
    "torch_fidelity": ("lab.evaluation.*",),
    "diffusers": ("vae.published", "scripts.benchmarks.*"),
    "pyarrow": ("lab.data.index", "lab.data.parquet"),
    "matplotlib": ("diffusion.effective_weight", "scripts.benchmarks.plots", "scripts.interface.plotting"),
    "tensorboard": ("lab.board",),
    "torch.utils.tensorboard": ("lab.board",),
}
UNSAFE_MODULES = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch.distributed.checkpoint")
UNSAFE_CALLS = {
    *("eval", "exec", "os.system", "torch.load", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
}
UNSAFE_SETTINGS = {
    "weights_only": "False",
    "shell": "True",
    "allow_pickle": "True",
    "share": "True",
    "trust_remote_code": "True",
}
PINNED = (
    "lab.evaluation.features: torch.load",
    "lab.evaluation.inception: torch.load",
)  # weights_only, on a file whose SHA-256 was compared before
LAZY = ("transformers", "open_clip", "torch_fidelity", "tensorboard", "matplotlib", "scipy", "pyarrow", "diffusers")
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))}


@cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """Everything in the tree of a module, once for all checks."""
    return tuple(ast.walk(ast.parse(source)))


def imports(module: str, source: str, known: set[str]) -> Iterator[str]:
    """What a module imports, also inside functions; ``from a import b`` is a.b where that is a module."""
    for_types = {id(inner) for node in nodes(source) if is_type_checking(node) for inner in ast.walk(node)}
    for node in nodes(source):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: line {node.lineno}: relative import"
            base = node.module or ""
            yield from (f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def floor_faults(sources: dict[str, str]) -> list[str]:
    height = {floor: level for level, floor in enumerate(FLOORS)}
    return [
        f"{module} imports {target}"
        for module, source in sources.items()
        for target in imports(module, source, set(sources))
        if height.get(target.split(".")[0], -1) > height[module.split(".")[0]]
    ]


def cycles(sources: dict[str, str]) -> list[str]:
    graph = {
        module: {target for target in imports(module, source, set(sources)) if target in sources and target != module}
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def door_faults(sources: dict[str, str]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, source in sources.items()
        for target in imports(module, source, set(sources))
        for package, doors in DOORS.items()
        if within(target, package) and not any(fnmatch(module, door) for door in doors)
    ]


def prints(sources: dict[str, str]) -> list[str]:
    return [
        f"{module}: line {node.lineno}"
        for module, source in sources.items()
        if not within(module, "scripts")
        for node in nodes(source)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def unsafe(sources: dict[str, str]) -> Iterator[str]:
    """What could run code that came as data."""
    for module, source in sources.items():
        for target in imports(module, source, set(sources)):
            if any(within(target, package) for package in UNSAFE_MODULES):
                yield f"{module}: {target}"
        for node in nodes(source):
            if isinstance(node, ast.ImportFrom):
                yield from (f"{module}: {n}" for a in node.names if (n := f"{node.module}.{a.name}") in UNSAFE_CALLS)
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in UNSAFE_CALLS:
                    yield f"{module}: {called}"
                named = (keyword for keyword in node.keywords if keyword.arg in UNSAFE_SETTINGS)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in named}
                yield from (
                    f"{module}: {key}={value}" for key, value in UNSAFE_SETTINGS.items() if given.get(key) == value
                )


def unsafe_faults(sources: dict[str, str]) -> list[str]:
    return [fault for fault in unsafe(sources) if fault not in PINNED]


TEXTS = {module: path.read_text(encoding="utf-8") for module, path in SOURCES.items()}


def test_the_sources_are_found() -> None:
    assert {"lab.config", "lab.rundir", "lab.images"} <= set(SOURCES)


def test_every_package_has_an_init() -> None:
    folders = {path.parent for path in SOURCES.values()}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("check", [floor_faults, cycles, door_faults, prints, unsafe_faults])
def test_the_house_is_in_order(check) -> None:
    assert check(TEXTS) == []


@pytest.mark.parametrize(
    ("check", "sources"),
    [
        (floor_faults, {"lab.a": "from vae import codec"}),
        (floor_faults, {"vae.a": "def f():\n    import diffusion.unet"}),
        (cycles, {"lab.a": "from lab import b", "lab.b": "def f():\n    from lab.a import x"}),
        (door_faults, {"lab.a": "def f():\n    import open_clip.model"}),
        (door_faults, {"lab.a": "from torch.utils.tensorboard import SummaryWriter"}),
        (prints, {"lab.a": "print(1)"}),
        (unsafe_faults, {"lab.a": "def f():\n    import pickle"}),
        (unsafe_faults, {"lab.a": "from pickle import load as read"}),
        (unsafe_faults, {"lab.a": "import torch.distributed.checkpoint as dcp"}),
        (unsafe_faults, {"lab.a": "model = torch.load(path, weights_only=True)"}),
        (unsafe_faults, {"lab.a": "from torch import load"}),
        (unsafe_faults, {"lab.evaluation.features": "torch.jit.load(path)"}),
        (unsafe_faults, {"lab.evaluation.features": "torch.load(path, weights_only=False)"}),
        (unsafe_faults, {"scripts.a": "yaml.load(text, Loader)"}),
        (unsafe_faults, {"scripts.a": "eval(text)"}),
        (unsafe_faults, {"scripts.a": "subprocess.run(line, shell=True)"}),
        (unsafe_faults, {"scripts.a": "read(path, allow_pickle=True)"}),
        (unsafe_faults, {"lab.text.auto": "AutoModel.from_pretrained(folder, trust_remote_code=True)"}),
    ],
)
def test_the_checks_see_a_fault(check, sources) -> None:
    assert len(check(sources)) == 1


def test_putting_a_network_into_evaluation_mode_is_no_eval() -> None:
    assert unsafe_faults({"lab.a": "model.eval()\ncheckpoint.load(folder)\nsubprocess.run(words)"}) == []


def test_imports_for_types_only_are_free() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import open_clip"
    assert door_faults({"lab.a": text}) == []


def test_modules_have_names_that_say_something() -> None:
    assert [name for name in SOURCES if name.split(".")[-1] in NAMELESS] == []


def test_no_script_hides_a_module_of_the_standard_library() -> None:
    names = {name.split(".")[1] for name in SOURCES if name.count(".") == 1 and within(name, "scripts")}
    assert names & sys.stdlib_module_names == set()


PROBE = """
import importlib, json, random, socket, sys
import numpy, torch

def refuse(*args, **kwargs):
    raise OSError("an import opened a connection")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
states = lambda: (random.getstate(), torch.get_rng_state().tolist(), str(numpy.random.get_state()))
modules, lazy = json.loads(sys.stdin.read())
faults = []
for module in modules:
    before, loaded = states(), set(sys.modules)
    importlib.import_module(module)
    if states() != before:
        faults.append(f"{module} draws random numbers")
    faults += [f"{module} imports {name}" for name in lazy if name in set(sys.modules) - loaded]
if torch.cuda.is_initialized():
    faults.append("the GPU is initialised")
print(json.dumps(faults))
"""


def test_importing_has_no_side_effects() -> None:
    """No random number, connection or GPU, and nothing heavy; torch and numpy are loaded before."""
    given = json.dumps([list(SOURCES), LAZY])
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=given, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []

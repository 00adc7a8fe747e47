"""Scripts in processes of their own, started in milliseconds, with faults on purpose.

``Scripts`` starts one process that imports torch and everything else once, and then forks a child for every script that
is run. It is a fresh process, so that no operation of torch has started threads before the fork. A child ends as a
script ends, by itself or by a signal.

    with Scripts() as script:
        done = script("train", "tests/tiny.yaml", "--run", folder, fault=(signal_at, "after_tensors", 2, SIGKILL))
        assert done.code == -SIGKILL

A fault is one of the functions below with its arguments; it changes the child alone.
"""

import gc
import importlib.util
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.yaml"
TINY_VAE = ROOT / "tests" / "tiny_vae.yaml"
TINY_SCORER = ROOT / "tests" / "tiny_scorer.yaml"
GRACE_S = 5.0
PORTS = itertools.count(20_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def signal_at(place: str, nth: int, number: int) -> None:
    """Send this process a signal at the nth passing of a place.

    Args:
        place: a failpoint of ``checkpoint.save``; "loss", passed by each micro-batch of each player; "sample", by each
            one in the process that loads it; "forward", by each pass of the network; or "fsync", by each file before it
            is renamed into its place, and by its folder afterwards.
        nth: counted from 1.
        number: of the signal.
    """
    at(place, nth, lambda: os.kill(os.getpid(), number))


def signal_group_at(place: str, nth: int, number: int) -> None:
    """The same, but to the script and its data workers alike, as a terminal or a scheduler does."""
    os.setpgrp()
    at(place, nth, lambda: os.killpg(0, number))


def kill_after(seconds: float) -> None:
    """Kill this process after a time, wherever it is then: from a process of its own, which no lock can hold up."""
    victim = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(victim, signal.SIGKILL)
        os._exit(0)


def kill_in_file(nth: int) -> None:
    """Kill this process when half of the nth file of tensors is written."""
    from safetensors import torch as format

    honest, files = format.save_file, Counter(nth)

    def save_file(tensors: Any, path: Path) -> None:
        honest(tensors, path)
        if files.due():
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    format.save_file = save_file


def stall_at(nth: int, number: int) -> None:
    """Let each process that loads data hang at its nth sample, and send all of them a signal when they wait for it."""

    def stall() -> None:
        time.sleep(2)
        os.killpg(0, number)
        time.sleep(60)

    os.setpgrp()
    at("sample", nth, stall)


def nan_at(nth: int) -> None:
    """Let the nth loss be NaN."""
    import torch

    from diffusion.stage import DiffusionStage

    honest, calls = DiffusionStage.loss, Counter(nth)

    def loss(self: Any, player: str, batch: Any) -> Any:
        losses, metrics = honest(self, player, batch)
        return losses * torch.nan if calls.due() else losses, metrics

    DiffusionStage.loss = loss  # type: ignore[method-assign]


def forget(part: str) -> None:
    """Let a resume forget a part of the state: "optim", "ema", "step", "meter" or "memory"."""
    from lab.training import checkpoint, snapshot
    from lab.training.trainer import Trainer

    load_state, restore = Trainer.load_state, snapshot.restore

    def forgetful(self: Trainer, saved: checkpoint.Snapshot) -> None:
        meter = {"sums": {}, "steps": 0}
        state = (
            saved.state
            | ({"step": saved.state["step"] - 1} if part == "step" else {})
            | ({"meter": meter} if part == "meter" else {})
        )
        load_state(self, checkpoint.Snapshot(saved.tensors, state))

    def partial(tensors: Any, players: Any, optimizers: Any, averages: Any, memory: Any) -> None:
        restore(tensors, players, optimizers, averages, memory)
        if part == "memory":
            for tensor in memory.values():
                tensor.zero_()
        if part == "optim":
            for optimizer in (optimizer for player in optimizers.values() for optimizer in player):
                optimizer.state.clear()
        if part == "ema":
            for average in averages:
                average.module.load_state_dict(players["model"].state_dict())

    Trainer.load_state, snapshot.restore = forgetful, partial  # type: ignore[method-assign]


def small_memory(largest: int) -> None:
    """Let the memory run out where more images than this are decoded at once."""
    import torch

    from vae.codec import Pixels

    honest = Pixels.decode

    def decode(self: Pixels, latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return honest(self, latents)

    Pixels.decode = decode  # type: ignore[method-assign]


def out_of_memory(samples: int, times: int = 1000) -> None:
    """Let memory run out in the first passes of more samples than these."""
    import torch

    from diffusion.stage import DiffusionStage

    honest, failures = DiffusionStage.loss, itertools.count(1)

    def loss(self: Any, player: str, batch: Any) -> Any:
        losses = honest(self, player, batch)
        if len(batch) > samples and next(failures) <= times:
            losses[0].sum().backward()  # half of a way back was made
            raise torch.OutOfMemoryError("injected: tried to allocate 1 GiB")
        return losses

    DiffusionStage.loss = loss  # type: ignore[method-assign]


def all_bits() -> None:
    """Let convolutions in fp32 on a GPU keep all bits of their factors, where by default they keep TF32's ten."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


def little_memory(gib: float) -> None:
    """Let the GPU have no more memory than this for us."""
    import torch

    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.get_device_properties(0).total_memory)


def sleep_at(nth: int, seconds: float) -> None:
    """Hang in the nth micro-batch."""
    at("loss", nth, lambda: time.sleep(seconds))


def even_clock() -> None:
    """Let every step take a second, as the trainer sees it."""
    from lab.training import trainer

    ticks = itertools.count()
    trainer.time = SimpleNamespace(perf_counter=lambda: next(ticks))  # type: ignore[assignment]


def in_double() -> None:
    """Train in float64."""
    from lab.data.loader import Loader
    from scripts.assembly import assemble

    stage, collate = assemble.stage, Loader._collate

    def double_stage(*given: Any) -> Any:
        made = stage(*given)
        for player in made.players.values():
            player.double()
        return made

    def double_batch(self: Loader, items: Any) -> Any:
        batch = collate(self, items)
        return batch.with_images(batch.images.double())

    assemble.stage, Loader._collate = double_stage, double_batch  # type: ignore[method-assign]


def wrong_loss() -> None:
    """Let the loss raise an error that nobody expects."""
    from diffusion import stage

    stage.square_error = None  # type: ignore[assignment]


def in_good_order() -> None:
    """Let the interpreter go down as it does by itself: what is registered for that runs (see ``play``)."""


def small_disk(num_bytes: int) -> None:
    """Let no file grow beyond this size, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


@dataclass
class Counter:
    """Counts the passings of a place."""

    nth: int
    passed: int = 0

    def due(self) -> bool:
        """Whether this passing is the nth."""
        self.passed += 1
        return self.passed == self.nth


def at(place: str, nth: int, act: Callable[[], None]) -> None:
    """Do something at the nth passing of a place."""
    from diffusion.stage import DiffusionStage
    from diffusion.unet import UNet
    from lab.data.shapes import Shapes
    from lab.scorer.stage import ScorerStage
    from lab.training import checkpoint
    from superres.cascade_stage import CascadeStage
    from superres.fast_stage import FastStage
    from vae.stage import AutoencoderStage

    calls = Counter(nth)
    owners: dict[str, tuple[Any, ...]] = {
        "loss": (DiffusionStage, AutoencoderStage, FastStage, CascadeStage, ScorerStage),
        "sample": (Shapes,),
        "forward": (UNet,),
        "fsync": (os,),
    }
    if place not in owners:
        checkpoint.failpoint = lambda name: act() if name == place and calls.due() else None
        return

    def watch(honest: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            if calls.due():
                act()
            return honest(*arguments)

        return watched

    for owner in owners[place]:
        setattr(owner, place, watch(getattr(owner, place)))


@dataclass(frozen=True)
class Done:
    """How a script ended: exit code, or minus the signal that killed it; what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


class Scripts(AbstractContextManager["Scripts"]):
    """Runs scripts in forks of one process that has imported everything."""

    def __enter__(self) -> "Scripts":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            os.killpg(self._process.pid, signal.SIGKILL)

    def __call__(self, name: str, *arguments: object, fault: tuple[Any, ...] = ()) -> Done:
        """Run ``scripts/<name>.py`` with arguments, and maybe a fault, to its end."""
        return self.together(name, *arguments, faults=[[fault] if fault else []])[0]

    def together(self, name: str, *arguments: object, faults: Sequence[Sequence[tuple[Any, ...]]]) -> list[Done]:
        """Run a script in several processes that work together, as torchrun starts them, each with its own faults.

        When one of them fails, the others are asked to stop; see ``fork``.
        """
        order = {
            "name": name,
            "arguments": [str(a) for a in arguments],
            "faults": [[[call.__name__, *rest] for call, *rest in own] for own in faults],
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return [Done(**done) for done in json.loads(self._process.stdout.readline())]
        except BaseException:  # the test ran out of time: the answer must not reach the next one
            self.__exit__()
            self.__enter__()
            raise


HEAVY = (
    "scipy.ndimage",
    "scipy.special",
    "torch._dynamo",  # what FSDP2 imports in its first step
    "torch.utils.tensorboard",
    *(f"scripts.{name}" for name in ("average", "evaluate", "prepare", "sample", "train", "upscale")),
    *(f"scripts.assembly.{name}" for name in ("assemble", "drawing", "enlarging", "upscaling", "warm_start")),
    "scripts.preparation.checkup",
    *(f"scripts.benchmarks.{name}" for name in ("reference", "samplers")),
    *(f"scripts.evaluation.{name}" for name in ("heldout", "measure", "paired", "upscaling_lab", "vae_lab")),
    "scripts.interface.gallery",
)  # what the scripts import when they are called, so that their forks need not


def serve(orders: Iterator[str]) -> None:
    """Fork a child per order and answer with how it ended; import and warm up what every fork would, before."""
    for name in HEAVY:
        importlib.import_module(name)

    from diffusion.stage import charts_of
    from lab import environment
    from lab.text.clip import _tokenizer
    from scripts.assembly import experiments

    _tokenizer()
    environment.versions()
    tiny: Any = experiments.load(TINY, [])
    if importlib.util.find_spec("matplotlib"):
        charts_of(tiny.stage)  # the first plot also looks for fonts
    gc.freeze()  # or a child copies every page that its collector looks at
    answers = os.fdopen(os.dup(1), "w")
    for line in orders:
        answers.write(json.dumps(fork(json.loads(line))) + "\n")
        answers.flush()


def fork(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a child per list of faults and tell how each ended: "code", "out" and "err".

    When one fails, the others get SIGTERM at once and SIGKILL ``GRACE_S`` later, as from torchrun, which waits 30 s.
    """
    size, port = len(order["faults"]), free_port()
    files = [[tempfile.TemporaryFile() for _ in ("out", "err")] for _ in range(size)]  # noqa: SIM115
    children: dict[int, int] = {}
    for rank, (out, err) in enumerate(files):
        child = os.fork()
        if child == 0:
            for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out.fileno(), 1), (err.fileno(), 2)):
                os.dup2(source, target)
            if size > 1:
                world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in world.items()}}
            play(order, order["faults"][rank])
        children[child] = rank
    codes: dict[int, int] = {}
    killer: threading.Timer | None = None
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = code = os.waitstatus_to_exitcode(status)
        if code and children and killer is None:
            others = list(children)
            send(others, signal.SIGTERM)
            killer = threading.Timer(GRACE_S, send, (others, signal.SIGKILL))
            killer.start()
    if killer:
        killer.cancel()
    answers = []
    for rank, (out, err) in enumerate(files):
        texts = {name: (file.seek(0), file.read().decode())[1] for name, file in (("out", out), ("err", err))}
        answers.append({"code": codes[rank], **texts})
        out.close()
        err.close()
    return answers


def send(processes: Sequence[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def free_port() -> int:
    """A port that nobody listens on, nor will: below those that the system gives out, and of this worker of pytest."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("an endless count has ended")


def play(order: dict[str, Any], faults: Sequence[Sequence[Any]]) -> None:
    """Be the script, to the end of this process."""
    from scripts.interface import entry

    for name, *arguments in faults:
        globals()[name](*arguments)
    sys.argv = [f"scripts/{order['name']}.py", *order["arguments"]]
    try:
        entry.run(importlib.import_module(f"scripts.{order['name']}").main)
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    if [in_good_order.__name__] in faults:
        sys.exit(code)
    os._exit(code)  # which takes less time than most tests do, and good order more


if __name__ == "__main__":
    serve(iter(sys.stdin.readline, ""))

"""Where and how a run computes: device, precision, threads, processes. One object, also for one process.

Nothing else in the house chooses a device, a number type or a number of threads.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.errors import Refused
from lab.layers import Recomputable, ResidualBlock, Transformer
from lab.world import ALONE, World

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Module = TypeVar("Module", bound=nn.Module)

log = logging.getLogger(__name__)

HOPELESS = 5.0  # times the least: a first pass that slow, planning included, is no start that a later one makes up for


class RuntimeConfig(Config):
    """Where to compute. Nothing here changes what is computed beyond rounding.

    Attributes:
        device: "auto" takes CUDA, else Apple's MPS, else the CPU.
        precision: of the network's inner products; weights, norms, softmax and losses stay fp32. "auto" is the faster
            of fp32 and bf16, measured once when a run starts and written into its configuration. fp16 is for GPUs
            without bf16: its losses are scaled up against underflow.
        channels_last: memory layout of feature maps; "auto" is measured with the precision.
        threads: CPU threads; 0 leaves torch's own choice. Results on the CPU are bit-equal only at equal threads.
        compile: whether networks are compiled by ``torch.compile`` before the first step, which takes minutes and
            speeds up a long run on a GPU.
        recompute: whether training keeps only the inputs of the network's blocks and computes the rest again on the way
            back, which halves the memory of activations for a third more time.
        allow_download: whether pretrained weights that are not on this machine may be fetched from the hub.
        timeout_s: how long the other processes of a run wait for one, in seconds, before they give it up for lost.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: Literal["auto"] | bool = "auto"
    threads: int = Field(0, ge=0)
    compile: bool = False
    recompute: bool = False
    allow_download: bool = False
    timeout_s: float = Field(1800.0, gt=0)


@dataclass(frozen=True)
class Runtime:
    """The device, number type and processes of this run.

    Attributes:
        device: where models and batches live.
        precision: see ``RuntimeConfig``.
        channels_last: whether feature maps have their channels last in memory.
        compile, recompute, allow_download: see ``RuntimeConfig``.
        world: the processes that work together, of which this is one.
    """

    device: torch.device
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    recompute: bool = False
    world: World = ALONE
    allow_download: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The type of the inner products."""
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """Give the context in which networks run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision != "fp32")

    def place(self, module: Module) -> Module:
        """Move a module to the device, in the memory layout of this run."""
        if self.channels_last:
            return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return module.to(self.device)

    def prepare(self, module: Module) -> Module:
        """Place a module that is to be trained, and compile it or let it recompute where that was asked for."""
        for block in module.modules():
            if isinstance(block, Recomputable):
                block.recompute = self.recompute
        module = self.place(module)
        if self.compile:
            module.compile()  # in place: the names of its weights stay
        return module

    def peak_memory(self) -> float | None:
        """Give the most memory of its GPU that this process has held since it began, in GiB; ``None`` elsewhere.

        What ``resolve`` tried out does not count.
        """
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None

    def batch(self, images: Tensor) -> Tensor:
        """Move (b, c, h, w) images to the device, in the memory layout of this run."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device, non_blocking=True).contiguous(memory_format=layout)


CPU = Runtime(torch.device("cpu"))


def resolve(config: RuntimeConfig) -> RuntimeConfig:
    """Replace "auto" precision and layout by what measures fastest here.

    The device stays as asked, so that a run can move. Sets the number of threads, on which the measurement depends.

    Raises:
        Refused: the device is not there.
    """
    device = _device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.precision != "auto" and config.channels_last != "auto":
        return config
    precisions: list[Precision] = ["fp32", "bf16"] if config.precision == "auto" else [config.precision]
    layouts = [False, True] if config.channels_last == "auto" else [config.channels_last]
    runtimes = [Runtime(device, precision, layout) for precision in precisions for layout in layouts]
    seconds = _step_seconds(runtimes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    fastest = runtimes[seconds.index(min(seconds))]
    return config.model_copy(update={"precision": fastest.precision, "channels_last": fastest.channels_last})


def moved(config: RuntimeConfig, trained_on: str | None) -> RuntimeConfig:
    """Give the configuration with which a run's weights are used on this machine, wherever they were trained.

    A device that is not here gives way to the best that is. On another kind of device than the run's, networks compute
    in float32, the type of the weights, which every device has and none is hopelessly slow in.

    Args:
        config: the run's own, with precision and layout found.
        trained_on: kind of the device that trained it last; ``None`` for this one.
    """
    if config.device not in _present():
        config = config.model_copy(update={"device": "auto"})
    here = _device(config.device).type
    if trained_on in (None, here) or config.precision == "fp32":
        return config
    log.warning("trained on %s in %s; computed on %s in fp32 here", trained_on, config.precision, here)
    return config.model_copy(update={"precision": "fp32"})


def start(config: RuntimeConfig, world: World = ALONE) -> Runtime:
    """Set the number of threads and give the runtime of a configuration; what is still "auto" is measured.

    Args:
        config: where to compute.
        world: the processes that work together; on CUDA each takes the GPU of its number on its machine.

    Raises:
        Refused: the device is not there, or fewer of it than processes.
    """
    device = _device(config.device)
    if device.type == "cuda" and world.size > 1:
        if world.local_rank >= (there := torch.cuda.device_count()):
            raise Refused(
                f"process {world.local_rank} of this machine has no GPU, of which torch sees {there}: start at most so "
                "many (--nproc-per-node), or set runtime.device=cpu"
            )
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    config = resolve(config)
    assert config.precision != "auto"
    assert config.channels_last != "auto"
    return Runtime(
        device, config.precision, config.channels_last, config.compile, config.recompute, world, config.allow_download
    )


def _present() -> list[str]:
    """Give the names that a device can be asked for by here, the best first behind "auto"."""
    here = {"auto": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_here in here.items() if is_here]


def _device(name: str) -> torch.device:
    present = _present()
    if name == "auto":
        name = present[1]
    if name not in present:
        raise Refused(f"runtime.device={name}: torch sees no such device here; use runtime.device=auto or cpu")
    return torch.device(name)


def _step_seconds(
    runtimes: Sequence[Runtime], width: int | None = None, batch: int | None = None, repeats: int = 6
) -> list[float]:
    """Least time of a forward and backward pass of a small typical network, for each runtime.

    They take turns, and the least time counts: what else the machine does only ever adds. On a CPU one whose first pass
    is hopeless makes no other: without instructions for bfloat16 it takes a hundred times as long with it. On a GPU,
    whose first passes load libraries, all race, with enough work that it is not the launching that is measured.
    """
    on_cpu = runtimes[0].device.type == "cpu"
    width, batch = width or (128 if on_cpu else 512), batch or (16 if on_cpu else 256)
    steps = [_step(runtime, width, batch) for runtime in runtimes]
    steps[0]()  # starts the device
    seconds = [step() for step in steps]  # plans and allocates
    racing = [i for i, first in enumerate(seconds) if not on_cpu or first < HOPELESS * min(seconds)]
    for _ in range(repeats):
        for i in racing:
            seconds[i] = min(seconds[i], steps[i]())
    return seconds


def _step(runtime: Runtime, width: int, batch: int) -> Callable[[], float]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = runtime.place(ResidualBlock(width, width, 0))
        mixer = runtime.place(Transformer(width, 4, None))
        images = runtime.batch(torch.randn(batch, width, 8, 8))

    def step() -> float:
        begin = time.perf_counter()
        with runtime.autocast():
            result = mixer(block(images), None, None)
        result.float().square().mean().backward()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        if runtime.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - begin

    return step

"""What sampling costs outside the network's own forward passes: prompts, noise, guidance, the sampler's arithmetic.

Measured in two ways. Inside a walk, the clock is read before and after each pass, and the rest is overhead. And walks
take turns with the bare passes of a recorded walk; their difference is the same thing, with more noise.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.pipeline import Pipeline, Request, SamplingConfig
from scripts.assembly import drawing
from scripts.benchmarks.subject import PROMPTS, subject
from scripts.benchmarks.timing import alternating, met
from scripts.benchmarks.walks import calls_of

BAR = 0.05  # of the time


class Inside:
    """Sums the time that a network's passes take, and keeps what the passes of the last walk were given.

    Args:
        network: whose passes.
        device: where they run; a GPU is waited for.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.seconds = 0.0
        self.inputs: list[tuple[Any, ...]] = []
        self._device, self._began = device, 0.0
        self._hooks = (network.register_forward_pre_hook(self._enter), network.register_forward_hook(self._leave))

    def restart(self) -> None:
        """Forget what was measured."""
        self.seconds, self.inputs = 0.0, []

    def close(self) -> None:
        """Take the hooks out."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.inputs.append(inputs)
        self._began = self._now()

    def _leave(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.seconds += self._now() - self._began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def benchmark(options: argparse.Namespace) -> int:
    """Run the subcommand; see scripts/benchmark.py."""
    pipeline, experiment = subject(options)
    sampling = drawing.sampling(
        experiment,
        {"sampler": options.sampler, "steps": options.steps, "guidance": options.guidance, "chunk": options.batch},
    )
    share, per_step, apart = measure(pipeline, sampling, options.repeats)
    parameters = sum(p.numel() for p in pipeline.model.denoiser.network.parameters())
    runtime = pipeline.runtime
    print(
        f"{parameters:,} parameters in the network, batch {options.batch}, {sampling.sampler} {sampling.steps} steps, "
        f"guidance {sampling.guidance:g}; {runtime.device.type}, {runtime.precision}, {torch.get_num_threads()} threads"
    )
    print(f"outside the network's passes: {share:.2%} of the time, {per_step * 1e6:.0f} us per step")
    print(f"walks against bare passes:    {apart:.2%} of the time")
    print(met(share, BAR, at_least=False))
    return 0


def measure(pipeline: Pipeline, sampling: SamplingConfig, repeats: int) -> tuple[float, float, float]:
    """Give medians: the share outside the passes, its seconds per step, and the share by walks against passes."""
    requests = [Request(PROMPTS[k % len(PROMPTS)], k) for k in range(sampling.chunk)]
    network = pipeline.model.denoiser.network
    inside = Inside(network, pipeline.runtime.device)
    shares: list[float] = []
    rests: list[float] = []

    def walk() -> None:
        inside.restart()
        begin = time.perf_counter()
        list(pipeline.draw(requests, 0, sampling))
        total = time.perf_counter() - begin
        shares.append(1 - inside.seconds / total)
        rests.append((total - inside.seconds) / sampling.steps)

    walk()
    passes = replay(pipeline, inside.inputs)
    assert len(inside.inputs) == calls_of(sampling)
    seconds = alternating({"walk": walk, "passes": passes}, repeats, "overhead")
    inside.close()
    apart = 1 - median(seconds["passes"]) / median(seconds["walk"])
    return median(shares[2:]), median(rests[2:]), apart  # without the two that warmed up


def replay(pipeline: Pipeline, inputs: list[tuple[Any, ...]]) -> Callable[[], None]:
    """Give a call that makes these passes of the network and nothing else."""
    network = pipeline.model.denoiser.network

    def passes() -> None:
        with torch.no_grad(), pipeline.runtime.autocast():
            for given in inputs:
                network(*given)

    return passes

"""Walks of a trained model and what they cost.

The unit of cost is one call of the guided denoiser, which is one pass of the network however many predictions it makes:
guidance runs the conditional and the null prediction in one batch. The passes are counted where they happen, at the
network, and so are the rows of each batch, which are network evaluations: two per call and image under guidance.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffusion.pipeline import Pipeline, Request, SamplingConfig
from lab.data.shapes import prompts
from lab.errors import Refused
from lab.runtime import Precision
from scripts.assembly.drawing import Trained
from scripts.evaluation import measure

KINDS = ("pair", "single")


class Walk(NamedTuple):
    """What came out of walks, and what one image cost.

    Attributes:
        images: (n, 3, H, W) float32 on the CPU, not clamped.
        calls: of the guided denoiser, per image.
        evaluations: of the network, per image.
        seconds: wall time of all, prompts included.
    """

    images: Tensor
    calls: int
    evaluations: float
    seconds: float


@dataclass
class Counter:
    """Counts the passes of a network and the rows that they took."""

    passes: int = 0
    rows: int = 0
    bar: "tqdm[Any] | None" = field(default=None, repr=False)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator["Counter"]:
        """Count inside the block."""

        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.passes, self.rows = self.passes + 1, self.rows + len(inputs[0])
            if self.bar is not None:
                self.bar.update()

        handle = network.register_forward_pre_hook(note)
        try:
            yield self
        finally:
            handle.remove()


def walk(pipeline: Pipeline, requests: Sequence[Request], seed: int, sampling: SamplingConfig, desc: str = "") -> Walk:
    """Draw images and count.

    Args:
        pipeline: draws them.
        requests: what is wanted, at least one.
        seed: of the noise.
        sampling: how.
        desc: names the progress bar; "" for none.
    """
    chunks = -(-len(requests) // sampling.chunk)
    with tqdm(total=chunks * calls_of(sampling), unit="call", desc=desc, leave=False, disable=not desc) as bar:
        counter = Counter(bar=bar)
        begin = time.perf_counter()
        with counter.watching(pipeline.model.denoiser.network):
            images = torch.cat(list(pipeline.draw(requests, seed, sampling)))
        seconds = time.perf_counter() - begin
    calls, rest = divmod(counter.passes, chunks)
    assert rest == 0, "every chunk takes the same walk"
    return Walk(images, calls, counter.rows / chunks / sampling.chunk, seconds)


def calls_of(sampling: SamplingConfig) -> int:
    """Give how many calls of the denoiser a walk to sigma = 0 makes."""
    return 2 * sampling.steps - 1 if sampling.sampler == "heun" else sampling.steps


def steps_for(sampler: str, calls: int) -> int:
    """Give the most steps, at least one, that make no more than so many calls."""
    return max(1, (calls + 1) // 2) if sampler == "heun" else calls


def rms(one: Tensor, other: Tensor) -> float:
    """Give the root-mean-square distance of two sets of images, over all their values."""
    return (one.double() - other.double()).square().mean().sqrt().item()


def wanted(num: int, seed: int) -> tuple[list[Request], list[str]]:
    """List ``num`` prompts of each kind, the kinds in turn, each with a noise of its own.

    Args:
        num: per kind.
        seed: of the lists; not the evaluation's, since settings must not be chosen on the prompts that judge them.

    Returns:
        The requests, and the kind of each.

    Raises:
        Refused: the evaluation's seed, or no prompt.
    """
    refuse_judges_seed(seed)
    if num < 1:
        raise Refused(f"--num {num}: at least 1 prompt per kind")
    lists = [prompts(kind, num, seed) for kind in KINDS]
    texts = [text for row in zip(*lists, strict=True) for text in row]
    return [Request(text, number) for number, text in enumerate(texts)], list(KINDS) * num


def refuse_judges_seed(seed: int) -> None:
    """Refuse the seed of the prompts that judge a model: settings must not be chosen on them.

    Raises:
        Refused: it is the evaluation's.
    """
    if seed == measure.PROMPT_SEED:
        raise Refused(f"--seed {seed} is the evaluation's, whose prompts must not choose settings: take another")


def in_precision(trained: Trained, precision: Precision | None) -> Trained:
    """Let the network run in another precision than the run's own; None leaves it."""
    pipeline = trained.pipeline
    if precision is None:
        return trained
    return replace(trained, pipeline=replace(pipeline, runtime=replace(pipeline.runtime, precision=precision)))

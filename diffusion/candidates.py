"""Images on their way: walks that stop at a step, show what they predict there, and go on for those that are wanted.

A sampler is a function over decreasing times. Its walk over ``times[:k + 1]`` and then over ``times[k:]`` is the whole
walk, bit for bit, where a step depends on nothing but its state, the noise that follows, and past predictions that it
can be given (``past`` of DPM-Solver++). The predictions are those that the denoiser made, so they need not be asked of
the sampler: they are kept as they pass by.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion import samplers
from diffusion.guidance import AdaptiveProjected
from diffusion.pipeline import Pipeline, Poll, Request, Sampler, SamplingConfig, sampler_of, times_of
from diffusion.samplers.steps import NoiseLike, steps_of
from lab.errors import Refused
from lab.randomness import key

PAUSABLE = ("ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_3m")
MULTISTEP = ("dpmpp_2m", "dpmpp_3m")
_REMEMBERED = 2  # predictions, the most that DPM-Solver++ uses


class Wanted(Protocol):
    """Which candidate of which item: ``lab.evaluation.best_of_n.Candidate``."""

    @property
    def item(self) -> int: ...
    @property
    def number(self) -> int: ...


@dataclass
class _Walk:
    """One image: its state at a step, where its noise comes from, and its latest predictions, the latest first."""

    request: Request
    stream: np.random.Generator
    state: Tensor | None = None
    step: int = 0
    past: list[tuple[float, Tensor]] = field(default_factory=list)


class Candidates:
    """Draws candidates of prompts step by step; image j of a prompt is the one that ``Pipeline.draw`` gives.

    Args:
        pipeline: the model.
        prompts: the items, as requests whose number is not looked at: candidate j has number j.
        seed: of the drawing.
        sampling: how.
        poll: called before every call of the denoiser; what it raises ends the drawing.

    Attributes:
        evaluations: images times calls of the denoiser so far, without those that fill up a chunk.
    """

    def __init__(
        self, pipeline: Pipeline, prompts: Sequence[Request], seed: int, sampling: SamplingConfig, poll: Poll
    ) -> None:
        self.pipeline, self.prompts, self.seed, self.sampling, self.poll = pipeline, prompts, seed, sampling, poll
        denoiser = pipeline.model.denoiser
        self.times = times_of(sampling, denoiser.schedule, denoiser.parameterization)
        self.evaluations = 0
        self._walks: dict[tuple[int, int], _Walk] = {}

    def grow(self, wanted: Sequence[Wanted], step: int) -> Tensor:
        """Bring candidates to a step, and forget all others.

        Args:
            wanted: candidates that are new or were brought to an earlier step before.
            step: 1 to ``sampling.steps``.

        Returns:
            (k, 3, H, W) float32 on the CPU, not clamped: at the last step the images, before it what the last call of
            the denoiser predicted.

        Raises:
            Refused: a sampler that cannot be paused, at a step before the last.
        """
        if step < self.sampling.steps:
            check_pausable(self.sampling)
        keys = [(candidate.item, candidate.number) for candidate in wanted]
        self._walks = {place: self._walks.get(place) or self._begin(*place) for place in keys}
        images: dict[tuple[int, int], Tensor] = {}
        chunk = self.sampling.chunk
        by_step = sorted(keys, key=lambda place: self._walks[place].step)
        for before, group in groupby(by_step, key=lambda place: self._walks[place].step):
            places = list(group)
            for start in range(0, len(places), chunk):
                part = places[start : start + chunk]
                with torch.no_grad(), self.pipeline.runtime.autocast():
                    shown = self._advance([self._walks[place] for place in part], before, step)
                images |= dict(zip(part, shown.float().cpu(), strict=True))
        return torch.stack([images[place] for place in keys])

    def _begin(self, item: int, number: int) -> _Walk:
        return _Walk(self.prompts[item]._replace(number=number), key(self.seed, "sample", number))

    def _advance(self, walks: Sequence[_Walk], before: int, after: int) -> Tensor:
        """Walk one chunk from a step to another, and give what it shows there (k, 3, H, W)."""
        pipeline, sampling = self.pipeline, self.sampling
        filler = replace(walks[-1], stream=key(self.seed, "sample", walks[-1].request.number))
        filled = [*walks, *[filler] * (sampling.chunk - len(walks))]
        noise = partial(pipeline.noise, [walk.stream for walk in filled])
        if before == 0:
            x = pipeline.start(noise, len(filled), self.times)
        else:
            x = pipeline.runtime.batch(torch.stack([walk.state for walk in filled if walk.state is not None]))
        guided = pipeline.guided([walk.request for walk in filled], sampling, self.times)
        seen: list[Tensor] = []

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            self.poll()
            self.evaluations += len(walks)
            seen.append(guided(x_t, t))
            return seen[-1]

        places = [place for place, _ in walks[0].past]
        past = [(place, torch.stack([walk.past[k][1] for walk in filled])) for k, place in enumerate(places)]
        walk = self._sampler(noise, past)
        x = walk(denoise, x, self.times[before : after + 1], pipeline.model.denoiser.schedule)
        self._remember(walks, x, seen, after)
        return pipeline.codec.decode(x if after == sampling.steps else seen[-1])[: len(walks)]

    def _sampler(self, noise: NoiseLike, past: Sequence[tuple[float, Tensor]]) -> Sampler:
        match self.sampling.sampler:
            case "dpmpp_2m":
                return partial(samplers.dpmpp_2m, eta=self.sampling.eta, noise=noise, past=past)
            case "dpmpp_3m":
                return partial(samplers.dpmpp_3m, eta=self.sampling.eta, noise=noise, past=past)
        return sampler_of(self.sampling, noise, self.pipeline.variance)

    def _remember(self, walks: Sequence[_Walk], x: Tensor, seen: Sequence[Tensor], after: int) -> None:
        """Keep the states at a step, and of DPM-Solver++ the predictions that led there."""
        steps = steps_of(self.times, self.pipeline.model.denoiser.schedule)
        is_multistep = self.sampling.sampler in MULTISTEP
        for row, walk in enumerate(walks):
            walk.state, walk.step = x[row], after
            if is_multistep:  # one call per step
                made = [(steps[after - 1 - k].half_logsnr, seen[-1 - k][row]) for k in range(len(seen))]
                walk.past = [*made, *walk.past][:_REMEMBERED]


def check_pausable(sampling: SamplingConfig) -> None:
    """Refuse settings whose walk in two parts is not the whole walk.

    Raises:
        Refused: another sampler, churn, which is shared out over the steps of a walk, or guidance that remembers.
    """
    remedy = f"take one of {', '.join(PAUSABLE)}, or give up no candidate on the way"
    if sampling.sampler not in PAUSABLE:
        raise Refused(f"{sampling.sampler} cannot be paused, as it remembers more than its predictions: {remedy}")
    if sampling.churn > 0:
        raise Refused(f"{sampling.sampler} cannot be paused with churn {sampling.churn}: set it to 0")
    if isinstance(sampling.guide.rule, AdaptiveProjected) and sampling.guide.rule.momentum:
        raise Refused("guidance with momentum cannot be paused: set guide.rule.momentum to 0")
